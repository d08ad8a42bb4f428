"""Ray: the result of one process, though a worker is killed on the way. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, SiaError
from sia_local.ray_workers import CHUNK, OnRay, RayConfig, executor_for
from sia_local.values.qhead_file import QHeadFile
from sia_local.workers import Here, silent


def test_what_is_not_asked_for_needs_no_ray() -> None:
    assert isinstance(executor_for(RayConfig()), Here)
    assert (RayConfig().threads(0), RayConfig(ray="local", ray_cpus=3).threads(0)) == (0, 3)
    with pytest.raises(ConfigError, match="ray-cpus at least 1"):
        RayConfig(ray_cpus=0)


ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def note(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `deadly` notes what it has done."""
    return tmp_path_factory.mktemp("deadly") / "died"


@pytest.fixture(scope="module")
def two(note: Path) -> Iterator[OnRay]:
    """Two workers of one thread each, which alone see what the block sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("SIA_TEST_DEADLY", str(note))
        executor = OnRay(RayConfig(ray="local", ray_workers=2))
    yield executor
    ray.shutdown()


@dataclass
class Squares:
    """Kills its own process at each of `fatal` items, once: a file stands for what has happened."""

    folder: Path
    fatal: tuple[int, ...] = ()
    refused: int = -1

    def close(self) -> None: ...

    def run(self, items: Iterable[int], tick: Callable[[], None] = silent) -> Iterator[tuple[int, int]]:
        kept = list(items)
        # The last first: results come in any order.
        for place in reversed(range(len(kept))):
            item = kept[place]
            if item in self.fatal and not (self.folder / str(item)).exists():
                (self.folder / str(item)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item == self.refused:
                raise ConfigError(f"{item} is refused")
            yield place, item * item


def test_every_item_once_though_workers_die(two: OnRay, tmp_path: Path) -> None:
    n = 2 * CHUNK + 5
    with two.open(lambda: Squares(tmp_path, fatal=(3, CHUNK + 7))) as pool:
        found = list(pool.map(iter(range(n))))
        assert sorted(found) == [(i, i * i) for i in range(n)]
        assert {path.name for path in tmp_path.iterdir()} == {"3", str(CHUNK + 7)}
        assert list(pool.map([])) == [] and list(pool.map([9])) == [(0, 81)]


def test_an_error_is_the_workers_own_and_hopeless_work_ends(two: OnRay, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 is refused"), two.open(lambda: Squares(tmp_path, refused=5)) as pool:
        list(pool.map(range(8)))

    def broken() -> Squares:
        raise SiaError("no such model")

    with pytest.raises(SiaError, match="no such model"), two.open(broken) as pool:
        list(pool.map(range(3)))

    def dies() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SiaError, match="die before they answer"), two.open(dies) as pool:
        list(pool.map(range(3)))


PLAN = """
work = "work"
threads = 1
[base]
hf = "{base}"
out = "base.gguf"
dtype = "f32"
[rollouts]
prompts = "prompts.txt"
samples = 3
max_tokens = 10
n_ctx = 128
slots = 3
[reward]
source = "test_ray:deadly"
[value]
loss = "per-token"
lora = {{ r = 4, alpha = 8, dropout = 0.1 }}
epochs = 1
batch = 6
lr = 1e-3
bf16 = false
[export]
out = "value.gguf"
layout = "merged"
[verify]
limit = 4
per_trajectory = 4
"""


def deadly(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward whose first batch kills the worker that holds it, where it is told to note that."""
    note = Path(os.environ.get("SIA_TEST_DEADLY", os.devnull))
    if not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [len(set(response)) + 0.1 * response.count("a") for response in responses]


def test_a_chain_on_ray_makes_the_same_value_file(
    two: OnRay, make_hf: Callable[..., Path], tmp_path: Path, note: Path
) -> None:
    pytest.importorskip("torch")
    from sia_convert.make import make

    made = []
    for name, config in (("here", None), ("ray", two.config)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "prompts.txt").write_text("\n".join(f"the {word} king" for word in ("sad", "old", "bad", "kind")))
        (folder / "plan.toml").write_text(PLAN.format(base=make_hf()))
        make(folder / "plan.toml", echo=lambda _: None, ray=config)
        made.append((folder / "value.gguf").read_bytes())
    assert note.exists() and made[0] == made[1]


def test_branches_qheads_and_comparisons_are_those_of_one_process(
    two: OnRay, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from sia_convert.cli import main as convert

    from sia_local.cli import main

    base, value, prompts = make_gguf("base"), make_gguf("merged", seed=1), tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"the {word} king" for word in ("sad", "old", "bad", "kind", "big", "lost")))
    for name, ray_ in (("here", ()), ("ray", ("--ray", "local", "--ray-workers", "2"))):
        few = ("--threads", "1", *ray_)
        asked: tuple[Any, ...] = (
            "-m",
            base,
            "-v",
            value,
            "--prompts",
            prompts,
            "--reward",
            "vader",
            "--judge",
            "none",
            "-n",
            "6",
        )
        asked += ("--no-report", "--rates", "0.5", "--betas", "1", "--out", tmp_path / name)
        ours = ("--base", base, "--prompts", prompts, "-o", tmp_path / f"{name}.q.gguf", "--texts", "12", *few)
        tried = (prompts, tmp_path / f"{name}.jsonl", "--base", base, "--reward", "vader", "--max-tokens", "6")
        for command, words in (
            (main, ("eval", *asked, *few)),
            (
                convert,
                ("distill", value, *ours, "--threshold", "0", "--max-tokens", "8", "--hidden", "8"),
            ),
            (convert, ("branch", *tried, "--threshold", "0.5", *few)),
        ):
            done = CliRunner().invoke(command, list(map(str, words)))
            assert done.exit_code == 0, done.output
    here, there = (sorted((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("here", "ray"))
    assert here == there and len(here) == 6
    heads = [QHeadFile.read(tmp_path / f"{name}.q.gguf").qhead.terms[0] for name in ("here", "ray")]
    np.testing.assert_array_equal(heads[0].weight, heads[1].weight)
    texts = [
        {(s["arm"], s["prompt_id"], s["sample"]): s["response"] for s in map(json.loads, lines) if "arm" in s}
        for lines in ((tmp_path / name / "samples.jsonl").read_text().splitlines() for name in ("here", "ray"))
    ]
    assert texts[0] == texts[1] and len(texts[0]) > 12
