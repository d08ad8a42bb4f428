"""Every example runs as it stands, on tiny models in the place of the shipped ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "best_of.py": ("best of 8", "at most 1.20 nats for choosing"),
    "guides.py": ("beta 0: 0.00 words of the sea, KL of steering 0.00", "beta 4: "),
    "several_values.py": ("--- 0 happy + 0 sea: KL", "--- 1 happy + 1 sea: KL"),
    "nudge.py": ("(0 words of the small model", "]"),
    "drop_in.py": ("tokens steered", "turned to"),
    "kl_budget.py": ("     0          0.00   0.00", "  none"),
}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "demo-base.gguf").symlink_to(make_gguf("base", ascii=True))
    (tmp_path / "demo-value.gguf").symlink_to(make_gguf("merged", seed=1))
    environment = {**os.environ, "SIA_MODELS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    # As on a machine of one core: the examples leave the number of threads to the program.
    one_core = "hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    script = f"import os, runpy, sys; {one_core}; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", script, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for part in SAYS[name]:
        assert part in done.stdout


def test_the_table_of_contents_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.iterdir():
        if file.is_file() and file.name != "README.md":
            assert f"({file.name})" in page, file.name
