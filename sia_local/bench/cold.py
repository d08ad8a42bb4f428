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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from ..config import DEFAULT_CANDIDATES
from ..errors import SiaError
from ..llama.context import KV_TYPES
from ..llama.costs import memory_cost
from ..llama.gguf import GgufMetadata
from ..llama.keys import KIND, LAYOUT

if TYPE_CHECKING:
    from .settings import BenchOptions

K = TypeVar("K", bound=Hashable)
_CELLS = 256  # llama.cpp rounds the cells of a KV cache up to a multiple of this


@dataclass(frozen=True)
class Cold:
    """From process start to exit: seconds, seconds of CPU, and peak resident memory in MB (10^6 bytes). The system may
    tell only the first; of several runs they are the median, the least and the highest."""

    seconds: float
    cpu_seconds: float | None
    peak_mb: float | None

    @classmethod
    def of(cls, runs: Sequence[Cold]) -> Cold:
        spent = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
        peaks = [run.peak_mb for run in runs if run.peak_mb is not None]
        return cls(median(run.seconds for run in runs), min(spent, default=None), max(peaks, default=None))


@dataclass(frozen=True)
class ColdRow:
    """One way to start, ours or llama-cpp-python's with the same files (None: no such way). of_rival: our time over
    that of llama-cpp-python with the base alone, the median over rounds."""

    placement: str
    ours: Cold
    rival: Cold | None
    of_rival: float | None = None
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
        code, spent, peak = process.wait(), None, None
    else:
        _, status, usage = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        spent = usage.ru_utime + usage.ru_stime
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    seconds = time.perf_counter() - started
    if code != 0:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        raise SiaError(f"a measured process ended with {code}: {last[0]}")
    return Cold(seconds, spent, peak)


def in_turns(commands: Mapping[K, Sequence[str]], n: int) -> tuple[dict[K, list[Cold]], dict[K, SiaError]]:
    """n runs of every command, one of each in every round, so that a noisy machine spoils all alike; after a round that
    warms the page cache and compiles. Beside them what each that failed said, which is not run again."""
    runs: dict[K, list[Cold]] = {name: [] for name in commands}
    failed: dict[K, SiaError] = {}
    with tempfile.TemporaryDirectory() as compiled:
        for _ in range(n + 1):
            for name in list(runs):
                try:
                    runs[name].append(spawn(commands[name], compiled))
                except SiaError as error:
                    del runs[name]
                    failed[name] = error
    return {name: found[1:] for name, found in runs.items()}, failed


def kv_cache_mb(model: Path, cells: int, type_k: str = "f16", type_v: str = "f16") -> float:
    """MB of a KV cache for at least `cells` tokens of this model, from its metadata."""
    with GgufMetadata(model) as meta:
        cost = memory_cost(meta, KV_TYPES[type_k], KV_TYPES[type_v])
    return (cost.kv_bytes if cost else 0) * math.ceil(cells / _CELLS) * _CELLS / 1e6


def measure_cold(options: BenchOptions, n: int) -> tuple[list[ColdRow], list[str]]:
    """One row unsteered and one for each value file, n processes each, in turns; the models, context, threads and KV
    cache of `options`. `added_mb` is memory over the unsteered process. Beside them a sentence for every process that
    failed with a value file. Raises SiaError where one without does."""
    from .rival import STARTUP_SCRIPT, llama_options

    model, setup = options.model, options.setup

    def rival(*paths: Path) -> list[str]:
        command = [sys.executable, "-c", STARTUP_SCRIPT, json.dumps(llama_options(options))]
        return [*command, *map(str, paths)]

    def ours(value: Path | None) -> list[str]:
        command = [sys.executable, "-m", "sia_local", "generate", "-p", "Hello", "--raw", "-n", "1"]
        command += ["-m", str(model), "-v", str(value or "none"), "--gate", "dense" if value else "off"]
        command += ["--ctx", str(setup.n_ctx), "--threads", str(options.threads)]
        command += ["--n-gpu-layers", str(setup.n_gpu_layers), "--flash-attention", setup.flash_attention]
        return [*command, "--kv-type-k", setup.type_k, "--kv-type-v", setup.type_v]

    files = [_ValueFile.read(value) for value in options.values]
    commands: dict[tuple[str, Path | None], list[str]] = {("ours", None): ours(None), ("rival", None): rival(model)}
    for file in files:
        commands["ours", file.path] = ours(file.path)
        if (file.kind, file.layout) == ("value", "merged"):
            commands["rival", file.path] = rival(model, file.path)
    commands["help", None] = [sys.executable, "-m", "sia_local", "--help"]
    runs, failed = in_turns(commands, n)
    if plainly := next((error for (_, path), error in failed.items() if path is None), None):
        raise plainly
    started = [file for file in files if ("ours", file.path) in runs]
    said = [f"start-up with {path.name}: {error}" for (_, path), error in failed.items() if path is not None]
    made = {which: Cold.of(found) for which, found in runs.items()}
    plain = made["ours", None].peak_mb

    def row(file: _ValueFile | None) -> ColdRow:
        path = file.path if file is not None else None
        ours, expected, added = made["ours", path], None, None
        ratio = median(a.seconds / b.seconds for a, b in zip(runs["ours", path], runs["rival", None], strict=True))
        if file is not None and ours.peak_mb is not None and plain is not None:
            added = ours.peak_mb - plain
        if file is not None and file.kind == "value-adapter":
            cells = setup.n_ctx + DEFAULT_CANDIDATES
            expected = file.path.stat().st_size / 1e6 + kv_cache_mb(model, cells, setup.type_k, setup.type_v)
        name = path.name if path is not None else "unsteered"
        return ColdRow(name, ours, made.get(("rival", path)), ratio, added, expected)

    return [row(None), *map(row, started), ColdRow("sia-local --help", made["help", None], None)], said


@dataclass(frozen=True)
class _ValueFile:
    path: Path
    kind: str
    layout: str

    @classmethod
    def read(cls, path: Path) -> _ValueFile:
        with GgufMetadata(path) as meta:
            return cls(path, meta.get(KIND, "value"), meta.get(LAYOUT, "merged"))
