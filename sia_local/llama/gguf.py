"""GGUF files through ggml's own reader: metadata with arrays, tensor spans. No model is loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ModelFileError
from . import keys
from .ggml import GgufInit, ggml_base
from .gguf_write import ARRAY, STRING
from .library import quietly, reason
from .texts import Texts, find_texts


def check_gguf(path: str | os.PathLike[str]) -> Path:
    """Raises ModelFileError for a file that is missing, empty or not GGUF, before llama.cpp looks at it."""
    file = Path(path)
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file; expected a GGUF model, check the path")
    if file.stat().st_size == 0:
        raise ModelFileError(f"{file}: the file is empty; expected a GGUF model, download or convert it again")
    with file.open("rb") as handle:
        start = handle.read(64)
    if start[:4] != b"GGUF":
        raise ModelFileError(f"{file}: {_what_it_is(start)}")
    return file


def _what_it_is(start: bytes) -> str:
    """A sentence's rest about a file that is not GGUF, from its first bytes: what it is, and what to do."""
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of git-LFS, not the model; fetch the file itself with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the model; download the file itself, on a hub from its `resolve` address"
    if start[8:9] == b"{":
        return (
            "is a safetensors file, weights without their vocabulary; convert the folder that it lies in with "
            "`sia-convert hf-to-gguf`"
        )
    if start[:2] in (b"PK", b"\x80\x02"):
        return "is a file of PyTorch; convert the folder that it lies in with `sia-convert hf-to-gguf`"
    if start[:4] in (b"ggml", b"ggjt", b"lmgg", b"tjgg"):
        return "is in a format that llama.cpp left in 2023; get the model as GGUF"
    if text.startswith((b"{", b"[")):
        return "is JSON, not a model; expected a GGUF file"
    return f"starts with {start[:4]!r}, a GGUF file with b'GGUF'; download it again, or name another file"


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def first_part(path: Path) -> Path:
    """The first of the files of a model in several parts, by the name that llama.cpp gives it."""
    found = _PART.fullmatch(path.name)
    return path.with_name(f"{found[1]}-00001-of-{found[3]}.gguf") if found else path


class Table(NamedTuple):
    """A matrix in a file, row by row in a ggml format."""

    path: Path
    ggml_type: int
    offset: int
    n_rows: int
    n_embd: int


class GgufMetadata:
    """Metadata of a GGUF file through ggml's own reader: all keys, arrays included, a few ms a file.

    Use as a context manager; values are copied out, so they outlive it. Of a model in several files the first is given,
    which has the keys; tensors are those of all. part: read a later file, for its tensors.
    """

    _SCALARS = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool"} | {
        10: "u64",
        11: "i64",
        12: "f64",
    }
    _DTYPES = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8"} | {12: "f8"}

    def __init__(self, path: str | os.PathLike[str], part: int = 0):
        self.path = check_gguf(path)
        self._lib = ggml_base()
        self._later: list[GgufMetadata] | None = None
        with quietly(self.path):
            self._ctx = self._lib.gguf_init_from_file(os.fsencode(self.path), GgufInit(True, None))
        if not self._ctx:
            raise ModelFileError(
                f"{self.path}: the GGUF header cannot be read, the file is probably truncated or damaged; "
                f"download or convert it again{reason()}"
            )
        number = self.get("split.no", 0)
        if number != part:
            count = self.get("split.count", 0)
            self.close()
            raise ModelFileError(
                f"{self.path}: is part {number + 1} of {count} of a model, expected part {part + 1}; give the first, "
                f"{first_part(self.path).name}, with the others beside it under their own names"
            )

    def __enter__(self) -> GgufMetadata:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for part in self._later or []:
            part.close()
        self._later = None
        if self._ctx:
            self._lib.gguf_free(self._ctx)
            self._ctx = None

    @property
    def parts(self) -> list[GgufMetadata]:
        """This file and the later ones of the same model. ModelFileError if one is not there."""
        if self._later is None:
            self._later = []
            count, found = self.get("split.count", 0), _PART.fullmatch(self.path.name)
            if count > 1 and not found:
                raise ModelFileError(
                    f"{self.path}: is the first of {count} parts under another name; expected one that ends in "
                    f"-00001-of-{count:05}.gguf, rename it"
                )
            for i in range(1, count):
                assert found is not None
                self._later.append(GgufMetadata(self.path.with_name(f"{found[1]}-{i + 1:05}-of-{count:05}.gguf"), i))
        return [self, *self._later]

    def keys(self) -> Iterator[str]:
        for i in range(self._lib.gguf_get_n_kv(self._ctx)):
            yield self._lib.gguf_get_key(self._ctx, i).decode("utf-8", "replace")

    def __contains__(self, key: str) -> bool:
        return self._lib.gguf_find_key(self._ctx, key.encode()) >= 0

    def get(self, key: str, default: Any = None) -> Any:
        """Scalar, str, numpy array (numeric arrays) or list[bytes] (string arrays); `default` if absent.

        ModelFileError where a key that is known here holds what it should not.
        """
        i = self._lib.gguf_find_key(self._ctx, key.encode())
        if i < 0:
            return default
        found = self._read(i)
        expected = keys.expected(key)
        if expected is not None and keys.kind_of(found) not in expected:
            raise ModelFileError(
                f"{self.path}: {key} holds {keys.kind_of(found)}, expected {' or '.join(expected)}; the file is "
                "damaged, download or convert it again"
            )
        return found

    def _read(self, i: int) -> Any:
        kind = self._lib.gguf_get_kv_type(self._ctx, i)
        if kind == STRING:
            return self._lib.gguf_get_val_str(self._ctx, i).decode("utf-8", "replace")
        if kind == ARRAY:
            n, element = self._lib.gguf_get_arr_n(self._ctx, i), self._lib.gguf_get_arr_type(self._ctx, i)
            if element == STRING:
                found = self.texts(self._lib.gguf_get_key(self._ctx, i).decode())
                return found.entries() if found is not None else []
            dtype = np.dtype(self._DTYPES[element])
            if n == 0:
                return np.empty(0, dtype)
            data = self._lib.gguf_get_arr_data(self._ctx, i)
            return np.frombuffer(ctypes.string_at(data, n * dtype.itemsize), dtype).copy()
        return getattr(self._lib, f"gguf_get_val_{self._SCALARS[kind]}")(self._ctx, i)

    def texts(self, key: str) -> Texts | None:
        """An array of texts as it lies in the file; None if absent. ModelFileError where a key that is known here holds
        something else."""
        i = self._lib.gguf_find_key(self._ctx, key.encode())
        if i < 0:
            return None
        if self._lib.gguf_get_kv_type(self._ctx, i) != ARRAY or self._lib.gguf_get_arr_type(self._ctx, i) != STRING:
            self.get(key)
            return None
        try:
            with self.path.open("rb") as file:
                found = find_texts(file.read(self._lib.gguf_get_data_offset(self._ctx)), key)
        except (LookupError, ValueError, struct.error):
            found = None
        if found is None:
            raise ModelFileError(f"{self.path}: changed while it was read; leave the file alone, and start again")
        return found

    def array_length(self, key: str) -> int:
        """Entries of an array key without reading them; 0 if absent."""
        i = self._lib.gguf_find_key(self._ctx, key.encode())
        return self._lib.gguf_get_arr_n(self._ctx, i) if i >= 0 else 0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape by tensor name, of all parts, ggml order (fastest dimension first)."""
        return {name: shape for part in self.parts for name, shape in part.own_tensors().items()}

    def own_tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of the tensors in this very file."""
        out = {}
        for i in range(self._lib.gguf_get_n_tensors(self._ctx)):
            shape = self._shape(i)
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            out[self._lib.gguf_get_tensor_name(self._ctx, i).decode("utf-8", "surrogateescape")] = tuple(shape)
        return out

    def integers(self) -> list[str]:
        """Tensors of whole numbers (I8 to I64) in this very file."""
        lib, ctx = self._lib, self._ctx
        return [
            lib.gguf_get_tensor_name(ctx, i).decode("utf-8", "replace")
            for i in range(lib.gguf_get_n_tensors(ctx))
            if 24 <= lib.gguf_get_tensor_type(ctx, i) <= 27
        ]

    def part_of(self, name: str) -> GgufMetadata:
        """The part with a tensor. KeyError if there is none of that name."""
        for part in self.parts:
            if self._lib.gguf_find_tensor(part._ctx, name.encode("utf-8", "surrogateescape")) >= 0:
                return part
        raise KeyError(name)

    def table(self, name: str) -> Table | None:
        """Where a matrix is; None if no tensor has that name, or it is no matrix."""
        try:
            part = self.part_of(name)
        except KeyError:
            return None
        n_embd, n_rows, *more = part._shape(self._lib.gguf_find_tensor(part._ctx, name.encode()))
        if any(n > 1 for n in more) or n_rows == 1:
            return None
        ggml_type, offset, _ = part.tensor_span(name)
        return Table(part.path, ggml_type, offset, n_rows, n_embd)

    def _shape(self, i: int) -> list[int]:
        """All four dimensions of tensor i, ggml order."""
        ne = self._lib.gguf_get_tensor_ne(self._ctx, i)
        return [ne[d] for d in range(4)]

    def tensor_span(self, name: str) -> tuple[int, int, int]:
        """(ggml type, offset, bytes) of one tensor in this very file. KeyError if there is none of that name."""
        i = self._lib.gguf_find_tensor(self._ctx, name.encode("utf-8", "surrogateescape"))
        if i < 0:
            raise KeyError(name)
        offset = self._lib.gguf_get_data_offset(self._ctx) + self._lib.gguf_get_tensor_offset(self._ctx, i)
        size = self._lib.gguf_get_tensor_size(self._ctx, i)
        return self._lib.gguf_get_tensor_type(self._ctx, i), offset, size

    def vocab_sha256(self) -> str | None:
        """Fingerprint of the token list, None for a file without one."""
        tokens = self.texts("tokenizer.ggml.tokens")
        return hashlib.sha256(tokens.stored).hexdigest() if tokens else None
