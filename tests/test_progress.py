"""The time left is that of the work to come, not of loading."""

from __future__ import annotations

import pytest
from sia_convert.progress import Progress, duration


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        monkeypatch.setattr("sia_convert.progress.time.monotonic", lambda: self.now)


def test_time_left_leaves_out_loading_and_a_slow_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    progress = Progress("epoch", 100)
    clock.now += 300  # a cache is filled
    progress.update()
    assert progress.left(clock.now) is None
    for _ in range(9):
        clock.now += 2
        progress.update()
    assert progress.left(clock.now) == pytest.approx(90 * 2)


def test_time_left_of_texts_that_grow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen at once, 50 tokens each, 1600 texts in all, a decode a second: 50 s for sixteen."""
    clock = Clock(monkeypatch)
    progress = Progress("rollouts", 1600)
    clock.now += 20
    for _ in range(50):
        clock.now += 1
        progress.work(16)
    progress.update(work=50)
    assert progress.left(clock.now) == pytest.approx(99 * 50, rel=0.03)
    for _ in range(15):
        progress.update(work=50)
    assert progress.left(clock.now) == pytest.approx(99 * 50, rel=0.03)
    assert duration(4950) == "1 h 22 min"
