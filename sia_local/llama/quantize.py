"""Quantization by llama.cpp."""

from __future__ import annotations

import ctypes
import os

from ..errors import ConfigError, ModelFileError
from .gguf import check_gguf
from .library import C, default_threads, quietly, reason


def quantization_types() -> tuple[str, ...]:
    """Names llama_model_quantize takes, e.g. Q4_K_M."""
    return tuple(sorted(_FTYPES))


_FTYPES = {
    name.removeprefix("LLAMA_FTYPE_MOSTLY_").removeprefix("LLAMA_FTYPE_ALL_"): int(value)
    for name, value in vars(C).items()
    if name.startswith(("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"))
}


def quantization_name(file_type: int) -> str:
    """Name of a GGUF's `general.file_type`, e.g. Q4_K_M; the number itself if this release does not know it."""
    return next((name for name, value in _FTYPES.items() if value == file_type), f"type {file_type}")


def quantize(src: str | os.PathLike[str], dst: str | os.PathLike[str], ftype: str, n_threads: int = 0) -> None:
    """Writes `src` quantized as `ftype` to `dst`, which its caller puts into place (files.aside). Metadata, the value
    head included, passes through untouched."""
    check_gguf(src)
    if ftype.upper() not in _FTYPES:
        raise ConfigError(f"unknown quantization {ftype!r}; expected one of {', '.join(quantization_types())}")
    params = C.llama_model_quantize_default_params()
    params.ftype = _FTYPES[ftype.upper()]
    params.nthread = n_threads or default_threads()
    params.allow_requantize = True
    with quietly(src):
        status = C.llama_model_quantize(os.fsencode(src), os.fsencode(dst), ctypes.byref(params))
    if status != 0:
        raise ModelFileError(f"{src}: llama.cpp could not quantize this file to {ftype}{reason()}")
