"""GGUF metadata with its types, read in one pass, and a writer that streams tensors one at a time."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sia_local.errors import ModelFileError
from sia_local.llama.gguf_write import (
    ARRAY as _ARRAY,
)
from sia_local.llama.gguf_write import KV as KV
from sia_local.llama.gguf_write import SCALARS as _SCALARS
from sia_local.llama.gguf_write import STRING as _STRING
from sia_local.llama.gguf_write import boolean as boolean
from sia_local.llama.gguf_write import f32 as f32
from sia_local.llama.gguf_write import f32_array as f32_array
from sia_local.llama.gguf_write import i32_array as i32_array
from sia_local.llama.gguf_write import text as text
from sia_local.llama.gguf_write import u32 as u32
from sia_local.llama.gguf_write import u64 as u64


def text_array(values: Iterable[bytes]) -> KV:
    return KV(list(values), _ARRAY, _STRING)


class TensorShape(NamedTuple):
    """Name and numpy shape (slowest first) of a tensor in a file, without its data."""

    name: str
    shape: tuple[int, ...]
    type: int


def read_gguf(path: str | os.PathLike[str]) -> tuple[dict[str, KV], list[TensorShape]]:
    """All metadata and the tensor list of a GGUF file (version 2 or 3, little endian), tensors unread; of a model in
    several files, given by the first, the tensors of all.

    Raises ModelFileError for a file that is missing, not GGUF, ends early, or is a later part. `gguf.GGUFReader` does
    this too, in ten seconds for a vocabulary of 152k; this takes a fraction of one.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelFileError(f"no file at {source}: expected a GGUF file")
    try:
        with source.open("rb") as handle:
            fields, tensors = _parse(handle, source)
        for part in files_of(source)[1:] if "split.no" in fields else ():
            with part.open("rb") as handle:
                tensors += _parse(handle, part)[1]
        return fields, tensors
    except (struct.error, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise ModelFileError(f"{source} ends early or is damaged: download or export it again") from error


def files_of(path: Path) -> list[Path]:
    """The files of a model that is given by its first."""
    from sia_local.llama.gguf import GgufMetadata

    with GgufMetadata(path) as meta:
        return [part.path for part in meta.parts]


def _parse(handle: BinaryIO, source: Path) -> tuple[dict[str, KV], list[TensorShape]]:
    def number(code: str) -> Any:
        return struct.unpack("<" + code, handle.read(struct.calcsize("<" + code)))[0]

    def raw() -> bytes:
        size = number("Q")
        if size > 1 << 30:
            raise struct.error("string size")
        data = handle.read(size)
        if len(data) != size:
            raise struct.error("string")
        return data

    if handle.read(4) != b"GGUF":
        raise ModelFileError(f"{source} is not a GGUF file (its first bytes are not 'GGUF')")
    version = number("I")
    if version not in (2, 3):
        raise ModelFileError(f"{source} is GGUF version {version}; versions 2 and 3 can be read")
    n_tensors, n_kv = number("Q"), number("Q")
    fields: dict[str, KV] = {}
    for _ in range(n_kv):
        key, kind = raw().decode(), number("I")
        if kind == _STRING:
            fields[key] = KV(raw().decode("utf-8", "surrogateescape"), kind)
        elif kind == _ARRAY:
            subtype, count = number("I"), number("Q")
            if subtype == _STRING:
                fields[key] = KV([raw() for _ in range(count)], kind, subtype)
            elif subtype in _SCALARS:
                code = f"<{count}{_SCALARS[subtype]}"
                fields[key] = KV(list(struct.unpack(code, handle.read(struct.calcsize(code)))), kind, subtype)
            else:
                raise ModelFileError(f"{source}: metadata key {key} has an undefined array type")
        elif kind in _SCALARS:
            fields[key] = KV(number(_SCALARS[kind]), kind)
        else:
            raise ModelFileError(f"{source}: metadata key {key} has type {kind}, which GGUF does not define")
    tensors = []
    for _ in range(n_tensors):
        name = raw().decode()
        dims = [number("Q") for _ in range(number("I"))]
        kind = number("I")
        number("Q")
        tensors.append(TensorShape(name, tuple(reversed(dims)), kind))
    return fields, tensors


@dataclass(frozen=True)
class Tensor:
    """A tensor to write; `load` gives float32 of `shape` when its turn comes, so few are in memory.

    stored: `load` gives the bytes of the format `dtype` itself.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str = "f32"  # f32, f16, bf16, q8_0, or with `stored` any
    stored: bool = False


def stored_tensors(path: Path) -> list[Tensor]:
    """The tensors of a GGUF in one file, as they are."""
    import gguf

    from sia_local.llama.gguf import GgufMetadata

    out = []
    with GgufMetadata(path) as meta:
        for name, shape, kind in read_gguf(path)[1]:
            _, offset, size = meta.tensor_span(name)

            def load(offset: int = offset, size: int = size) -> np.ndarray:
                return np.fromfile(path, np.uint8, size, offset=offset)

            out.append(Tensor(name, shape, load, gguf.GGMLQuantizationType(kind).name.lower(), stored=True))
    return out


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 [..., n] in the row format `dtype` (see `Tensor`): a float array, or uint8 for blocks."""
    import gguf

    if dtype == "f32":
        return np.ascontiguousarray(array, np.float32)
    if dtype == "f16":
        limit = float(np.finfo(np.float16).max)
        return np.clip(np.ascontiguousarray(array, np.float32), -limit, limit).astype(np.float16)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)).view(np.uint8)


def encoded_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size of a tensor of `shape` in the row format `dtype`."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype.upper()]]
    return int(np.prod(shape)) // block * size


def write_gguf(path: Path, arch: str, fields: Mapping[str, KV], tensors: Iterable[Tensor]) -> None:
    """Writes a GGUF file, tensor by tensor. Raises ModelFileError for NaN or infinite weights."""
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    for key, field in fields.items():
        if key == "general.architecture":
            continue
        subtype = None if field.subtype is None else gguf.GGUFValueType(field.subtype)
        writer.add_key_value(key, field.value, gguf.GGUFValueType(field.type), subtype)
    queue = list(tensors)
    for tensor in queue:
        kind = gguf.GGMLQuantizationType[tensor.dtype.upper()]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), encoded_bytes(tensor.shape, tensor.dtype), kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in queue:
            array = tensor.load()
            if tensor.stored:
                writer.write_tensor_data(array)
                continue
            if array.shape != tensor.shape:
                raise ModelFileError(f"{tensor.name} has shape {array.shape}, expected {tensor.shape}")
            if not np.isfinite(array).all():
                raise ModelFileError(f"{tensor.name} has NaN or infinite weights; the checkpoint is damaged")
            writer.write_tensor_data(encode(array, tensor.dtype))
    finally:
        if writer.fout is not None:
            writer.close()
