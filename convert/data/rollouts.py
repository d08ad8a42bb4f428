"""Trajectories sampled from a base GGUF through `sia_local`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sia_local.config import BETA_UNITS, GATES, SamplingConfig, SiaConfig
from sia_local.errors import ConfigError, ContextFullError, DataError

from ..aside import file_mark
from ..progress import Progress
from ..settings import Machine, setting, settings_of
from .outputs import Appender
from .trajectories import Shard, Trajectory


@dataclass(frozen=True)
class RolloutConfig:
    """How texts are sampled: from the base, restricted to its top k as steering is."""

    samples: int = setting(4, "Responses a prompt.")
    max_tokens: int = setting(128, "Longest response, in tokens.")
    k: int = setting(10, "Sample from the k likeliest tokens, as steering will.")
    temperature: float = setting(1.0, "Of sampling.")
    slots: int = setting(16, "Sequences decoded at once.")
    n_ctx: int = setting(512, "Tokens a sequence may hold, prompt included.", option="--ctx")
    raw: bool = setting(False, "Continue the prompt as plain text, without the chat template.")
    seed: int = setting(0, "The same seed draws the same numbers for every text.")

    def __post_init__(self) -> None:
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


def sample(
    prompts: list[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str],
    config: RolloutConfig,
    machine: Machine | None = None,
    shard: Shard | None = None,
    value: str | os.PathLike[str] | None = None,
    steering: Steering | None = None,
) -> int:
    """Appends `samples` trajectories a prompt to `out`, skipping those already there; returns how many are new.

    With `value` the texts are those of the base as that GGUF steers it. Sample j of prompt p has the id `p-j` and
    random numbers of its own, whatever run or shard it is drawn in. The text is the same up to rounding: logits
    depend in their last bits on which sequences share a batch, and a token that falls the other way changes all
    after it. Prompts that do not fit n_ctx are left out, and counted on stderr.
    Raises DataError for an empty prompt set, and for an output begun with other prompts or settings or written by
    another process; ContextFullError when no prompt fits.
    """
    if not prompts:
        raise DataError("the prompt file is empty: expected one prompt a line, or JSONL with a field `prompt`")
    shard, steering = shard or Shard(), (steering or Steering()) if value is not None else None
    decisive = {**settings_of(RolloutConfig, config), "base": file_mark(base)}
    for free in ("samples", "slots"):
        del decisive[free]
    if value is not None and steering is not None:
        decisive |= {**asdict(steering), "value": file_mark(value)}
    with Appender(out, decisive) as append:
        wanted = list(_missing(prompts, append, config.samples, shard))
        if not wanted:
            return 0
        return _sample(prompts, wanted, append, base, config, machine or Machine(), value, steering)


def _missing(prompts: list[str], append: Appender, samples: int, shard: Shard) -> Iterator[tuple[int, int]]:
    for p, prompt in enumerate(prompts):
        if shard.mine(p):
            for j in range(samples):
                if not append.check_same(Trajectory(f"{p}-{j}", p, prompt, "", [], ""), response=False):
                    yield p, j


def _sample(
    prompts: list[str],
    wanted: list[tuple[int, int]],
    append: Appender,
    base: str | os.PathLike[str],
    config: RolloutConfig,
    machine: Machine,
    value: str | os.PathLike[str] | None,
    steering: Steering | None,
) -> int:
    from sia_local import SIA
    from sia_local.llama.chat import render_chat

    policy = config.policy(steering)
    progress = Progress("rollouts", len(wanted) + len(append.done), len(append.done))
    with SIA.load(
        base,
        value,
        n_ctx=config.n_ctx,
        slots=config.slots,
        n_threads=machine.threads,
        n_gpu_layers=machine.gpu_layers,
        max_candidates=config.k if value is not None else None,
    ) as sia:
        template = sia.model.chat_template
        raw = config.raw or template is None
        bos = sia.model.token_text(sia.model.bos) if sia.model.bos >= 0 else ""
        eos = sia.model.token_text(sia.model.eos) if sia.model.eos >= 0 else ""

        @functools.lru_cache(maxsize=4 * config.slots)
        def rendered(prompt: str) -> str:
            if raw or template is None:
                return prompt
            return render_chat(template, [{"role": "user", "content": prompt}], bos, eos)

        too_long: list[ContextFullError] = []

        def jobs() -> Iterator[Any]:
            read: dict[int, Any] = {}  # rendering a template takes as long as sampling some tokens
            for number, (p, j) in enumerate(wanted):
                seed = (config.seed * 1_000_003 + p * 8191 + j) % (1 << 31)
                try:
                    if p not in read:
                        read = {p: sia.prompt(prompts[p], config.raw)}
                except ContextFullError as error:
                    too_long.append(error)
                    progress.skip()
                    continue
                yield sia.job(read[p], policy, max_tokens=config.max_tokens, seed=seed, id=number)

        texts: dict[int, list[str]] = {}
        tokens: dict[int, list[int]] = {}
        for step in sia.run(jobs()):
            progress.work()
            texts.setdefault(step.job, []).append(step.text)
            ended = step.finish == "eog"
            if not ended:
                tokens.setdefault(step.job, []).append(step.token)
            if step.finish is None:
                continue
            p, j = wanted[step.job]
            text = Trajectory(
                id=f"{p}-{j}",
                prompt_id=p,
                prompt=prompts[p],
                rendered=rendered(prompts[p]),
                tokens=tokens.pop(step.job, []),
                response="".join(texts.pop(step.job)),
                finish="stop" if ended else "length",
                stop=step.token if ended else None,
                raw=raw,
            )
            append(text.to_json())
            progress.update(work=len(text.tokens) + ended)
    if too_long:
        if len(too_long) == len(wanted) and not append.done:
            raise too_long[0]
        print(f"left out {len(too_long)} trajectories: their prompts do not fit {config.n_ctx} tokens", file=sys.stderr)
    return len(wanted) - len(too_long)


def load_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a file as `sia_local` reads them."""
    from sia_local.prompts import read_prompts

    if not Path(path).exists():
        raise DataError(f"no file at {path}: expected prompts as text, JSONL, JSON or CSV")
    return read_prompts(path)
