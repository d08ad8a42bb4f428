"""The loop: one base decode for all live sequences, one value decode for all junctions, one Step a token.

It knows a base that gives logits, a source that gives values, and a sink that turns tokens into text; no
llama.cpp and no tokenizer. Everything numeric is in `choice` and below.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..config import SiaConfig
from ..steering.choice import Candidates, Choice, Filter, Floats, IntArray
from ..steering.tilt import draw


class Base(Protocol):
    def begin(self, slot: int, tokens: Sequence[int]) -> int: ...
    def logits(self, slots: Sequence[int]) -> Sequence[Floats]: ...
    def accept(self, slot: int, token: int) -> None: ...


class Values(Protocol):
    """A source of V(s, y). `spread` is its standard deviation among a junction's candidates, reward units.

    room: how many tokens a slot can still take, by the source's own reading of the prompt.
    """

    spread: float | None
    max_candidates: int

    def begin(self, slot: int, prompt: Prompt) -> None: ...
    def room(self, slot: int) -> int: ...
    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int]) -> Sequence[Floats]: ...
    def accept(self, slot: int, token: int) -> None: ...


class Sink(Protocol):
    def push(self, token: int, last: bool) -> tuple[str, bool]:
        """Text that becomes visible with this token, and whether a stop string ends the sequence."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt as the base reads it (`tokens`) and, for sources with their own rendering, the chat behind it."""

    tokens: tuple[int, ...]
    messages: tuple[dict[str, str], ...] | None = None
    text: str = ""


@dataclass
class Job:
    """One text to generate. `filter` and `sink` belong to this job alone; `trace` keeps the candidates."""

    prompt: Prompt
    config: SiaConfig
    max_tokens: int
    seed: int
    ends: Callable[[int], bool]
    sink: Sink
    filter: Filter | None = None
    trace: bool = False
    id: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token.

    entropy in nats; kl: KL of this step's distribution from the base's, nats, of which kl_truncation is due to
    cutting to the candidates; logprob: log-probability of the token under the base; beta: strength used (0 when
    not steered); finish: None, `eog`, `stop`, `length` or `context`. kl_steering: KL from the same step without
    values (same candidates, filters, temperature), nats: what a KL budget counts; at temperature 0, where it is
    infinite, the logits given up. flipped: steering changed the
    likeliest candidate; values_asked: candidates scored.
    """

    job: int
    index: int
    token: int
    text: str
    entropy: float
    steered: bool
    kl: float
    kl_truncation: float
    logprob: float
    beta: float
    finish: str | None
    candidates: Candidates | None
    kl_steering: float = 0.0
    flipped: bool = False
    values_asked: int = 0


@dataclass
class Stats:
    """What a generation did and cost. Times in ms, KL in nats; flips: junctions whose likeliest token changed."""

    tokens: int = 0
    prompt_tokens: int = 0
    junctions: int = 0
    flips: int = 0
    values_asked: int = 0
    kl: float = 0.0
    kl_truncation: float = 0.0
    kl_steering: float = 0.0
    base_ms: float = 0.0
    value_ms: float = 0.0
    wall_ms: float = 0.0
    prefill_ms: float = 0.0

    def add(self, step: Step) -> None:
        """Counts a step; the times are the caller's."""
        self.tokens += 1
        self.junctions += step.steered
        self.flips += step.flipped
        self.values_asked += step.values_asked
        self.kl += step.kl
        self.kl_truncation += step.kl_truncation
        self.kl_steering += step.kl_steering

    @property
    def junction_rate(self) -> float:
        return self.junctions / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        spent = self.wall_ms - self.prefill_ms
        return 1000.0 * self.tokens / spent if spent > 0 else 0.0

    @property
    def value_ms_per_junction(self) -> float:
        return self.value_ms / self.junctions if self.junctions else 0.0


def decode(
    base: Base,
    value: Values | None,
    jobs: Iterable[Job],
    slots: int = 1,
    n_ctx: int = 1 << 30,
    stats: Stats | None = None,
) -> Iterator[Step]:
    """Runs jobs on `slots` sequences at once; a slot that finishes takes the next job. Yields every token.

    Raises NumericError for NaN logits or values.
    """
    stats = stats if stats is not None else Stats()
    waiting, free, live = iter(jobs), list(range(slots)), list[_Live]()
    clock = time.perf_counter
    started = clock()
    while True:
        while free and (job := next(waiting, None)) is not None:
            live.append(_Live(job, free.pop(0), base, value, n_ctx))
            stats.prompt_tokens += len(job.prompt.tokens)
        if not live:
            return
        # 1. One decode gives every live sequence its next logits.
        t0 = clock()
        rows = base.logits([s.slot for s in live])
        t1 = clock()
        stats.base_ms += (t1 - t0) * 1e3
        if stats.tokens == 0:
            stats.prefill_ms = (t1 - t0) * 1e3
        # 2. Candidates, entropy, gate.
        for sequence, row in zip(live, rows, strict=True):
            sequence.choice.look(row)
        # 3. Sure tokens are drawn without V, so that a shared decode can take them along.
        for sequence in live:
            if not sequence.choice.steer:
                sequence.choose(None)
        # 4. One decode scores the candidates of every junction.
        if junctions := [s for s in live if s.choice.steer]:
            assert value is not None
            others = [s.slot for s in live if not s.choice.steer and s.finish is None]
            t0 = clock()
            scored = value.score([(s.slot, s.choice.asked) for s in junctions], others)
            stats.value_ms += (clock() - t0) * 1e3
            for sequence, values in zip(junctions, scored, strict=True):
                sequence.choose(values)
        # 5. One Step a sequence.
        for sequence in live:
            step = sequence.step()
            stats.add(step)
            stats.wall_ms = (clock() - started) * 1e3
            yield step
        free += [s.slot for s in live if s.finish]
        live = [s for s in live if not s.finish]


class _Live:
    """A job in its slot: the choice it makes, its random stream, and the step being made."""

    def __init__(self, job: Job, slot: int, base: Base, value: Values | None, n_ctx: int):
        self.job, self.slot, self.base, self.value = job, slot, base, value
        self.choice = Choice(job.config, job.seed, value, job.filter)
        self.finish: str | None = None
        # Two streams: a gate that draws must not shift the sampling, or beta = 0 would differ from off.
        self._rng = np.random.default_rng(job.seed)
        self._room = n_ctx - len(job.prompt.tokens)
        base.begin(slot, job.prompt.tokens)
        if value is not None and self.choice.uses_value:
            value.begin(slot, job.prompt)
            self._room = min(self._room, value.room(slot))

    def choose(self, values: Floats | None) -> None:
        """Draws the token, tilted when values are given, and hands it to both models."""
        job, choice = self.job, self.choice
        drawn = draw(choice.weigh(values), float(self._rng.random()))
        self.token, self.logprob = int(choice.ids[drawn]), float(choice.base_logprobs[drawn])
        self._room -= 1
        if job.ends(self.token):
            self.finish = "eog"
        elif choice.index + 1 >= job.max_tokens:
            self.finish = "length"
        elif self._room <= 0:
            self.finish = "context"
        self._text, stopped = job.sink.push(self.token, self.finish is not None)
        if stopped and self.finish is None:
            self.finish = "stop"
        if self.finish is None:
            self.base.accept(self.slot, self.token)
            if self.value is not None and choice.uses_value:
                self.value.accept(self.slot, self.token)
            if job.filter is not None:
                job.filter.accept(self.token)

    def step(self) -> Step:
        choice = self.choice
        step = Step(
            job=self.job.id,
            index=choice.index,
            token=self.token,
            text=self._text,
            entropy=choice.entropy,
            steered=choice.steer,
            kl=choice.kl,
            kl_truncation=choice.kl_truncation,
            logprob=self.logprob,
            beta=choice.beta,
            finish=self.finish,
            candidates=choice.candidates() if self.job.trace else None,
            kl_steering=choice.kl_steering,
            flipped=choice.flipped,
            values_asked=len(choice.asked),
        )
        choice.advance()
        return step
