"""The arms of `bench`: one way to generate each, and what a run of it is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError
from ..generation.sia import SIA
from ..records import Prompt
from ..steering.choice import GATE_SEED
from ..values.hidden import HiddenValues
from ..values.model import ValueModel
from .replay import Recorder

if TYPE_CHECKING:
    from .settings import BenchOptions

RIVAL = "llama-cpp-python"
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Workload:
    """`tg`: n tokens behind `depth` tokens. `pp`: the first token after n tokens nobody has read."""

    kind: str
    n: int
    depth: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}{self.n}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Sample:
    """One run. floor: seconds of its llama.cpp calls alone; value_rows: rows decoded for values."""

    seconds: float
    tokens: int
    junctions: int = 0
    value_ms: float = 0.0
    value_rows: int = 0
    floor: float | None = None


@dataclass
class Row:
    """What is reported of one arm in one test; `samples` are its repetitions, `ratios` its speed over that of
    the unsteered single sequence in the same repetition. value_size: weights of the value model over the base's,
    both with embeddings."""

    test: str
    arm: str
    placement: str
    value_size: float | None
    rate: float | None
    k: int | None
    sequences: int
    samples: list[Sample] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        return [s.tokens / s.seconds for s in self.samples]

    def summary(self) -> dict[str, str | float | int | None]:
        """One flat record: tokens/s with standard deviation, ratios, ms a junction, rows of value decodes."""
        tokens = sum(s.tokens for s in self.samples)
        junctions = sum(s.junctions for s in self.samples)
        floors = [s.floor / s.seconds for s in self.samples if s.floor is not None]
        return {
            "test": self.test,
            "arm": self.arm,
            "placement": self.placement,
            "value_size": self.value_size,
            "rate": self.rate,
            "k": self.k,
            "sequences": self.sequences,
            "tokens_per_second": fmean(self.speeds),
            "tokens_per_second_sd": _sd(self.speeds),
            "ms_per_token": 1e3 * sum(s.seconds for s in self.samples) / tokens,
            "ratio": fmean(self.ratios) if self.ratios else None,
            "ratio_sd": _sd(self.ratios) if self.ratios else None,
            "floor_ratio": fmean(floors) if floors else None,
            "junction_rate": junctions / tokens,
            "ms_per_junction": sum(s.value_ms for s in self.samples) / junctions if junctions else None,
            "value_rows_per_token": sum(s.value_rows for s in self.samples) / tokens,
        }


def _sd(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def seed_for_rate(rate: float, n: int, start: int = 0) -> int:
    """The first seed from `start` whose random gate opens exactly round(rate * n) times in n tokens."""
    wanted = round(rate * n)
    for seed in range(start, start + 100_000):
        if np.count_nonzero(np.random.default_rng(seed ^ GATE_SEED).random(n) < rate) == wanted:
            return seed
    raise ConfigError(f"no seed opens the gate {wanted} times in {n} tokens; ask for more tokens (-n)")


class Arm:
    """One way to generate with this program; shares the loaded `SIA` with arms that differ in the gate only."""

    def __init__(self, sia: SIA, label: str, config: SiaConfig, rate: float | None, seed: int):
        self.sia, self.label = sia, label
        self.placement, self.value_size = describe(sia)
        self.config, self.rate, self._seed = config, rate, seed
        self.sequences = sia.slots
        engine = getattr(sia.value, "engine", sia.engine)
        self._value_engine = engine if engine is not sia.engine else None
        contexts = [sia.engine.context] + ([engine.context] if self._value_engine else [])
        self._recorder = Recorder(contexts)
        self._rng = np.random.default_rng(seed)
        self._depth_prompts: dict[int, tuple[int, ...]] = {}

    @property
    def k(self) -> int | None:
        return self.config.k if self.sia.value is not None else None

    def prepare(self, test: Workload) -> None:
        """Warm-up: both models read the prompt, and one run is recorded for the floor."""
        if test.kind == "tg":
            self._run(test, replace(self.config, gate="dense"), tokens=2)
            with self._recorder.recording():
                self._run(test, self.config)
        else:
            self._run(test, self.config)

    def save_trace(self, test: Workload, folder: Path) -> None:
        """Writes the llama.cpp calls of a run, and of reading the prompt before it, to a file named after the arm."""
        for engine in filter(None, (self.sia.engine, self._value_engine)):
            for slot in range(self.sequences):
                engine.release(slot)
        recorder = Recorder(self._recorder.contexts)
        with recorder.recording():
            self._run(test, replace(self.config, gate="dense"), tokens=2)
            start = len(recorder.ops)
            self._run(test, self.config)
        parts = [self.label, self.placement.strip("-"), f"{self.value_size:.2f}" if self.value_size else ""]
        parts += [f"rate{self.rate:g}", f"k{self.k}"] if self.rate is not None else []
        parts += [f"{self.sequences}x", test.name]
        name = "-".join(part.replace(" ", "") for part in parts if part)
        recorder.save(folder / f"{name}.trace", start)

    def run(self, test: Workload, floor: bool) -> Sample:
        sample = self._run(test, self.config)
        return replace(sample, floor=self._recorder.play()) if floor and test.kind == "tg" else sample

    def _tokens(self, test: Workload) -> int:
        if test.kind == "pp":
            return 1
        shared = test.n if self.sequences == 1 else max(min(20, test.n), test.n // self.sequences)
        costly = self.config.gate == "dense" and not isinstance(self.sia.value, HiddenValues)
        return max(min(8, shared), shared // 4) if costly else shared

    def _run(self, test: Workload, config: SiaConfig, tokens: int | None = None) -> Sample:
        n = tokens or self._tokens(test)
        jobs = []
        for slot in range(self.sequences):
            prompt = Prompt(self._prompt(test))
            seed = seed_for_rate(config.rate, n, self._seed + 1000 * slot) if config.gate == "random" else slot
            job = self.sia.job(prompt, config, max_tokens=n, seed=seed)
            job.ends = _never
            jobs.append(job)
        rows = self._value_engine.decoded_tokens if self._value_engine else 0
        started = time.perf_counter()
        run = self.sia.run(jobs)
        made = sum(1 for _ in run)
        seconds = time.perf_counter() - started
        stats = run.stats
        if self._value_engine:
            rows = self._value_engine.decoded_tokens - rows
        elif not isinstance(self.sia.value, HiddenValues):
            # In the base's own decode, where the winner's row is that of the next token.
            rows = stats.values_asked - stats.junctions
        read = test.n * self.sequences if test.kind == "pp" else made
        return Sample(seconds, read, stats.junctions, stats.value_ms, rows)

    def _prompt(self, test: Workload) -> tuple[int, ...]:
        if test.kind == "pp":
            return random_tokens(self._rng, test.n, self.sia.model.n_vocab)
        if test.depth not in self._depth_prompts:
            rng = np.random.default_rng(test.depth)
            self._depth_prompts[test.depth] = random_tokens(rng, max(1, test.depth), self.sia.model.n_vocab)
        return self._depth_prompts[test.depth]


class RivalArm:
    """llama-cpp-python's own `Llama.generate` on the same file."""

    label, placement, value_size, rate, k, sequences = f"{RIVAL} generate", "-", None, None, None, 1

    def __init__(self, options: BenchOptions, n_vocab: int):
        from .rival import Rival, llama_options

        self._rival = Rival(options.model, llama_options(options))
        self._rng, self._n_vocab = np.random.default_rng(0), n_vocab

    def prepare(self, test: Workload) -> None:
        self.run(test)

    def run(self, test: Workload, floor: bool = False) -> Sample:
        if test.kind == "pp":
            return Sample(self._rival.generate(random_tokens(self._rng, test.n, self._n_vocab), 1), test.n)
        prompt = random_tokens(np.random.default_rng(test.depth), max(1, test.depth), self._n_vocab)
        return Sample(self._rival.generate(prompt, test.n), test.n)

    def close(self) -> None:
        self._rival.close()


def _never(_: int) -> bool:
    return False


def random_tokens(rng: np.random.Generator, n: int, n_vocab: int) -> tuple[int, ...]:
    """n ordinary token ids: the upper end of a vocabulary, where control tokens live, is left out."""
    return tuple(int(t) for t in rng.integers(0, max(2, n_vocab * 9 // 10), n))


def describe(sia: SIA) -> tuple[str, float | None]:
    """(placement, size of the value model's weights over the base's). A lean model counts as if it had
    embeddings in Q6_K, as in the merged layout of the same shape."""
    value = sia.value
    if isinstance(value, HiddenValues):
        return "q-head", None
    if not isinstance(value, ValueModel):
        return "-", None
    if value.file.kind != "value":
        return value.file.kind.removeprefix("value-"), None
    model = value.engine.context.model
    lean = value.file.layout == "lean"
    embeddings = sia.model.n_vocab * model.n_embd * 210 / 256 if lean else 0
    return ("lean" if lean else "separate"), (model.size_bytes + embeddings) / sia.model.size_bytes
