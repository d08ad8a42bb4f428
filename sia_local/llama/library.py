"""llama.cpp itself: the pinned release, its log, its backends. The only door to the module `llama_cpp`.

Struct layouts change between releases of llama-cpp-python, so one exact version is pinned and checked at import.
"""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import version as _installed_version
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SiaError

PINNED = "0.3.36"
if _installed_version("llama-cpp-python") != PINNED:
    raise SiaError(
        f"llama-cpp-python {_installed_version('llama-cpp-python')} is installed, {PINNED} is needed (struct "
        f"layouts differ between releases); run: pip install llama-cpp-python=={PINNED}"
    )

import llama_cpp  # noqa: E402
from llama_cpp import llama_cpp as C  # noqa: E402

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
MAX_SEQUENCES = int(C.llama_max_parallel_sequences())

_LOG_ERROR = 4
_last_errors: list[str] = []


@C.llama_log_callback
def _on_log(level: int, text: bytes, _: Any) -> None:
    if level == _LOG_ERROR:
        _last_errors.append(text.decode("utf-8", "replace").strip())
        del _last_errors[:-8]


C.llama_log_set(_on_log, ctypes.c_void_p(0))
C.llama_backend_init()
# GCC drops the tile configuration of this release's AMX kernels, and the first decode is a segmentation fault
# (llama.cpp's pull request 26954). Without the extra buffer types the AVX-512 kernels run instead.
AMX = b"AMX_INT8 = 1" in C.llama_print_system_info()


def reason() -> str:
    """The last thing llama.cpp logged as an error, for the tail of a sentence."""
    said = next((line for line in _last_errors if line and "failed to load model" not in line), "")
    _last_errors.clear()
    return f" (llama.cpp: {said})" if said else ""


def versions() -> dict[str, str]:
    """Names and versions that identify a measurement."""
    return {
        "llama-cpp-python": llama_cpp.__version__,
        "numpy": np.__version__,
        "backend": backend_name(),
        "system": C.llama_print_system_info().decode().strip(),
    }


def backend_name() -> str:
    """The fastest backend this build of llama.cpp can use: CUDA, Metal, Vulkan … or CPU."""
    if not C.llama_supports_gpu_offload():
        return "CPU"
    info = C.llama_print_system_info().decode()
    return next((name for name in ("CUDA", "Metal", "MTL", "Vulkan", "ROCm", "SYCL") if name in info), "GPU")


def default_threads() -> int:
    """One thread a core this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)
