"""Start-up time and peak memory, each in a fresh process: the same work as the arms of `bench`, once.

Run this before any model is loaded: the kernel counts the memory of a process that starts another one towards
the peak of the new one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ..config import DEFAULT_CANDIDATES
from ..errors import SiaError
from ..llama.context import KV_TYPES
from ..llama.costs import memory_cost
from ..llama.gguf import GgufMetadata
from ..llama.keys import KIND, LAYOUT

if TYPE_CHECKING:
    from .settings import BenchOptions

_CELLS = 256  # llama.cpp rounds the cells of a KV cache up to a multiple of this


@dataclass(frozen=True)
class Cold:
    """Seconds from process start to exit, and peak resident memory in MB (10^6 bytes; None where the system
    does not tell)."""

    seconds: float
    peak_mb: float | None


@dataclass(frozen=True)
class ColdRow:
    """One way to start, ours or llama-cpp-python's with the same files (None: no such way)."""

    placement: str
    ours: Cold
    rival: Cold | None
    added_mb: float | None = None
    expected_mb: float | None = None


def spawn(command: Sequence[str], compiled: str) -> Cold:
    """Runs a command to its end; compiled: where its bytecode is kept. SiaError with its last words if it fails."""
    # pip compiles what it installs: neither program is to compile itself at every start because of how it lies here.
    told = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    told["PYTHONPYCACHEPREFIX"] = compiled
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=told)
    assert process.stderr is not None
    said = process.stderr.read()
    if not hasattr(os, "wait4"):
        code, peak = process.wait(), None
    else:
        _, status, usage = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    seconds = time.perf_counter() - started
    if code != 0:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise SiaError(f"a measured process ended with {code}: {last[0]}")
    return Cold(seconds, peak)


def repeat(command: Sequence[str], n: int) -> Cold:
    """The median time of n runs after one that warms the page cache and compiles, and the highest peak."""
    with tempfile.TemporaryDirectory() as compiled:
        runs = [spawn(command, compiled) for _ in range(n + 1)][1:]
    peaks = [r.peak_mb for r in runs if r.peak_mb is not None]
    return Cold(median(r.seconds for r in runs), max(peaks) if peaks else None)


def kv_cache_mb(model: Path, cells: int, type_k: str = "f16", type_v: str = "f16") -> float:
    """MB of a KV cache for at least `cells` tokens of this model, from its metadata."""
    with GgufMetadata(model) as meta:
        cost = memory_cost(meta, KV_TYPES[type_k], KV_TYPES[type_v])
    return (cost.kv_bytes if cost else 0) * math.ceil(cells / _CELLS) * _CELLS / 1e6


def measure_cold(options: BenchOptions, n: int) -> list[ColdRow]:
    """One row unsteered and one for each value file, n processes each; the models, context, threads and KV cache of
    `options`. `added_mb` is memory over the unsteered process."""
    from .rival import STARTUP_SCRIPT, llama_options

    model, setup = options.model, options.setup

    def rival(*paths: Path) -> Cold:
        command = [sys.executable, "-c", STARTUP_SCRIPT, json.dumps(llama_options(options))]
        return repeat([*command, *map(str, paths)], n)

    def ours(value: Path | None) -> Cold:
        command = [sys.executable, "-m", "sia_local", "generate", "-p", "Hello", "--raw", "-n", "1"]
        command += ["-m", str(model), "-v", str(value or "none"), "--gate", "dense" if value else "off"]
        command += ["--ctx", str(setup.n_ctx), "--threads", str(options.threads)]
        command += [
            "--n-gpu-layers",
            str(setup.n_gpu_layers),
            "--flash-attention",
            setup.flash_attention,
        ]
        return repeat([*command, "--kv-type-k", setup.type_k, "--kv-type-v", setup.type_v], n)

    plain = ours(None)
    alone = rival(model)
    rows = [ColdRow("unsteered", plain, alone)]
    for value in options.values:
        with GgufMetadata(value) as meta:
            kind, layout = meta.get(KIND, "value"), meta.get(LAYOUT, "merged")
        cold = ours(value)
        added = None if cold.peak_mb is None or plain.peak_mb is None else cold.peak_mb - plain.peak_mb
        expected = None
        if kind == "value-adapter":
            cells = setup.n_ctx + DEFAULT_CANDIDATES
            expected = value.stat().st_size / 1e6 + kv_cache_mb(model, cells, setup.type_k, setup.type_v)
        same_files = rival(model, value) if (kind, layout) == ("value", "merged") else None
        rows.append(ColdRow(value.name, cold, same_files, added, expected))
    return [*rows, ColdRow("sia-local --help", repeat([sys.executable, "-m", "sia_local", "--help"], n), None)]
