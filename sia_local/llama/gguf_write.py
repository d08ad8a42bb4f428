"""Writes GGUF files that hold metadata and no tensor. Imports numpy and nothing of llama.cpp.

The typed values (`KV`, `text`, `f32_array` and so on) are those of GGUF version 3, little endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..files import atomic_write

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32


class KV(NamedTuple):
    """A metadata value with its GGUF type numbers. Strings inside arrays stay bytes: vocabularies need it."""

    value: Any
    type: int
    subtype: int | None = None


def text(value: str) -> KV:
    return KV(value, STRING)


def u32(value: int) -> KV:
    return KV(int(value), 4)


def u64(value: int) -> KV:
    return KV(int(value), 10)


def f32(value: float) -> KV:
    return KV(float(value), 6)


def boolean(value: bool) -> KV:
    return KV(bool(value), 7)


def f32_array(values: npt.ArrayLike) -> KV:
    return KV(np.asarray(values, np.float32).ravel().tolist(), ARRAY, 6)


def i32_array(values: npt.ArrayLike) -> KV:
    return KV(np.asarray(values, np.int32).ravel().tolist(), ARRAY, 5)


def f16_array(values: npt.ArrayLike) -> KV:
    """Halves as the u16 of their bits, since GGUF has no array of halves."""
    return KV(np.asarray(values, np.float16).ravel().view(np.uint16).tolist(), ARRAY, 2)


def text_array(values: Iterable[bytes]) -> KV:
    return KV(list(values), ARRAY, STRING)


def write_metadata(path: str | os.PathLike[str], arch: str, fields: Mapping[str, KV]) -> None:
    """Writes a GGUF file of `fields` and `general.architecture` alone, whole or not at all."""
    entries = {"general.architecture": text(arch), **fields}
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)))
    for key, field in entries.items():
        out += _string(key.encode()) + struct.pack("<I", field.type) + _packed(field)
    out += bytes(-len(out) % ALIGNMENT)
    with atomic_write(path, "wb") as handle:
        handle.write(out)


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _packed(field: KV) -> bytes:
    if field.type == STRING:
        return _string(field.value.encode("utf-8", "surrogateescape"))
    if field.type != ARRAY:
        return struct.pack("<" + SCALARS[field.type], field.value)
    assert field.subtype is not None
    head = struct.pack("<IQ", field.subtype, len(field.value))
    if field.subtype == STRING:
        return head + b"".join(_string(item) for item in field.value)
    return head + struct.pack(f"<{len(field.value)}{SCALARS[field.subtype]}", *field.value)
