"""The loop: one base decode for all live sequences, one value decode for all junctions, one Step a token.

It knows a base that gives logits, a source that gives values, and a sink that turns tokens into text; no
llama.cpp and no tokenizer. Everything numeric is in `steering`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..errors import ContextFullError
from ..reasoning import ANSWER
from ..records import Floats, Prompt, Request, Stats, Step, Values
from ..steering.choice import Choice, Filter, Look, Verdict
from ..steering.tilt import draw
from ..text import Shown


class Base(Protocol):
    """best_slot: which of the free slots, the one unused for longest first, is to hold a prompt. read_piece: decodes a
    batch of a long queue, and says whether more than a batch is left."""

    def best_slot(self, free: Sequence[int], tokens: Sequence[int]) -> int: ...
    def begin(self, slot: int, tokens: Sequence[int]) -> int: ...
    def read_piece(self, slot: int) -> bool: ...
    def logits(self, slots: Sequence[int]) -> Sequence[Floats]: ...
    def accept(self, slot: int, token: int) -> None: ...


class Sink(Protocol):
    """See text.TextStream."""

    @property
    def part(self) -> str: ...
    def push(self, token: int, last: bool) -> Shown: ...


@dataclass(eq=False)
class Job:
    """A request on its way. `filter` and `sink` belong to this job alone; jobs may share `stats`. left_out: is told
    where the prompt does not fit as the source of values reads it, in place of an error that ends all jobs."""

    request: Request
    prompt: Prompt
    ends: Callable[[int], bool]
    sink: Sink
    filter: Filter | None = None
    id: int = 0
    stats: Stats = field(default_factory=Stats)
    left_out: Callable[[ContextFullError], None] | None = None


class Loop:
    """Slots of a base, with the values beside it. admit() while there is room, round() until nothing is live."""

    def __init__(self, base: Base, value: Values | None, slots: int = 1, n_ctx: int = 1 << 30):
        self.base, self.value, self.n_ctx = base, value, n_ctx
        self.free = list(range(slots))
        self.live: list[_Live] = []

    def admit(self, job: Job) -> None:
        """Gives the job a free slot. Raises ContextFullError, and keeps the slot, if a prompt does not fit."""
        if job.stats.began is None:
            job.stats.began = time.perf_counter()
        slot = self.base.best_slot(self.free, job.prompt.tokens)
        self.live.append(_Live(job, slot, self.base, self.value, self.n_ctx))
        job.stats.prompt_tokens += len(job.prompt.tokens)
        job.stats.cached_tokens += self.live[-1].cached
        self.free.remove(slot)

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Ends jobs between two of their tokens; their slots are free."""
        ended = set(map(id, jobs))
        self.free += [s.slot for s in self.live if id(s.job) in ended]
        self.live = [s for s in self.live if id(s.job) not in ended]

    def round(self) -> list[tuple[Job, Step]]:
        """A Step of each live sequence whose prompt is read; none after a piece of a long one, so that its reader can
        give up. Raises NumericError for NaN logits or values."""
        clock = time.perf_counter
        started = clock()
        live = self._ready()
        if not live:
            for stats in {id(s.job.stats): s.job.stats for s in self.live}.values():
                stats.base_ms += (clock() - started) * 1e3
                stats.prefill_ms += (clock() - started) * 1e3 if stats.steps == 0 else 0.0
            return []
        # 1. One decode gives every sequence its next logits.
        new = [s for s in live if not s.looked]
        rows = self.base.logits([s.slot for s in new]) if new else ()
        looked = clock()
        # 2. Candidates, entropy, gate.
        for sequence, row in zip(new, rows, strict=True):
            sequence.look = sequence.choice.look(row, sequence.job.sink.part)
        # 3. Sure tokens are drawn without V, so that a shared decode can take them along.
        for sequence in new:
            if not sequence.look.asks:
                sequence.choose(None)
        # 4. One decode scores the candidates of every junction, but of those whose prompt the source has not read yet.
        value_ms = 0.0
        for sequence in live:
            sequence.looked = sequence.waits = sequence.look.asks and self._behind(sequence.slot)
        live = [s for s in live if not s.waits]
        if junctions := [s for s in live if s.look.asks]:
            assert self.value is not None
            others = [s.slot for s in live if not s.look.asks and s.finish is None]
            t0 = clock()
            scored = self.value.score([(s.slot, s.look.asked) for s in junctions], others)
            value_ms = (clock() - t0) * 1e3
            for sequence, values in zip(junctions, scored, strict=True):
                sequence.choose(values)
        # 5. One Step a sequence.
        for stats in {id(s.job.stats): s.job.stats for s in live}.values():
            stats.base_ms += (looked - started) * 1e3
            stats.value_ms += value_ms
            if stats.steps == 0:
                stats.prefill_ms += (looked - started) * 1e3
        steps = [(s.job, s.step()) for s in live]
        self.free += [s.slot for s in live if s.finish]
        self.live = [s for s in self.live if not s.finish]
        return steps

    def _ready(self) -> list[_Live]:
        """The sequences to step now. A long prompt is read a piece a round, by the base, and by the source of values
        once it is asked, while others write."""
        for sequence in [s for s in self.live if s.unread or s.waits]:
            if sequence.unread:
                sequence.unread = self.base.read_piece(sequence.slot)
            else:
                sequence.waits = self._read_values(sequence.slot)
            if sequence.unread or sequence.waits:
                break
        return [s for s in self.live if not (s.unread or s.waits)]

    def _behind(self, slot: int) -> bool:
        return self.value is not None and any(reader.behind(slot) for reader in self.value.engines)

    def _read_values(self, slot: int) -> bool:
        """A piece of what the source of values has still to read; whether more is left."""
        assert self.value is not None
        for reader in self.value.engines:
            if reader.behind(slot):
                reader.read_piece(slot)
                break
        return self._behind(slot)


def decode(
    base: Base, value: Values | None, jobs: Iterable[Job], slots: int = 1, n_ctx: int = 1 << 30
) -> Iterator[Step]:
    """Runs jobs on `slots` sequences at once; a slot that finishes takes the next job. Yields every token."""
    loop, waiting = Loop(base, value, slots, n_ctx), iter(jobs)
    while True:
        while loop.free and (job := next(waiting, None)) is not None:
            loop.admit(job)
        if not loop.live:
            return
        for _, step in loop.round():
            yield step


class _Live:
    """A job in its slot: the choice it makes, its random stream, and the step being made."""

    look: Look
    verdict: Verdict

    def __init__(self, job: Job, slot: int, base: Base, value: Values | None, n_ctx: int):
        self.job, self.slot, self.base, self.value = job, slot, base, value
        request = job.request
        self.choice = Choice(request.config, request.seed, value, job.filter)
        self.finish: str | None = None
        # unread: its prompt, by the base. waits: at a junction, which was looked at, for values.
        self.unread, self.waits, self.looked = True, False, False
        # Two streams: a gate that draws must not shift the sampling, or beta = 0 would differ from off.
        self._rng = np.random.default_rng(request.seed)
        self._room = n_ctx - len(job.prompt.tokens)
        self.cached = base.begin(slot, job.prompt.tokens)
        if value is not None and self.choice.uses_value:
            value.begin(slot, job.prompt)
            self._room = min(self._room, value.room(slot))

    def choose(self, values: Floats | None) -> None:
        """Draws the token, tilted when values are given, and hands it to both models."""
        job, look = self.job, self.look
        self.verdict = self.choice.weigh(look, values)
        drawn = draw(self.verdict.probabilities, float(self._rng.random()))
        self.token, self.logprob = int(look.ids[drawn]), float(look.base_logprobs[drawn])
        self._room -= 1
        if job.ends(self.token):
            self.finish = "eog"
        elif look.index + 1 >= job.request.max_tokens:
            self.finish = "length"
        elif self._room <= 0:
            self.finish = "context"
        self._part = job.sink.part
        self._shown = job.sink.push(self.token, self.finish is not None)
        # Also with the last token that there was room for: the text is whole.
        if self._shown.stopped and self.finish != "eog":
            self.finish = "stop"
        if self.finish is None:
            self.base.accept(self.slot, self.token)
            if self.value is not None and self.choice.uses_value:
                self.value.accept(self.slot, self.token)
            if job.filter is not None:
                job.filter.accept(self.token)

    def step(self) -> Step:
        job = self.job
        step = make_step(
            self.verdict,
            job=job.id,
            token=self.token,
            shown=self._shown,
            part=self._part,
            logprob=self.logprob,
            finish=self.finish,
            k=job.request.config.k if job.request.trace else 0,
        )
        job.stats.add(step)
        job.stats.wall_ms = (time.perf_counter() - (job.stats.began or 0.0)) * 1e3
        return step


def make_step(
    verdict: Verdict,
    *,
    token: int,
    shown: Shown,
    logprob: float,
    finish: str | None,
    part: str = ANSWER,
    job: int = 0,
    k: int = 0,
) -> Step:
    """The Step of a verdict and the token drawn from it, in the part of the text that the gate was told. k: candidates
    to keep, 0 for none."""
    look = verdict.look
    return Step(
        job=job,
        index=look.index,
        token=token,
        text=shown.text,
        entropy=look.entropy,
        steered=verdict.steered,
        kl=verdict.kl,
        kl_truncation=verdict.kl_truncation,
        logprob=logprob,
        beta=verdict.beta,
        finish=finish,
        candidates=verdict.candidates(k) if k else None,
        kl_steering=verdict.kl_steering,
        flipped=verdict.flipped,
        values_asked=len(look.asked),
        reasoning=shown.reasoning,
        part=part,
    )
