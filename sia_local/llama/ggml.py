"""ggml's own functions that llama-cpp-python has no bindings for, and rows of any of its formats as floats."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import IncompatibleError
from .library import FloatArray, library_with


class GgufInit(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


class _TypeTraits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


def row_bytes(ggml_type: int, n: int) -> int:
    """Bytes of a row of n numbers in a ggml format."""
    return int(ggml_base().ggml_row_size(ggml_type, n))


def dequantize(rows: npt.NDArray[np.uint8], ggml_type: int, n: int) -> FloatArray:
    """float32 [len(rows), n] of rows in any ggml format, by ggml's own conversion."""
    rows = np.ascontiguousarray(rows)
    if ggml_type == 0:
        return rows.view(np.float32).reshape(len(rows), n)
    out = np.empty((len(rows), n), np.float32)
    traits = ggml_base().ggml_get_type_traits(ggml_type).contents
    if not traits.to_float:
        raise IncompatibleError(
            f"rows in ggml's format {traits.type_name.decode()} were given, expected numbers ggml can read as floats; "
            "convert the model to another format"
        )
    traits.to_float(rows.ctypes.data, out.ctypes.data, out.size)
    return out


def ggml_base() -> Any:
    """ggml-base with the prototypes of ggml/include/gguf.h, ggml.h and ggml-backend.h that are used here."""
    global _gguf_lib
    if _gguf_lib is None:
        lib = library_with("gguf_init_from_file", "ggml-base")
        ptr, i64, string, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t
        prototypes: dict[str, tuple[Any, list[Any]]] = {
            "gguf_init_from_file": (ptr, [string, GgufInit]),
            "gguf_free": (None, [ptr]),
            "gguf_get_n_kv": (i64, [ptr]),
            "gguf_find_key": (i64, [ptr, string]),
            "gguf_get_key": (string, [ptr, i64]),
            "gguf_get_kv_type": (ctypes.c_int, [ptr, i64]),
            "gguf_get_arr_type": (ctypes.c_int, [ptr, i64]),
            "gguf_get_arr_n": (size, [ptr, i64]),
            "gguf_get_arr_data": (ptr, [ptr, i64]),
            "gguf_get_val_str": (string, [ptr, i64]),
            "gguf_get_n_tensors": (i64, [ptr]),
            "gguf_find_tensor": (i64, [ptr, string]),
            "gguf_get_data_offset": (size, [ptr]),
            "gguf_get_tensor_offset": (size, [ptr, i64]),
            "gguf_get_tensor_size": (size, [ptr, i64]),
            "gguf_get_tensor_type": (ctypes.c_int, [ptr, i64]),
            "gguf_get_tensor_name": (string, [ptr, i64]),
            "gguf_get_tensor_ne": (ctypes.POINTER(i64), [ptr, i64]),
            "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), [ctypes.c_int]),
            "ggml_row_size": (size, [ctypes.c_int, i64]),
            "ggml_get_name": (string, [ptr]),
            "ggml_nelements": (i64, [ptr]),
            "ggml_backend_tensor_get": (None, [ptr, ptr, size, size]),
        }
        scalars: dict[str, Any] = {"u8": ctypes.c_uint8, "i8": ctypes.c_int8}
        scalars |= {"u16": ctypes.c_uint16, "i16": ctypes.c_int16}
        scalars |= {"u32": ctypes.c_uint32, "i32": ctypes.c_int32, "u64": ctypes.c_uint64, "i64": i64}
        scalars |= {"f32": ctypes.c_float, "f64": ctypes.c_double, "bool": ctypes.c_bool}
        prototypes |= {f"gguf_get_val_{name}": (kind, [ptr, i64]) for name, kind in scalars.items()}
        for name, (restype, argtypes) in prototypes.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = restype, argtypes
        _gguf_lib = lib
    return _gguf_lib


_gguf_lib: Any = None
