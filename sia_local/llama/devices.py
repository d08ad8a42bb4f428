"""What a base's layers can lie on beside the CPU: GPUs of this machine, and machines that run `ggml-rpc-server`.

`rpc_servers` of llama-cpp-python does nothing. The servers are registered here with ggml itself, before a model loads,
as llama.cpp's own programs do it (common/arg.cpp).
"""

from __future__ import annotations

import ctypes
import re
import socket
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..errors import ConfigError
from .library import C, library_with

# enum ggml_backend_dev_type (ggml-backend.h)
_GPU, _IGPU = 1, 2
_ENDPOINT = re.compile(r"(?P<host>[^:\[\]]+):(?P<port>\d{1,5})")
PATIENCE = 5.0  # seconds that a server has to take a connection


@cache
def _ggml() -> tuple[Any, Any]:
    """ggml and ggml-base with the prototypes of ggml/include/ggml-backend.h that are used here."""
    ptr, string, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    ggml = library_with("ggml_backend_load_all", "ggml")
    base = library_with("ggml_backend_dev_type", "ggml-base")
    prototypes: list[tuple[Any, dict[str, tuple[Any, list[Any]]]]] = [
        (
            ggml,
            {
                "ggml_backend_load_all": (None, []),
                "ggml_backend_reg_by_name": (ptr, [string]),
                "ggml_backend_register": (None, [ptr]),
                "ggml_backend_dev_count": (size, []),
                "ggml_backend_dev_get": (ptr, [size]),
            },
        ),
        (
            base,
            {
                "ggml_backend_dev_type": (ctypes.c_int, [ptr]),
                "ggml_backend_dev_backend_reg": (ptr, [ptr]),
                "ggml_backend_reg_name": (string, [ptr]),
                "ggml_backend_reg_dev_count": (size, [ptr]),
                "ggml_backend_reg_dev_get": (ptr, [ptr, size]),
                "ggml_backend_reg_get_proc_address": (ptr, [ptr, string]),
                "ggml_set_abort_callback": (ptr, [ptr]),
            },
        ),
    ]
    for library, functions in prototypes:
        for name, (restype, argtypes) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
    return ggml, base


def local_gpus() -> list[int]:
    """GPUs of this machine, as ggml's pointers."""
    ggml, base = _ggml()
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        remote = base.ggml_backend_reg_name(base.ggml_backend_dev_backend_reg(device)) == b"RPC"
        if not remote and base.ggml_backend_dev_type(device) in (_GPU, _IGPU):
            found.append(device)
    return found


def remote(endpoints: Sequence[str]) -> list[int]:
    """The devices of `ggml-rpc-server` programs, host:port each, as ggml's pointers.

    Raises ConfigError where this build has no RPC, or nobody answers. A server that goes away later ends this process:
    llama.cpp aborts, after a sentence.
    """
    checked = [_checked(endpoint) for endpoint in endpoints]
    if not C.llama_supports_rpc():
        raise ConfigError(
            f"layers were to go to {', '.join(endpoints)}, but this build of llama.cpp has no RPC; build "
            'llama-cpp-python with CMAKE_ARGS="-DGGML_RPC=on" (docs/install.md)'
        )
    ggml, base = _ggml()
    ggml.ggml_backend_load_all()
    add = base.ggml_backend_reg_get_proc_address(ggml.ggml_backend_reg_by_name(b"RPC"), b"ggml_backend_rpc_add_server")
    add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(add)
    base.ggml_set_abort_callback(_on_abort)
    found = []
    for endpoint in checked:
        if (server := _registered.get(endpoint)) is None:
            _reach(endpoint)
            server = add_server(endpoint.encode())
            if not server:
                raise ConfigError(f"{endpoint}: this RPC server has no device; start it with one")
            ggml.ggml_backend_register(server)
            _registered[endpoint] = server
        devices = range(base.ggml_backend_reg_dev_count(server))
        found += [base.ggml_backend_reg_dev_get(server, i) for i in devices]
    return found


_registered: dict[str, int] = {}


def _checked(endpoint: str) -> str:
    found = _ENDPOINT.fullmatch(endpoint.strip())
    if not found or not 0 < int(found["port"]) < 1 << 16:
        raise ConfigError(f"the RPC server is {endpoint!r}; expected host:port, such as 192.0.2.7:50052")
    return endpoint.strip()


def _reach(endpoint: str) -> None:
    """ggml aborts the process where nobody listens."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"{endpoint}: no RPC server answers there ({error}); start one on that machine, as in ggml-rpc-server -H "
            f"ADDRESS -p {port}"
        ) from None


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _on_abort(message: bytes) -> None:
    said = message.decode("utf-8", "replace")
    if "RPC" in said:
        said = f"an RPC server went away or answered wrongly, and llama.cpp cannot go on without it ({said})"
    sys.stderr.write(f"Error: {said}\n")
    sys.stderr.flush()
