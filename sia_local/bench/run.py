"""Speed and memory of every way to generate, interleaved, so that a noisy machine spoils all of them alike.

An arm is one way to generate. Every repetition runs all arms once, in rotating order; ratios are taken within a
repetition. A run generates n tokens behind a prompt of `depth` tokens that both models hold already. Junctions
come from a random gate at a forced rate, with a seed that opens it exactly round(rate * n) times: random
weights then give honest costs, and every repetition does the same work. Dense arms of a value model, whose tokens all
cost the same, make a quarter of the tokens; several sequences share them, at least 20 each. The floor of an arm is the
time of its llama.cpp calls alone (see `replay`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import DEFAULT_CANDIDATES, DEFAULT_HEAD_CANDIDATES, SiaConfig
from ..errors import SiaError
from ..generation.sia import SIA
from ..llama.keys import QHEAD_KIND
from ..llama.model import Model
from ..values.sources import AnyFile, read_value_file
from .arms import RIVAL, UNSTEERED, Arm, RivalArm, Row, Workload
from .settings import BenchOptions


class Bench:
    """Loads the base once, every value file once a number of sequences, and holds the arms made of them."""

    def __init__(self, options: BenchOptions, say: Callable[[str], None] = lambda _: None):
        self.options, self._say = options, say
        self.failed: list[str] = []
        self._loaded: list[SIA] = []
        self.model = Model(options.model, n_gpu_layers=options.setup.n_gpu_layers, rpc=options.setup.rpc)
        self.arms: list[Arm | RivalArm] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for sia in self._loaded:
            sia.close()
        for arm in self.arms:
            if isinstance(arm, RivalArm):
                arm.close()
        self._loaded, self.arms = [], []
        self.model.close()
        gc.collect()

    def _load(self, value: Path | None, slots: int, k: int) -> SIA:
        sia = SIA.load(self.model, value, self.options.setup, slots=slots, max_candidates=k or None)
        self._loaded.append(sia)
        return sia

    def build(self) -> None:
        """Makes the arms. One that cannot be loaded is noted in `failed` and does not lose the others."""
        options = self.options
        self._attempt(RIVAL, self._rival)
        files = [read_value_file(path) for path in options.values]
        for slots in options.sequences:
            self._attempt(f"{UNSTEERED}, {slots} at once", partial(self._plain, slots))
            for file in files:
                self._attempt(f"{file.path.name}, {slots} at once", partial(self._steered, file, slots))

    def _attempt(self, what: str, make: Callable[[], Sequence[Arm | RivalArm]]) -> None:
        self._say(f"loading {what}")
        try:
            self.arms += make()
        except SiaError as error:
            self.failed.append(f"{what}: {error}")

    def _rival(self) -> list[RivalArm]:
        return [RivalArm(self.options, self.model.n_vocab)]

    def _plain(self, slots: int) -> list[Arm]:
        sia, k = self._load(None, slots, 0), max(self.options.k, default=DEFAULT_CANDIDATES)
        arms = [Arm(sia, UNSTEERED, SiaConfig(k=k, gate="off"), None, self.options.seed)]
        if slots == 1:
            gated = SiaConfig(k=k, gate="rate", rate=self.options.rates[0] if self.options.rates else 0.2)
            arms.append(Arm(sia, "gate only", gated, None, self.options.seed))
        return arms

    def _steered(self, file: AnyFile, slots: int) -> list[Arm]:
        options = self.options
        default = DEFAULT_HEAD_CANDIDATES if file.kind == "value-head" else DEFAULT_CANDIDATES
        ks = options.k or (default,)
        sia = self._load(file.path, slots, max(ks))
        narrow = SiaConfig(min_share=options.min_share, row_group=options.row_group)
        arms = [
            Arm(sia, "sparse", replace(narrow, k=k, gate="random", rate=rate), rate, options.seed)
            for k in ks
            for rate in options.rates
        ]
        if options.dense and (slots == 1 or file.kind == QHEAD_KIND):
            arms.append(Arm(sia, "dense", replace(narrow, k=max(ks), gate="dense"), 1.0, options.seed))
        return arms

    def measure(self) -> list[Row]:
        """Every test, every repetition, every arm. Rows come in the order of the arms."""
        options = self.options
        tests = [Workload("pp", n) for n in options.prompts if n]
        tests += [Workload("tg", n, d) for n in options.tokens if n for d in options.depths]
        return [row for test in tests for row in self._measure(test)]

    def _measure(self, test: Workload) -> list[Row]:
        options = self.options
        # Reading a prompt does not depend on the rate: one arm a placement is enough.
        arms = [a for a in self.arms if test.kind == "tg" or a.label not in ("sparse", "gate only")]
        rows = [Row(test.name, a.label, a.placement, a.value_size, a.rate, a.k, a.sequences) for a in arms]
        for arm in arms:
            arm.prepare(test)
            if options.traces is not None and test.kind == "tg" and isinstance(arm, Arm):
                arm.save_trace(test, options.traces)
        for repetition in range(options.repetitions):
            self._say(f"{test.name}: repetition {repetition + 1} of {options.repetitions}")
            for i in range(len(arms)):
                at = (i + repetition) % len(arms)
                rows[at].samples.append(arms[at].run(test, floor=repetition < options.floors))
        reference = next((r for r in rows if r.arm == UNSTEERED and r.sequences == 1), None)
        if reference is not None:
            for row in rows:
                row.ratios = [a / b for a, b in zip(row.speeds, reference.speeds, strict=True)]
        return rows
