"""llama.cpp itself: the pinned release, its log, its backends. The only door to the module `llama_cpp`.

Struct layouts change between releases of llama-cpp-python, so one exact version is pinned and checked at import.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..errors import ConfigError, SiaError

PINNED = "0.3.36"
_PACKAGE = "llama_cpp"


class Handle:
    """A pointer into llama.cpp as an attribute, until its owner is closed. SiaError for whoever asks for it later:
    given none, llama.cpp would end the process."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, _: type | None = None) -> Any:
        if not (pointer := owner.__dict__.get(self._name)):
            raise SiaError("the model is closed: load it again, and read a text to its end before close()")
        return pointer

    def __set__(self, owner: Any, pointer: Any) -> None:
        owner.__dict__[self._name] = pointer


def check_pinned(origin: str | None) -> None:
    """Raises SiaError unless the package that begins in this file (None: there is none) is of the pinned release. The
    file says so itself; asking importlib.metadata takes ten times as long."""
    stated = re.search(r'^__version__ = "(.*)"', Path(origin).read_text(encoding="utf-8"), re.M) if origin else None
    if stated is None or stated[1] != PINNED:
        found = f"llama-cpp-python {stated[1]}" if stated else "no known release of llama-cpp-python"
        raise SiaError(
            f"{found} is installed, {PINNED} is needed (struct layouts differ between releases); run: "
            f"pip install llama-cpp-python=={PINNED}"
        )


_spec = find_spec(_PACKAGE)
check_pinned(_spec.origin if _spec is not None else None)


def _bindings() -> tuple[Any, Any]:
    """The bindings of llama-cpp-python, and its log, without what else its package begins with: class `Llama`, jinja2
    and formats of chats, a third of the time of its import. Whoever imports the package later gets all of it."""
    names = "llama_cpp.llama_cpp", "llama_cpp._logger"
    if _PACKAGE in sys.modules:
        return import_module(names[0]), import_module(names[1])
    assert _spec is not None
    sys.modules[_PACKAGE] = empty = module_from_spec(_spec)
    try:
        bindings = import_module(names[0])
        vars(empty).update({name: x for name, x in vars(bindings).items() if not name.startswith("_")})
        # Sets a log of its own when it is imported, which must not be after this program's.
        return bindings, import_module(names[1])
    finally:
        del sys.modules[_PACKAGE]


if TYPE_CHECKING:
    from llama_cpp import _logger as _their
    from llama_cpp import llama_cpp as C
else:
    C, _their = _bindings()
# Where the libraries lie: in the package, or where LLAMA_CPP_LIB_PATH says.
LIBRARIES = Path(C._base_path)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
MAX_SEQUENCES = int(C.llama_max_parallel_sequences())

# enum ggml_log_level (ggml.h)
_LOG_ERROR = 4
_last_errors: list[str] = []


class _Calls(threading.local):
    """How deep this thread is in calls of ours."""

    depth = 0


_calls = _Calls()
_files: list[str] = []  # what calls under way are about; an assertion may fail in a thread of llama.cpp's own


@contextmanager
def quietly(file: str | os.PathLike[str] = "") -> Iterator[None]:
    """What llama.cpp logs inside is ours: errors are kept for reason(), nothing is printed. The log of the rest of the
    process, such as a caller's own `Llama(verbose=True)`, goes where llama-cpp-python sends it. file: what is read."""
    _calls.depth += 1
    _files.append(str(file))
    try:
        yield
    finally:
        _calls.depth -= 1
        _files.remove(str(file))


@C.llama_log_callback
def _on_log(level: int, text: bytes, data: Any) -> None:
    if not _calls.depth:
        # Until a Llama is made, llama-cpp-python has no level and would print everything.
        if _their.logger.level:
            _their.llama_log_callback(level, text, data)
    elif level == _LOG_ERROR:
        _last_errors.append(text.decode("utf-8", "replace").strip())
        del _last_errors[:-8]


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _on_abort(message: bytes) -> None:
    """An assertion of ggml or llama.cpp failed; the process ends when this returns, if not before."""
    failed = message.decode("utf-8", "replace")
    if _files:
        file = next((file for file in reversed(_files) if file), "a model")
        why = " ".join(failed.rpartition(": ")[2].split())
        failed = f"{file}: llama.cpp gave up on this file ({why}); it is damaged or not what it says, convert it again"
        if errors.give_up is not None:
            errors.give_up(failed)
    os.write(2, f"{failed}\n".encode())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_crash(number: int) -> None:
    """A signal that ends the process: a mapped file that ends before the page that is read, or worse."""
    file = next((file for file in reversed(_files) if file), None)
    if file is None or errors.give_up is None:
        _libc.signal(number, None)
        _libc["raise"](number)
    elif number == getattr(signal, "SIGBUS", None):
        errors.give_up(f"{file}: became shorter while it was in use; leave a loaded file alone, and start again")
    else:
        name = signal.Signals(number).name
        errors.give_up(f"{file}: llama.cpp crashed ({name}); the file is damaged or not what it says, convert it again")


if errors.give_up is not None and os.name == "posix":
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    _libc = ctypes.CDLL(None)
    _libc.signal.argtypes, _libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    for _number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE):
        # Not a handler of Python's, which would wait until the call that failed returns.
        _libc.signal(_number, ctypes.cast(_on_crash, ctypes.c_void_p))
C.llama_log_set(_on_log, ctypes.c_void_p(0))
if hasattr(C._lib, "ggml_set_abort_callback"):
    C._lib.ggml_set_abort_callback.restype = ctypes.c_void_p
    C._lib.ggml_set_abort_callback(_on_abort)
C.llama_backend_init()
# GCC drops the tile configuration of this release's AMX kernels, and the first decode is a segmentation fault
# (llama.cpp's pull request 26954). Without the extra buffer types the AVX-512 kernels run instead.
AMX = b"AMX_INT8 = 1" in C.llama_print_system_info()


def library_with(function: str, name: str) -> Any:
    """The library that shows a function of ggml: libllama, which depends on it, or the one of this name.

    On Windows a library does not show what it depends on. Elsewhere the file of that name would be loaded a second
    time, a copy that knows nothing of what was set in the first.
    """
    if hasattr(C._lib, function):
        return C._lib
    return ctypes.CDLL(str(next(LIBRARIES / n for n in (f"{name}.dll", f"lib{name}.dll") if (LIBRARIES / n).exists())))


def reason() -> str:
    """The last thing llama.cpp logged as an error, for the tail of a sentence: on one line, whatever it quotes."""
    said = next((line for line in _last_errors if line and "failed to load model" not in line), "")
    _last_errors.clear()
    return f" (llama.cpp: {' '.join(said.split())})" if said else ""


def versions() -> dict[str, str]:
    """Names and versions that identify a measurement."""
    return {
        "llama-cpp-python": PINNED,
        "numpy": np.__version__,
        "backend": backend_name(),
        "system": C.llama_print_system_info().decode().strip(),
    }


def backend_name() -> str:
    """The fastest backend this build of llama.cpp can use: CUDA, Metal, Vulkan … or CPU."""
    if not has_gpu():
        return "CPU"
    info = C.llama_print_system_info().decode()
    return next((name for name in ("CUDA", "Metal", "MTL", "Vulkan", "ROCm", "SYCL") if name in info), "GPU")


def default_threads(root: Path = Path("/sys")) -> int:
    """One thread a core this process may use: hyper-threads of one core count once, a container's quota bounds them."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = "devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_read(root / siblings.format(cpu)) or str(cpu) for cpu in allowed}
    quota, _, period = _read(root / "fs/cgroup/cpu.max").partition(" ")
    bound = math.ceil(int(quota) / int(period)) if quota.isdecimal() and period.isdecimal() else len(cores)
    return max(1, min(len(cores), bound))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def has_gpu() -> bool:
    """Whether there is a GPU that this build of llama.cpp can use; other machines do not count."""
    if not C.llama_supports_rpc():
        return bool(C.llama_supports_gpu_offload())
    from .devices import local_gpus

    return bool(local_gpus())


def gpu_layers(n: int) -> int:
    """n, layers to put on a GPU. Raises ConfigError where this build of llama.cpp has none to put them on."""
    if n != 0 and not has_gpu():
        raise ConfigError(
            f"{n} layers were to go on a GPU, but this build of llama.cpp has no GPU backend; ask for 0, or build "
            "llama-cpp-python for yours (docs/install.md)"
        )
    return n
