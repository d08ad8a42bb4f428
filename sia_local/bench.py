"""Speed and memory of every way to generate, interleaved, so that a noisy machine spoils all of them alike.

An arm is one way to generate. Every repetition runs all arms once, in rotating order; ratios are taken within a
repetition. A run generates n tokens behind a prompt of `depth` tokens that both models hold already. Junctions
come from a random gate at a forced rate, with a seed that opens it exactly round(rate * n) times: random
weights then give honest costs, and every repetition does the same work. Dense arms, whose tokens all cost the
same, make a quarter of the tokens; several sequences share them, at least 20 each. The floor of an arm is the
time of its llama.cpp calls alone (see `replay`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from .api import DEFAULT_CANDIDATES, DEFAULT_HEAD_CANDIDATES, SIA
from .config import SiaConfig
from .decode import Prompt
from .engine import Engine
from .errors import ConfigError, SiaError
from .replay import Recorder
from .runtime import Context, ContextOptions, GgufMetadata, Model, default_threads
from .value import ValueFile, ValueModel, open_value, sequences_for

RIVAL = "llama-cpp-python"
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. prompts, tokens, depths: token counts as llama-bench's -p, -n and -d (0 leaves a test
    out). rates: shares of junctions. sequences: how many texts at once. k: candidates (None: 10, and 4 for a
    head). repetitions: runs of every arm after one warm-up. floors: in how many of them the floor is measured."""

    model: Path
    values: tuple[Path, ...] = ()
    prompts: tuple[int, ...] = (0,)
    tokens: tuple[int, ...] = (64,)
    depths: tuple[int, ...] = (64,)
    rates: tuple[float, ...] = (0.2,)
    sequences: tuple[int, ...] = (1,)
    k: int | None = None
    repetitions: int = 5
    dense: bool = True
    n_threads: int = 0
    n_gpu_layers: int = 0
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    floors: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("prompts", 0), ("tokens", 0), ("depths", 0), ("sequences", 1)):
            if any(n < least for n in getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected numbers of at least {least}")
        if not any((*self.prompts, *self.tokens)):
            raise ConfigError("neither prompt tokens (-p) nor generated tokens (-n) are asked for; give one of them")
        if any(not 0 <= rate <= 1 for rate in self.rates):
            raise ConfigError(f"rates are {self.rates}; expected shares from 0 to 1, such as 0.2")
        if self.repetitions < 1:
            raise ConfigError(f"repetitions is {self.repetitions}; expected at least 1")
        if self.k is not None and not 2 <= self.k <= 255:
            raise ConfigError(f"k is {self.k}; expected 2 to 255 candidates")

    @property
    def n_ctx(self) -> int:
        return max(*self.prompts, *(max(1, d) + n for d in self.depths for n in self.tokens)) + 64

    @property
    def threads(self) -> int:
        return self.n_threads or default_threads()


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
        if np.count_nonzero(np.random.default_rng(seed ^ 0x5EED).random(n) < rate) == wanted:
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

    def run(self, test: Workload, floor: bool) -> Sample:
        sample = self._run(test, self.config)
        return replace(sample, floor=self._recorder.play()) if floor and test.kind == "tg" else sample

    def _tokens(self, test: Workload) -> int:
        if test.kind == "pp":
            return 1
        shared = test.n if self.sequences == 1 else max(min(20, test.n), test.n // self.sequences)
        return max(min(8, shared), shared // 4) if self.config.gate == "dense" else shared

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
        made = sum(1 for _ in self.sia.run(jobs))
        seconds = time.perf_counter() - started
        stats = self.sia.last_stats
        if self._value_engine:
            rows = self._value_engine.decoded_tokens - rows
        else:
            rows = stats.values_asked
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
        from .rival import Rival

        self._rival = Rival(options.model, options.n_ctx, options.threads, options.n_gpu_layers)
        self._rng, self._n_vocab = np.random.default_rng(options.seed), n_vocab

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


class Bench:
    """Loads the base once, every value file once a number of sequences, and holds the arms made of them."""

    def __init__(self, options: BenchOptions, say: Callable[[str], None] = lambda _: None):
        self.options, self._say = options, say
        self.failed: list[str] = []
        self._loaded: list[SIA] = []
        self.model = Model(options.model, n_gpu_layers=options.n_gpu_layers)
        with GgufMetadata(options.model) as meta:
            self._sha256 = meta.vocab_sha256()
        self.arms: list[Arm | RivalArm] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for sia in self._loaded:
            if sia.value is not None and hasattr(sia.value, "close"):
                sia.value.close()
            sia.engine.context.close()
        for arm in self.arms:
            if isinstance(arm, RivalArm):
                arm.close()
        self._loaded, self.arms = [], []
        self.model.close()
        gc.collect()

    def _load(self, value: ValueFile | None, slots: int, k: int) -> SIA:
        options = self.options
        context_options = ContextOptions(
            n_ctx=options.n_ctx,
            n_threads=options.threads,
            type_k=options.type_k,
            type_v=options.type_v,
            flash_attention=options.flash_attention,
        )
        branches = k if value is not None and value.kind == "value-head" else 0
        context = Context(self.model, sequences_for(context_options, slots, branches))
        engine = Engine(context, slots, branches)
        opened = None
        try:
            if value is not None:
                opened = open_value(
                    value,
                    self.model,
                    engine,
                    self._sha256,
                    slots=slots,
                    options=context_options,
                    max_candidates=k,
                    n_gpu_layers=options.n_gpu_layers,
                )
        except BaseException:
            context.close()
            raise
        sia = SIA(self.model, engine, opened, options.n_ctx, slots)
        self._loaded.append(sia)
        return sia

    def build(self) -> None:
        """Makes the arms. One that cannot be loaded is noted in `failed` and does not lose the others."""
        options = self.options
        self._attempt(RIVAL, lambda: [RivalArm(options, self.model.n_vocab)])
        files = [ValueFile.read(path) for path in options.values]
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

    def _plain(self, slots: int) -> list[Arm]:
        sia, k = self._load(None, slots, 0), self.options.k or DEFAULT_CANDIDATES
        arms = [Arm(sia, UNSTEERED, SiaConfig(k=k, gate="off"), None, self.options.seed)]
        if slots == 1:
            gated = SiaConfig(k=k, gate="rate", rate=self.options.rates[0] if self.options.rates else 0.2)
            arms.append(Arm(sia, "gate only", gated, None, self.options.seed))
        return arms

    def _steered(self, file: ValueFile, slots: int) -> list[Arm]:
        options = self.options
        k = options.k or (DEFAULT_HEAD_CANDIDATES if file.kind == "value-head" else DEFAULT_CANDIDATES)
        sia = self._load(file, slots, k)
        arms = [
            Arm(sia, "sparse", SiaConfig(k=k, gate="random", rate=rate), rate, options.seed) for rate in options.rates
        ]
        if options.dense and slots == 1:
            arms.append(Arm(sia, "dense", SiaConfig(k=k, gate="dense"), 1.0, options.seed))
        return arms

    def measure(self) -> list[Row]:
        """Every test, every repetition, every arm. Rows come in the order of the arms."""
        options = self.options
        tests = [Workload("pp", n) for n in options.prompts if n]
        tests += [Workload("tg", n, d) for n in options.tokens if n for d in options.depths]
        return [row for test in tests for row in self._measure(test)]

    def _measure(self, test: Workload) -> list[Row]:
        # Reading a prompt does not depend on the rate: one arm a placement is enough.
        arms = [a for a in self.arms if test.kind == "tg" or a.label not in ("sparse", "gate only")]
        rows = [Row(test.name, a.label, a.placement, a.value_size, a.rate, a.k, a.sequences) for a in arms]
        for arm in arms:
            arm.prepare(test)
        for repetition in range(self.options.repetitions):
            self._say(f"{test.name}: repetition {repetition + 1} of {self.options.repetitions}")
            for i in range(len(arms)):
                at = (i + repetition) % len(arms)
                rows[at].samples.append(arms[at].run(test, floor=repetition < self.options.floors))
        reference = next((r for r in rows if r.arm == UNSTEERED and r.sequences == 1), None)
        if reference is not None:
            for row in rows:
                row.ratios = [a / b for a, b in zip(row.speeds, reference.speeds, strict=True)]
        return rows


def describe(sia: SIA) -> tuple[str, float | None]:
    """(placement, size of the value model's weights over the base's). A lean model counts as if it had
    embeddings in Q6_K, as in the merged layout of the same shape."""
    value = sia.value
    if not isinstance(value, ValueModel):
        return "-", None
    if value.file.kind != "value":
        return value.file.kind.removeprefix("value-"), None
    model = value.engine.context.model
    lean = value.file.layout == "lean"
    embeddings = sia.model.n_vocab * model.n_embd * 210 / 256 if lean else 0
    return ("lean" if lean else "separate"), (model.size_bytes + embeddings) / sia.model.size_bytes
