"""The time left is that of the work to come: not of loading, of the first texts, or of what another run has done."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sia_convert.data.rollouts import RolloutConfig, Wanted, collect
from sia_convert.data.score import score_files
from sia_convert.data.trajectories import Trajectory
from tables import GOOD, PROMPTS, TableSIA

from sia_local import SiaConfig
from sia_local.errors import SiaError
from sia_local.evaluation.arms import Arm
from sia_local.evaluation.plan import Plan
from sia_local.evaluation.run import evaluate
from sia_local.evaluation.samples import SampleFile
from sia_local.generation.decode import Job
from sia_local.learning.collect import CollectConfig, Collected, gather
from sia_local.learning.collect import Progress as Collecting
from sia_local.learning.junctions import Transitions
from sia_local.progress import Line, Pace, Progress, duration
from sia_local.records import Request
from sia_local.workers import Here, silent

LOADING, SLOTS = 300.0, 8


def test_a_narrow_terminal_sees_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
    with os.fdopen(slave, "w") as screen:
        monkeypatch.setattr("sys.stderr", screen)
        line = Line()
        line._every = 0.0
        line.show("a" * 60)
        line.show("b" * 60, last=True)
        said = b""
        while not said.endswith(b"\r\n"):
            said += os.read(master, 999)
    assert said == b"\r\x1b[K" + b"a" * 39 + b"\r\x1b[K" + b"b" * 60 + b"\r\n"
    os.close(master)


class Clock:
    """The time, and what was said of the time left: (time, seconds to go)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        self.said: list[tuple[float, float]] = []
        self.unknown = 0
        monkeypatch.setattr("sia_local.progress.time.monotonic", lambda: self.now)
        monkeypatch.setattr(Line, "show", lambda line, text, last=False: self.show(text))

    def show(self, text: str) -> None:
        found = re.search(r"(?:(\d+) h )?(?:(\d+) min ?)?(?:(\d+) s)? left|\? left", text)
        assert found is not None, text
        if found[0] == "? left":
            self.unknown += 1
        else:
            hours, minutes, seconds = (int(part or 0) for part in found.groups())
            self.said.append((self.now, 3600 * hours + 60 * minutes + seconds))

    def check(self, within: float = 1.6, unknown: int = 0) -> None:
        """Whatever was said was right, within a factor (the first texts to end are the short ones); `unknown` items at
        most came before anything was said."""
        assert self.said and self.unknown <= unknown
        for at, said in self.said:
            true = self.now - at
            slack = 80.0  # a text: the last ones do not fill the slots, and come together
            assert true / within - slack <= said <= true * within + slack, (at, said, true)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_time_left_leaves_out_loading_and_a_slow_first_step(clock: Clock) -> None:
    progress = Progress("epoch", 100)
    clock.now += 300  # a cache is filled
    progress.update()
    assert progress.left() is None
    for _ in range(9):
        clock.now += 2
        progress.update()
    assert progress.left() == pytest.approx(90 * 2)


def test_time_left_of_texts_that_grow_together(clock: Clock) -> None:
    """Sixteen at once, 50 tokens each, 1600 texts in all, a decode a second: 50 s for sixteen."""
    progress = Progress("rollouts", 1600)
    clock.now += 20
    for _ in range(50):
        clock.now += 1
        for _ in range(16):
            progress.part()
    progress.update(parts=50)
    assert progress.left() == pytest.approx(99 * 50, rel=0.03)
    for _ in range(15):
        progress.update(parts=50)
    assert progress.left() == pytest.approx(99 * 50, rel=0.03)
    assert duration(4950) == "1 h 22 min"


def test_what_is_paused_or_dropped_is_not_counted(clock: Clock) -> None:
    pace = Pace(40)
    for _ in range(10):
        clock.now += 3
        pace.item()
    assert pace.left() == pytest.approx(30 * 3)
    pace.pause()
    clock.now += 1000
    for _ in range(5):
        pace.item()
        clock.now += 3
    assert pace.left() == pytest.approx(25 * 3, rel=0.1)
    pace.drop(10)
    assert pace.left() == pytest.approx(15 * 3, rel=0.1)


class Writer:
    """A worker that writes texts of 40 to 80 tokens in SLOTS slots, a decode a second; what it has in hand is told of
    token by token, or not at all, or all of it is done at once (`waves`)."""

    def __init__(self, clock: Clock, made: Callable[[Any, int], Any], kind: str = "told"):
        self.clock, self.made, self.kind = clock, made, kind
        clock.now += LOADING

    def close(self) -> None: ...

    def run(self, items: Iterable[Any], tick: Callable[[], None] = silent) -> Iterator[tuple[int, Any]]:
        waiting, rng = enumerate(items), np.random.default_rng(1)
        open_items: dict[int, tuple[Any, int, int]] = {}  # item, its tokens, those to go
        while True:
            while len(open_items) < SLOTS and (new := next(waiting, None)) is not None:
                length = 60 if self.kind == "waves" else int(rng.integers(40, 80))
                open_items[new[0]] = new[1], length, length
            if not open_items:
                return
            self.clock.now += 1
            for place, (item, length, left) in list(open_items.items()):
                if self.kind == "told":
                    tick()
                open_items[place] = item, length, left - 1
                if left == 1:
                    del open_items[place]
                    yield place, self.made(item, length)


def text(one: Wanted, length: int) -> Trajectory:
    return Trajectory(one.id, one.prompt_id, one.prompt, one.prompt, [1] * length, "x", "length")


@pytest.mark.parametrize("kind", ["told", "untold", "waves"])
def test_sampling(clock: Clock, tmp_path: Path, kind: str) -> None:
    """`told` as rollouts do, `untold` as servers and Ray, `waves` as branch. A second run goes on, no worse."""
    prompts, out = [f"p{i}" for i in range(30)], tmp_path / "t.jsonl"
    for samples in (4, 12):
        clock.said.clear()
        clock.unknown = 0
        config = RolloutConfig(samples=samples, slots=SLOTS)
        collect(prompts, out, {}, config, lambda: Writer(clock, text, kind))
        # Before a second round of texts is heard of nothing is known.
        clock.check(unknown=1 if kind == "told" else 2 * SLOTS)


def test_scoring_in_batches(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        clock.now += 10
        return [float(len(r)) for r in responses]

    def load(spec: str) -> Callable[[list[str], list[str]], list[float]]:
        clock.now += LOADING
        return reward

    monkeypatch.setattr("sia_convert.data.score.load_reward", load)
    lines = [Trajectory(f"{i}-0", i, "p", "p", [1], "x" * (i + 1), "length").to_json() for i in range(400)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    score_files([tmp_path / "t.jsonl"], tmp_path / "scored.jsonl", "good", batch=16)
    clock.check(unknown=16)


def test_learning_and_distilling(clock: Clock, tmp_path: Path) -> None:
    none = np.zeros(0, np.int32)
    nothing = Transitions(np.zeros((0, 4), np.float16), none, np.zeros(0, np.float32), none)

    def said(progress: Collecting) -> None:
        clock.show(str(progress))

    for texts in (64, 240):
        clock.said.clear()
        clock.unknown = 0
        with Here().open(lambda: Writer(clock, lambda one, n: Collected(None, nothing, n))) as pool:
            gather(pool, ["a", "b"], tmp_path / "j", CollectConfig(texts=texts), {}, said)
        clock.check(unknown=1)


def test_evaluating(clock: Clock, tmp_path: Path) -> None:
    """Three arms of 120 texts, two in hand, a token half a second; the first loads, the second fails on the way."""

    class Slow(TableSIA):
        def run(self, jobs: Iterable[Job], *given: Any) -> Any:
            def steps() -> Iterator[Any]:
                for n, step in enumerate(super(Slow, self).run(jobs, *given)):
                    if failing and n == 100:
                        raise SiaError("broken")
                    clock.now += 0.5
                    yield step

            failing, self.arms = self.arms == 1, self.arms + 1
            return steps()

        arms = 0

    def load(source: str) -> Slow:
        clock.now += LOADING
        return Slow()

    said: list[tuple[float, int, float | None]] = []
    plan = Plan(PROMPTS, [Arm("off"), Arm("dense", beta=1.0), Arm("first-n", rate=0.5, beta=1.0)],
                Request("", SiaConfig(k=5), max_tokens=12), samples=20)  # fmt: skip
    store = SampleFile(tmp_path / "s.jsonl", {})
    outcome = evaluate(plan, load, store, GOOD, report=lambda p: said.append((clock.now, p.arm_index, p.seconds_left)))
    assert len(outcome.failed) == 1
    # Until the failure the second arm counts as much as the first.
    first = [at for at, arm, _ in said if arm == 1]
    for at, arm, left in said[1:]:
        true = clock.now - at + (first[-1] - first[0] if arm == 1 else 0)
        assert arm == 2 or (left is not None and true / 1.6 - 10 <= left <= true * 1.3 + 10)
