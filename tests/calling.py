"""The commands, called as a user does, and what a refusal looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

from sia_local.cli import main

FEW = ["-n", "8", "--seed", "7", "--threads", "1", "--ctx", "128"]
LONG = ["-n", "100000", "--seed", "7", "--threads", "1", "--ctx", "4000", "--grammar-file"]
Make = Callable[..., Path]


def run(*args: object, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], input=input)


def generate(base: Path, value: Path | None, *args: object, input: str | None = None) -> Result:
    return run("generate", "-m", base, *(("-v", value) if value else ()), *FEW, *args, input=input)


def refused(result: Result, *parts: str) -> None:
    """One sentence on standard error, exit code 2, no traceback, nothing on standard output."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ") and "Traceback" not in result.output
    assert result.stdout.strip() == ""
    for part in parts:
        assert part in lines[-1]


def start(*args: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sia_local", *map(str, args)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
