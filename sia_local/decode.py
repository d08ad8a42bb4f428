"""The loop: one base decode for all live sequences, one value decode for all junctions, one Step a token.

It knows a base that gives logits, a source that gives values, and a sink that turns tokens into text; no
llama.cpp and no tokenizer. Everything numeric is in `entropy`, `steering` and `gates`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .config import SiaConfig
from .entropy import entropy, log_partition, top_candidates, varentropy
from .errors import NumericError
from .gates import Moment, make_gate
from .steering import beta_for_kl, draw, is_sane, kl, shape_values, softmax, tilt, truncation_kl

Floats = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]


class Base(Protocol):
    def begin(self, slot: int, tokens: Sequence[int]) -> int: ...
    def logits(self, slots: Sequence[int]) -> Sequence[Floats]: ...
    def accept(self, slot: int, token: int) -> None: ...


class Values(Protocol):
    """A source of V(s, y). `spread` is its standard deviation among a junction's candidates, reward units."""

    spread: float | None
    max_candidates: int

    def begin(self, slot: int, prompt: Prompt) -> None: ...
    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int]) -> Sequence[Floats]: ...
    def accept(self, slot: int, token: int) -> None: ...


class Filter(Protocol):
    def candidates(self, logits: Any, k: int) -> tuple[IntArray, Float64]: ...
    def narrow(self, ids: IntArray, logits: Float64) -> tuple[IntArray, Float64]: ...
    def accept(self, token: int) -> None: ...


class Sink(Protocol):
    def push(self, token: int, last: bool) -> tuple[str, bool]:
        """Text that becomes visible with this token, and whether a stop string ends the sequence."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt as the base reads it (`tokens`) and, for sources with their own rendering, the chat behind it.

    `prefill` are generated tokens that both models hold as part of the answer already.
    """

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
class Candidates:
    """The candidates of a step, best base logit first. values are NaN where no value was asked for.

    ids int32[k]; logits, values, p_base, p_steered float64[k]; p_base is over the whole vocabulary.
    """

    ids: IntArray
    logits: Float64
    values: Float64
    p_base: Float64
    p_steered: Float64


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token.

    entropy in nats; kl: KL of this step's distribution from the base's, nats, of which kl_truncation is due to
    cutting to the candidates; logprob: log-probability of the token under the base; beta: strength used (0 when
    not steered); finish: None, `eog`, `stop`, `length` or `context`.
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
    base_ms: float = 0.0
    value_ms: float = 0.0
    wall_ms: float = 0.0
    prefill_ms: float = 0.0

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
            sequence.look(row)
        # 3. Sure tokens are drawn without V, so that a shared decode can take them along.
        for sequence in live:
            if not sequence.steer:
                sequence.choose(None)
        # 4. One decode scores the candidates of every junction.
        if junctions := [s for s in live if s.steer]:
            assert value is not None
            others = [s.slot for s in live if not s.steer and s.finish is None]
            t0 = clock()
            scored = value.score([(s.slot, s.asked) for s in junctions], others)
            stats.value_ms += (clock() - t0) * 1e3
            for sequence, values in zip(junctions, scored, strict=True):
                sequence.choose(values)
        # 5. One Step a sequence.
        for sequence in live:
            step = sequence.step()
            stats.tokens += 1
            stats.junctions += step.steered
            stats.flips += sequence.flipped
            stats.values_asked += len(sequence.asked) if step.steered else 0
            stats.kl += step.kl
            stats.kl_truncation += step.kl_truncation
            stats.wall_ms = (clock() - started) * 1e3
            yield step
        free += [s.slot for s in live if s.finish]
        live = [s for s in live if not s.finish]


@dataclass
class _Live:
    """A job in its slot: gate, random stream and budget, and the step being made."""

    job: Job
    slot: int
    base: Base
    value: Values | None
    n_ctx: int
    index: int = 0
    finish: str | None = None
    steer: bool = False
    flipped: bool = False
    asked: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    _spent: float = 0.0
    _previous: float | None = None

    def __post_init__(self) -> None:
        config = self.job.config
        # Two streams: a gate that draws must not shift the sampling, or beta = 0 would differ from off.
        self._rng = np.random.default_rng(self.job.seed)
        self._gate = make_gate(config, seed=self.job.seed ^ 0x5EED)
        self._uses_value = self.value is not None and config.gate != "off"
        self._wants_varentropy = "varentropy" in config.gate
        self.base.begin(self.slot, self.job.prompt.tokens)
        if self._uses_value:
            assert self.value is not None
            self.value.begin(self.slot, self.job.prompt)
        self._room = self.n_ctx - len(self.job.prompt.tokens)

    def look(self, row: Floats) -> None:
        """Candidates C (ids, logits), entropy H, and whether the gate opens."""
        config, job = self.job.config, self.job
        self._row, self._log_z = row, log_partition(row)
        if not math.isfinite(self._log_z):
            raise NumericError(
                f"the base model's logits at token {self.index} contain NaN or infinity; the model file is "
                "damaged or its quantization broke it, try another quantization"
            )
        if job.filter is None:
            self.ids = top_candidates(row, config.k)
            self.logits = row[self.ids].astype(np.float64)
        else:
            self.ids, self.logits = job.filter.candidates(row, config.k)
        self.entropy = entropy(self.logits) if config.entropy == "topk" else entropy(row)
        if job.filter is not None:
            self.ids, self.logits = job.filter.narrow(self.ids, self.logits)
        spread = varentropy(self.logits) if self._wants_varentropy else 0.0
        moment = Moment(self.index, self.entropy, self._previous, spread)
        # Every gate sees every step; with one candidate there is nothing to tilt.
        self.steer = self._gate.opens(moment) and self._uses_value and len(self.ids) > 1
        self._previous = self.entropy
        self.asked = self.ids[: self._worth_scoring()] if self.steer else self.ids[:0]
        if config.tail:
            order, rest = self.ids, np.ones(len(row), bool)
            rest[order] = False
            self.ids = np.concatenate([order, np.flatnonzero(rest).astype(np.int32)])
            self.logits = row[self.ids].astype(np.float64)

    def _worth_scoring(self) -> int:
        """How many candidates are scored: the likely ones, filled up to the row group, within the source's limit."""
        config, n = self.job.config, len(self.ids)
        assert self.value is not None
        if config.min_share > 0:
            n = int(np.count_nonzero(self.logits >= self.logits[0] + math.log(config.min_share)))
        n = max(2, n)
        n = math.ceil(n / config.row_group) * config.row_group
        return min(n, len(self.ids), self.value.max_candidates)

    def choose(self, values: Floats | None) -> None:
        """Draws the token, tilted when values are given, and hands it to both models."""
        config, job = self.job.config, self.job
        temperature = config.sampling.temperature
        base_logprobs = self._row[self.ids].astype(np.float64) - self._log_z
        self.beta, self._values = 0.0, np.full(len(self.ids), np.nan)
        if values is None:
            probabilities = softmax(self.logits, temperature)
        else:
            if not is_sane(values):
                raise NumericError(
                    f"the value model returned NaN or infinity at token {self.index}; export or quantize it again"
                )
            asked = len(values)
            self._values[:asked] = values
            shaped = shape_values(values, config.center, config.clip)
            # Candidates nobody scored are treated as average ones; a kept tail stays at its base logits.
            effective = np.full(len(self.ids), 0.0 if config.tail else shaped.mean())
            effective[:asked] = shaped
            self.beta = self._affordable(self._strength(), effective)
            probabilities = tilt(self.logits, effective, self.beta, temperature)
        self._truncation = truncation_kl(base_logprobs)
        self._kl = kl(probabilities, base_logprobs)
        self._spent += max(0.0, self._kl - self._truncation) if values is not None else 0.0
        self.flipped = values is not None and int(np.argmax(probabilities)) != int(np.argmax(self.logits))
        chosen = draw(probabilities, float(self._rng.random()))
        self.token, self.logprob = int(self.ids[chosen]), float(base_logprobs[chosen])
        self._p_base, self._p_steered = base_logprobs, probabilities
        self._room -= 1
        if job.ends(self.token):
            self.finish = "eog"
        elif self.index + 1 >= job.max_tokens:
            self.finish = "length"
        elif self._room <= 0:
            self.finish = "context"
        self._text, stopped = job.sink.push(self.token, self.finish is not None)
        if stopped and self.finish is None:
            self.finish = "stop"
        if self.finish is None:
            self.base.accept(self.slot, self.token)
            if self._uses_value:
                assert self.value is not None
                self.value.accept(self.slot, self.token)
            if job.filter is not None:
                job.filter.accept(self.token)

    def _strength(self) -> float:
        config = self.job.config
        if config.beta_unit == "raw":
            return config.beta
        spread = self.value.spread if self.value is not None else None
        return config.beta / spread if spread else config.beta

    def _affordable(self, beta: float, values: Float64) -> float:
        """beta, lowered so that what steering spent so far plus this step stays within the KL budgets."""
        config = self.job.config
        budgets = []
        if config.kl_per_token is not None:
            budgets.append(config.kl_per_token * (self.index + 1) - self._spent)
        if config.kl_total is not None:
            budgets.append(config.kl_total - self._spent)
        if not budgets:
            return beta
        return beta_for_kl(self.logits, values, beta, config.sampling.temperature, max(0.0, min(budgets)))

    def step(self) -> Step:
        candidates = None
        if self.job.trace:
            n = min(len(self.ids), self.job.config.k)
            candidates = Candidates(
                self.ids[:n].copy(),
                self.logits[:n].copy(),
                self._values[:n].copy(),
                np.exp(self._p_base[:n]),
                self._p_steered[:n].copy(),
            )
        step = Step(
            job=self.job.id,
            index=self.index,
            token=self.token,
            text=self._text,
            entropy=self.entropy,
            steered=self.steer,
            kl=self._kl,
            kl_truncation=self._truncation,
            logprob=self.logprob,
            beta=self.beta,
            finish=self.finish,
            candidates=candidates,
        )
        self.index += 1
        return step
