"""Embedding rows for a lean value model: read from a file, dequantized row by row.

A lean value model has no vocabulary and is fed vectors. The rows come from a trailer of its own file (one file
travels alone) or from the base's token embeddings (where training left them untouched).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import IncompatibleError, ModelFileError
from . import keys
from .ggml import dequantize, row_bytes
from .gguf import GgufMetadata, Table
from .library import FloatArray

OUTPUT, EMBEDDINGS = "output.weight", "token_embd.weight"
Tables = Mapping[str, Table]


class EmbeddingRows:
    """rows[ids] -> float32 [len(ids), n_embd], read from a span of `path` in a ggml row format, times `scale`."""

    scale = 1.0

    def __init__(self, path: str | os.PathLike[str], ggml_type: int, offset: int, n_rows: int, n_embd: int):
        self.n_embd, self.n_rows = n_embd, n_rows
        self._type = ggml_type
        stride = row_bytes(ggml_type, n_embd)
        if offset < 0 or offset + n_rows * stride > Path(path).stat().st_size:
            raise ModelFileError(f"{path}: the embedding rows are truncated; export or download the file again")
        self._offset, self._stride = offset, stride
        # Read, not mapped: a page that is touched maps megabytes around it, which count as this process's own.
        self._file, self._lock = open(path, "rb", buffering=0), threading.Lock()  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def __getitem__(self, ids: Any) -> FloatArray:
        rows = dequantize(self._read(np.atleast_1d(np.asarray(ids, np.int64))), self._type, self.n_embd)
        return rows if self.scale == 1 else rows * np.float32(self.scale)

    def _read(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        if len(ids) and (ids.min() < 0 or ids.max() >= self.n_rows):
            raise IndexError(f"rows {ids.min()} to {ids.max()} of {self.n_rows}")
        data, stride = np.empty((len(ids), self._stride), np.uint8), self._stride
        with self._lock:
            for row, i in zip(data, ids.tolist(), strict=True):
                self._file.seek(self._offset + i * stride)
                if self._file.readinto(row.data) != stride:
                    raise ModelFileError(f"{self._file.name}: became shorter while it was in use; start again")
        return data

    def stored(self) -> npt.NDArray[np.uint8]:
        """All rows as they lie in the file, uint8 [n_rows, bytes a row]."""
        data = np.fromfile(self._file.name, np.uint8, self.n_rows * self._stride, offset=self._offset)
        return data.reshape(self.n_rows, self._stride)

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
    def from_model(cls, path: str | os.PathLike[str], tables: Tables | None = None) -> EmbeddingRows:
        """The token embeddings of a GGUF model. tables: tables_of(path), where they are known."""
        tables = tables if tables is not None else tables_of(path)
        if EMBEDDINGS not in tables:
            raise IncompatibleError(f"{path}: holds no token embeddings a lean value model could be fed with")
        return cls(*tables[EMBEDDINGS])

    @classmethod
    def output_of(cls, path: str | os.PathLike[str], tables: Tables | None = None) -> EmbeddingRows:
        """The rows of the output layer of a GGUF model; where it is tied, the token embeddings. tables: as above."""
        tables = tables if tables is not None else tables_of(path)
        table = tables.get(OUTPUT) or tables.get(EMBEDDINGS)
        if table is None:
            raise IncompatibleError(
                f"{path}: holds neither {OUTPUT} nor {EMBEDDINGS}, whose rows a Q-head reads; expected a whole base "
                "model"
            )
        return cls(*table)


def tables_of(source: GgufMetadata | str | os.PathLike[str]) -> Tables:
    """Where a GGUF model has the matrices with a row a token, as far as it has them, by their names."""
    if not isinstance(source, GgufMetadata):
        with GgufMetadata(source) as meta:
            return tables_of(meta)
    found = {name: source.table(name) for name in (OUTPUT, EMBEDDINGS)}
    return {name: table for name, table in found.items() if table is not None}


def write_trailer(handle: Any, rows: npt.NDArray[np.uint8], ggml_type: int, n_embd: int) -> None:
    """Appends rows (uint8 [n_rows, bytes a row]) and the footer to an open binary file."""
    handle.write(rows.tobytes())
    handle.write(keys.TRAILER_FOOTER.pack(ggml_type, n_embd, len(rows), 0, keys.TRAILER_MAGIC))
