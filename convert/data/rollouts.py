"""Trajectories sampled from a base GGUF through `sia_local`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from sia_local.config import BETA_UNITS, GATES, ChatSettings, SamplingConfig, SiaConfig, setting
from sia_local.errors import ConfigError, ContextFullError, DataError
from sia_local.files import file_mark
from sia_local.progress import Progress
from sia_local.tables import exists
from sia_local.workers import Executor, Here, Worker, silent

from ..settings import Machine, decisive, settings_of
from .outputs import Appender
from .trajectories import Shard, Trajectory

if TYPE_CHECKING:
    from sia_local.records import Completion


@dataclass(frozen=True)
class SampleConfig(ChatSettings):
    """What every text that a base writes for training shares: it is restricted to the top k as steering is."""

    max_tokens: int = setting(128, "Longest response, in tokens.")
    k: int = setting(10, "Sample from the k likeliest tokens, as steering will.")
    slots: int = setting(16, "Sequences decoded at once.", free="pace")
    n_ctx: int = setting(512, "Tokens a sequence may hold, prompt included.", option="--ctx")
    raw: bool = setting(False, "Continue the prompt as plain text, without the chat template.")
    seed: int = setting(0, "The same seed draws the same numbers for every text.")


@dataclass(frozen=True)
class RolloutConfig(SampleConfig):
    """How texts are sampled from the base."""

    samples: int = setting(4, "Responses a prompt.", free="amount")
    temperature: float = setting(1.0, "Of sampling.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.samples, self.max_tokens, self.slots) < 1:
            raise ConfigError("samples, max-tokens and slots must be at least 1")
        self.policy(None)

    def policy(self, steering: Steering | None) -> SiaConfig:
        """What is sampled: the base, or the base as a value model steers it."""
        sampling = SamplingConfig(temperature=self.temperature)
        return SiaConfig(k=self.k, sampling=sampling, **(asdict(steering) if steering else {"gate": "off"}))


@dataclass(frozen=True)
class Steering:
    """How a value model steers what is sampled."""

    gate: str = setting("entropy", f"With --value: when to steer, {', '.join(GATES)}.", metavar="NAME")
    threshold: float = setting(1.0, "With --value: entropy threshold in nats.")
    rate: float = setting(0.2, "With --value: share of steered tokens for the gates rate and random.")
    beta: float = setting(1.0, "With --value: strength.")
    beta_unit: str = setting("raw", "With --value: unit of beta.", choices=BETA_UNITS)

    def __post_init__(self) -> None:
        SiaConfig(**{name: getattr(self, name) for name in ("gate", "threshold", "rate", "beta", "beta_unit")})


@dataclass(frozen=True)
class Wanted:
    """Sample `sample` of a prompt."""

    prompt_id: int
    sample: int
    prompt: str

    @property
    def id(self) -> str:
        return f"{self.prompt_id}-{self.sample}"

    def seed(self, seed: int) -> int:
        """Of its random numbers, whatever run, shard or machine it is drawn in."""
        return (seed * 1_000_003 + self.prompt_id * 8191 + self.sample) % (1 << 31)


def sample(
    prompts: list[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str],
    config: RolloutConfig,
    machine: Machine | None = None,
    shard: Shard | None = None,
    value: str | os.PathLike[str] | None = None,
    steering: Steering | None = None,
    executor: Executor | None = None,
) -> int:
    """Appends `samples` trajectories a prompt to `out`, skipping those already there; returns how many are new.

    With `value` the texts are those of the base as that GGUF steers it. Sample j of prompt p has the id `p-j` and
    random numbers of its own, whatever run or shard it is drawn in. The text is the same up to rounding: logits
    depend in their last bits on which sequences share a batch, and a token that falls the other way changes all
    after it. Prompts that do not fit n_ctx are left out, and counted on stderr.
    Raises DataError for an empty prompt set, and for an output begun with other prompts or settings or written by
    another process; ContextFullError when no prompt fits.
    """
    steering = (steering or Steering()) if value is not None else None
    kept = settings(config, base)
    if value is not None and steering is not None:
        kept |= {**asdict(steering), "value": file_mark(value)}
    make = partial(Sampler, base, config, machine or Machine(), value, steering)
    return collect(prompts, out, kept, config, make, shard, executor)


def settings(config: RolloutConfig, base: str | os.PathLike[str]) -> dict[str, Any]:
    """What the texts depend on: of the base alone, where nothing steers it and no server samples."""
    kept = decisive(RolloutConfig, config)
    return {**kept, "chat_template": config.template_mark, "base": file_mark(base), "value": None, "served": None}


def collect(
    prompts: list[str],
    out: str | os.PathLike[str],
    kept: dict[str, Any],
    config: RolloutConfig,
    make: Callable[[], Worker[Wanted, Trajectory | ContextFullError]],
    shard: Shard | None = None,
    executor: Executor | None = None,
    together: int | None = None,
) -> int:
    """Appends what workers write; see sample(). kept: settings that an output that is there must share. together: texts
    that a worker has in hand at once, where they are not its slots."""
    if not prompts:
        raise DataError("the prompt file is empty: expected one prompt a line, or JSONL with a field `prompt`")
    too_long: list[ContextFullError] = []
    new, shard = 0, shard or Shard()
    with Appender(out, kept) as append:
        wanted = list(_missing(prompts, append, config.samples, shard))
        if not wanted:
            return 0
        with (executor or Here()).open(make) as pool:
            in_hand = pool.size * (together or config.slots)
            progress = Progress("rollouts", len(wanted) + len(append.done), len(append.done), in_hand)
            for _, text in pool.map(wanted, progress.part):
                if isinstance(text, ContextFullError):
                    too_long.append(text)
                    progress.skip()
                    continue
                append(text.to_json())
                new += 1
                progress.update(parts=len(text.tokens) + (text.stop is not None))
        if len(too_long) == len(wanted) and not append.done and shard.count == 1:
            raise too_long[0]
    if too_long:
        print(f"left out {len(too_long)} trajectories: their prompts do not fit {config.n_ctx} tokens", file=sys.stderr)
    return new


def _missing(prompts: list[str], append: Appender, samples: int, shard: Shard) -> Iterator[Wanted]:
    for p, prompt in enumerate(prompts):
        if shard.mine(p):
            for one in (Wanted(p, j, prompt) for j in range(samples)):
                if not append.check_same(Trajectory(one.id, p, prompt, "", [], ""), response=False):
                    yield one


class Sampler:
    """A worker that writes texts with a base GGUF, as a value GGUF steers it where there is one."""

    def __init__(
        self,
        base: str | os.PathLike[str],
        config: RolloutConfig,
        machine: Machine,
        value: str | os.PathLike[str] | None = None,
        steering: Steering | None = None,
    ):
        from sia_local import SIA

        self.config, self.policy = config, config.policy(steering)
        self.sia = SIA.load(
            base,
            value,
            n_ctx=config.n_ctx,
            slots=config.slots,
            n_threads=machine.threads,
            n_gpu_layers=machine.gpu_layers,
            max_candidates=config.k if value is not None else None,
            **settings_of(ChatSettings, config),
        )
        self.rendering = Rendering(self.sia.model, config)

    def close(self) -> None:
        self.sia.close()

    def run(
        self, items: Iterable[Wanted], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, Trajectory | ContextFullError]]:
        from sia_local.records import Completion

        sia, c = self.sia, self.config
        open_items: dict[int, Wanted] = {}
        too_long: list[tuple[int, ContextFullError]] = []

        def jobs() -> Iterator[Any]:
            read: dict[str, Any] = {}  # rendering a template takes as long as sampling some tokens
            for number, one in enumerate(items):
                try:
                    if one.prompt not in read:
                        read = {one.prompt: sia.prompt(one.prompt, c.raw)}
                except ContextFullError as error:
                    too_long.append((number, error))
                    continue
                open_items[number] = one
                job = sia.job(read[one.prompt], self.policy, max_tokens=c.max_tokens, seed=one.seed(c.seed), id=number)
                job.left_out = partial(leave_out, number)
                yield job

        def leave_out(number: int, error: ContextFullError) -> None:
            del open_items[number]
            too_long.append((number, error))

        texts: dict[int, Completion] = {}
        for step in sia.run(jobs()):
            tick()
            text = texts.setdefault(step.job, Completion(job=step.job))
            text.add(step)
            if step.finish is not None:
                del texts[step.job]
                yield step.job, self.rendering.trajectory(open_items.pop(step.job), text)
        yield from too_long


class Rendering:
    """What the base reads for a prompt, and the trajectory that begins with it. Only the vocabulary is needed."""

    def __init__(self, model: Any, config: RolloutConfig):
        from sia_local.llama.chat import render_chat

        template = model.chat_template
        self.raw = config.raw or template is None
        bos = model.token_text(model.bos) if model.bos >= 0 else ""
        eos = model.token_text(model.eos) if model.eos >= 0 else ""

        @lru_cache(maxsize=4 * config.slots)
        def rendered(prompt: str) -> str:
            messages = [{"role": "user", "content": prompt}]
            return prompt if self.raw else render_chat(template, messages, bos, eos, config.template_args)

        self.rendered, self.told = rendered, None if self.raw else config.template_args or None

    def trajectory(self, one: Wanted, text: Completion) -> Trajectory:
        return Trajectory(
            id=one.id,
            prompt_id=one.prompt_id,
            prompt=one.prompt,
            rendered=self.rendered(one.prompt),
            tokens=text.tokens,
            response=text.text,
            finish="stop" if text.finish == "eog" else "length",
            stop=text.end,
            raw=self.raw,
            told=self.told,
        )


def load_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a file as `sia_local` reads them."""
    from sia_local.prompts import read_prompts

    if not exists(path):
        raise DataError(f"no file at {path}: expected prompts as text, JSONL, JSON, CSV or Parquet")
    return read_prompts(path)
