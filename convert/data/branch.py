"""Branches: candidates of a junction continued to the end by the base, several times each, and what that earned.

A value model says what it believes a candidate is worth; the mean reward of texts that went on with it is an unbiased
sample of what it is worth. The lines are trajectories, too: the texts whose junctions they are, with their rewards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from sia_local.config import ChatSettings, setting
from sia_local.errors import ConfigError, ContextFullError
from sia_local.files import file_mark
from sia_local.records import Candidates, Completion, Prompt, Step
from sia_local.rewards.load import check_reward_name, load_reward
from sia_local.seeds import text_seed
from sia_local.workers import Executor, silent

from ..settings import Machine, decisive, settings_of
from .rollouts import Rendering, RolloutConfig, SampleConfig, Wanted, collect
from .score import reward_settings
from .trajectories import Branch, Shard, Trajectory

if TYPE_CHECKING:
    from sia_local.generation.decode import Job


@dataclass(frozen=True)
class BranchConfig(SampleConfig):
    """Texts of the base, some junctions of each, and what is tried there."""

    texts: int = setting(1, "Texts a prompt whose junctions are branched.", free="amount")
    junctions: int = setting(3, "Junctions a text, drawn from those that are unsure enough.")
    threshold: float = setting(1.0, "Entropy from which on a token is a junction, nats.")
    candidates: int = setting(6, "The likeliest candidates, which are continued.")
    samples: int = setting(2, "Continuations a candidate.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("texts", 1), ("junctions", 1), ("candidates", 2), ("samples", 1), ("slots", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.max_tokens < 2:
            raise ConfigError(f"max-tokens is {self.max_tokens}; expected 2 or more, a candidate and what follows it")
        if self.candidates > self.k:
            raise ConfigError(f"{self.candidates} candidates of the {self.k} that are sampled from; raise -k")

    @property
    def rollouts(self) -> RolloutConfig:
        """Of the texts that are branched, and of their continuations."""
        return RolloutConfig(samples=self.texts, **{**settings_of(SampleConfig, self), "seed": 0})


@dataclass
class _Text:
    """A text of the base, its steps, and the junctions that were drawn from it."""

    number: int
    one: Wanted
    read: Prompt
    steps: list[Step] = field(default_factory=list)
    junctions: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [step.token for step in self.steps]

    def candidates(self, at: int) -> Candidates:
        found = self.steps[at].candidates
        assert found is not None
        return found


def branch(
    prompts: list[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str],
    reward: str,
    config: BranchConfig,
    machine: Machine | None = None,
    shard: Shard | None = None,
    executor: Executor | None = None,
) -> int:
    """Appends a scored trajectory with its branches for `texts` texts a prompt, skipping those in `out`; returns how
    many are new.

    reward: as `sia_local.rewards.load_reward` takes it. Raises as `sample` does, and ConfigError for an unknown reward.
    """
    check_reward_name(reward)
    kept = {
        **decisive(BranchConfig, config),
        "chat_template": config.template_mark,
        "base": file_mark(base),
        **reward_settings(reward),
    }
    make = partial(Brancher, base, reward, config, machine or Machine())
    return collect(prompts, out, kept, config.rollouts, make, shard, executor)


class Brancher:
    """A worker that writes texts with a base GGUF and tries candidates at some of their junctions."""

    def __init__(self, base: str | os.PathLike[str], reward: str, config: BranchConfig, machine: Machine):
        from sia_local import SIA

        self.config, self.reward = config, load_reward(reward)
        self.policy = config.rollouts.policy(None)
        self.sia = SIA.load(
            base,
            None,
            n_ctx=config.n_ctx,
            slots=config.slots,
            n_threads=machine.threads,
            n_gpu_layers=machine.gpu_layers,
            **settings_of(ChatSettings, config),
        )
        self.rendering = Rendering(self.sia.model, config.rollouts)

    def close(self) -> None:
        self.sia.close()

    def run(
        self, items: Iterable[Wanted], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, Trajectory | ContextFullError]]:
        # As many texts at a time as there are slots: their branches then fill the slots many times over. Nothing is
        # told of their tokens: how many a text takes is known when all of them are done.
        numbered = enumerate(items)
        while some := list(islice(numbered, self.config.slots)):
            texts: list[_Text] = []
            for number, one in some:
                try:
                    texts.append(_Text(number, one, self.sia.prompt(one.prompt, self.config.raw)))
                except ContextFullError as error:
                    yield number, error
            self._write(texts)
            yield from self._tried(texts)

    def _write(self, texts: Sequence[_Text]) -> None:
        """The texts themselves, with junctions drawn."""
        sia, c = self.sia, self.config
        jobs = (
            sia.job(t.read, self.policy, id=i, max_tokens=c.max_tokens, seed=t.one.seed(c.seed), trace=True)
            for i, t in enumerate(texts)
        )
        for step in sia.run(jobs):
            texts[step.job].steps.append(step)
        for text in texts:
            # Behind the last token that a text may have, or that the context holds, nothing is left to try.
            most = min(c.max_tokens, sia.n_ctx - len(text.read.tokens))
            unsure = [
                step.index
                for step in text.steps[: most - 1]
                if step.entropy >= c.threshold and len(text.candidates(step.index).ids) > 1
            ]
            np.random.default_rng(text_seed(c.seed, f"junctions of {text.one.id}", 0)).shuffle(unsure)
            text.junctions = sorted(unsure[: c.junctions])

    def _tried(self, texts: Sequence[_Text]) -> Iterator[tuple[int, Trajectory]]:
        """The texts with their rewards and those of their branches."""
        sia, c = self.sia, self.config
        # What every continuation is of: text, position, candidate.
        keys = [
            (t, at, token)
            for t, text in enumerate(texts)
            for at in text.junctions
            for token in text.candidates(at).ids[: c.candidates].tolist()
            for _ in range(c.samples)
        ]
        written: list[list[int]] = []

        def jobs() -> Iterator[Job]:
            for number, (t, at, token) in enumerate(keys):
                text = texts[t]
                written.append([*text.tokens[:at], token])
                if sia.model.is_eog(token):
                    continue
                read = Prompt((*text.read.tokens, *written[number]))
                seed = text_seed(c.seed, f"{text.one.id} at {at} with {token}", number % c.samples)
                yield sia.job(read, self.policy, id=number, max_tokens=c.max_tokens - at - 1, seed=seed)

        for step in sia.run(jobs()):
            written[step.job].append(step.token)
        reads = [texts[t].read for t in [*range(len(texts)), *(t for t, _, _ in keys)]]
        bodies = list(map(self._body, reads, [*(text.tokens for text in texts), *written]))
        prompts = [texts[t].one.prompt for t in [*range(len(texts)), *(t for t, _, _ in keys)]]
        rewards = self.reward(prompts, bodies)
        earned: dict[tuple[int, int, int], list[float]] = {}
        for key, value in zip(keys, rewards[len(texts) :], strict=True):
            earned.setdefault(key, []).append(value)
        for t, text in enumerate(texts):
            completion = Completion()
            for step in text.steps:
                completion.add(step)
            made = self.rendering.trajectory(text.one, completion)
            branches = tuple(_branch(text.candidates(at), at, t, earned) for at in text.junctions)
            yield text.number, replace(made, reward=rewards[t], branches=branches)

    def _body(self, read: Prompt, tokens: Sequence[int]) -> str:
        """The answer that these tokens behind a prompt are, reasoning left out."""
        sink = self.sia.job(read, self.policy).sink
        return "".join(sink.push(token, i == len(tokens) - 1).text for i, token in enumerate(tokens))


def _branch(candidates: Candidates, at: int, text: int, earned: dict[tuple[int, int, int], list[float]]) -> Branch:
    tried = [(token, earned[text, at, token]) for token in candidates.ids.tolist() if (text, at, token) in earned]
    return Branch(
        at=at,
        ids=tuple(token for token, _ in tried),
        logits=tuple(round(float(z), 4) for z in candidates.logits[: len(tried)]),
        means=tuple(round(float(np.mean(rewards)), 6) for _, rewards in tried),
        stds=tuple(round(float(np.std(rewards, ddof=1)), 6) if len(rewards) > 1 else 0.0 for _, rewards in tried),
        counts=tuple(len(rewards) for _, rewards in tried),
    )
