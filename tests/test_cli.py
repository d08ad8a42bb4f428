"""The command line as a whole: help that imports nothing heavy, and tracebacks on demand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sia_local.cli import COMMANDS


def test_help_imports_neither_llama_cpp_nor_numpy() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner; from sia_local.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "heavy = {'llama_cpp', 'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_help_of_a_command_needs_no_llama_cpp() -> None:
    # Those are made of what they fit with, in numpy.
    names = [name for name in COMMANDS if name not in ("learn", "average")]
    script = (
        "import sys; from click.testing import CliRunner; from sia_local.cli import main\n"
        f"for name in {names}:\n"
        "    r = CliRunner().invoke(main, [name, '--help']); assert r.exit_code == 0, r.output\n"
        "    assert not {'llama_cpp', 'numpy'} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_debug_shows_the_traceback(base_gguf: Path) -> None:
    for place in (["--debug", "inspect", "none.gguf"], ["inspect", "none.gguf", "--debug"]):
        done = subprocess.run([sys.executable, "-m", "sia_local", *place], capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "Traceback" in done.stderr
