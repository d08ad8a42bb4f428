"""Embedding rows for a lean value model: looked up in a mapped file, dequantized row by row.

A lean value model has no vocabulary and is fed vectors. The rows come from a trailer of its own file (one file
travels alone) or from the base's token embeddings (where training left them untouched).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import IncompatibleError, ModelFileError
from . import keys
from .gguf import GgufMetadata, dequantize, row_bytes
from .library import FloatArray


class EmbeddingRows:
    """rows[ids] -> float32 [len(ids), n_embd], read from a span of `path` in a ggml row format."""

    def __init__(self, path: str | os.PathLike[str], ggml_type: int, offset: int, n_rows: int, n_embd: int):
        self.n_embd, self.n_rows = n_embd, n_rows
        self._type = ggml_type
        stride = row_bytes(ggml_type, n_embd)
        if offset < 0 or offset + n_rows * stride > Path(path).stat().st_size:
            raise ModelFileError(f"{path}: the embedding rows are truncated; export or download the file again")
        self._data = np.memmap(path, np.uint8, "r", offset, (n_rows, stride))

    def __getitem__(self, ids: Any) -> FloatArray:
        return dequantize(self._data[np.asarray(ids, np.int64)], self._type, self.n_embd)

    @classmethod
    def from_trailer(cls, path: str | os.PathLike[str]) -> EmbeddingRows | None:
        """The rows after the tensor data of a lean file; None if it has no trailer."""
        footer = keys.TRAILER_FOOTER
        size = Path(path).stat().st_size
        if size < footer.size:
            return None
        with open(path, "rb") as handle:
            handle.seek(size - footer.size)
            ggml_type, n_embd, n_rows, _, magic = footer.unpack(handle.read(footer.size))
        if magic != keys.TRAILER_MAGIC:
            return None
        offset = size - footer.size - n_rows * row_bytes(ggml_type, n_embd)
        return cls(path, ggml_type, offset, n_rows, n_embd)

    @classmethod
    def from_model(cls, path: str | os.PathLike[str]) -> EmbeddingRows:
        """The token embeddings of a GGUF model."""
        rows = cls._from_tensor(path, "token_embd.weight")
        if rows is None:
            raise IncompatibleError(f"{path}: holds no token embeddings a lean value model could be fed with")
        return rows

    @classmethod
    def output_of(cls, path: str | os.PathLike[str]) -> EmbeddingRows:
        """The rows of the output layer of a GGUF model; where it is tied, the token embeddings."""
        rows = cls._from_tensor(path, "output.weight") or cls._from_tensor(path, "token_embd.weight")
        if rows is None:
            raise IncompatibleError(
                f"{path}: holds neither output.weight nor token_embd.weight, whose rows a Q-head reads; expected a "
                "whole base model in one file"
            )
        return rows

    @classmethod
    def _from_tensor(cls, path: str | os.PathLike[str], name: str) -> EmbeddingRows | None:
        with GgufMetadata(path) as meta:
            shape = meta.tensors().get(name)
            if shape is None or len(shape) != 2:
                return None
            ggml_type, offset, _ = meta.tensor_span(name)
        return cls(path, ggml_type, offset, shape[1], shape[0])


def write_trailer(handle: Any, rows: npt.NDArray[np.uint8], ggml_type: int, n_embd: int) -> None:
    """Appends rows (uint8 [n_rows, bytes a row]) and the footer to an open binary file."""
    handle.write(rows.tobytes())
    handle.write(keys.TRAILER_FOOTER.pack(ggml_type, n_embd, len(rows), 0, keys.TRAILER_MAGIC))
