"""A base on other machines. What needs a build with RPC runs where LLAMA_CPP_LIB_PATH names one and SIA_RPC_SERVER its
ggml-rpc-server (docs/install.md)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from loading import EXACT

from sia_local import SIA, Setup, SiaConfig
from sia_local.errors import ConfigError
from sia_local.llama.devices import remote
from sia_local.llama.library import C

SERVER = os.environ.get("SIA_RPC_SERVER")
needs_rpc = pytest.mark.skipif(SERVER is None or not C.llama_supports_rpc(), reason="no build with RPC is named")
LOAD = Setup.of(EXACT, n_ctx=128)
KINDS = {"merged": 1, "lean": 1, "adapter": 2, "head": 0, "qhead": 0}


@contextmanager
def server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert SERVER is not None
    command = [SERVER, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"127.0.0.1:{port}", process
        finally:
            process.kill()


def test_what_is_no_server_is_refused() -> None:
    for given in ("nohost", "host:", "host:99999", ":50052"):
        with pytest.raises(ConfigError, match="expected host:port, such as"):
            remote([given])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = "no RPC server answers there" if C.llama_supports_rpc() else "this build of llama.cpp has no RPC"
    with pytest.raises(ConfigError, match=nobody):
        remote([f"127.0.0.1:{port}"])


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        yield stack.enter_context(server())[0], stack.enter_context(server())[0]


@needs_rpc
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_on_two_machines_writes_the_same(
    two: tuple[str, str], make_gguf: Callable[..., Path], kind: str
) -> None:
    value = make_gguf(kind, seed=KINDS[kind])
    config = SiaConfig(gate="dense", beta=2.0)
    seen = []
    for rpc in ((), two):
        with SIA.load(make_gguf("base"), value, Setup.of(LOAD, rpc=rpc)) as sia:
            steps = list(sia.generate("hi there", config, max_tokens=24, seed=5, trace=True))
            values = [step.candidates.values for step in steps if step.candidates is not None]
            seen.append(([step.token for step in steps], np.concatenate(values)))
    assert seen[0][0] == seen[1][0] and len(seen[0][0]) > 4
    np.testing.assert_allclose(seen[0][1], seen[1][1], atol=1e-4)


@needs_rpc
def test_a_server_that_dies_ends_the_program_with_a_sentence(base_gguf: Path) -> None:
    program = (
        "import sys\nfrom sia_local import SIA\n"
        "with SIA.load(sys.argv[1], n_ctx=4096, n_threads=1, rpc=(sys.argv[2],)) as sia:\n"
        "    for step in sia.generate('hi', max_tokens=4000, seed=1):\n        print(step.index, flush=True)\n"
    )
    with server() as (endpoint, process):
        words = [sys.executable, "-c", program, str(base_gguf), endpoint]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None and running.stderr is not None
            assert running.stdout.readline() == "0\n"
            process.kill()
            said = running.stderr.read()
        assert running.returncode == -signal.SIGABRT
        assert "Error: an RPC server went away or answered wrongly, and llama.cpp cannot go on without it" in said
