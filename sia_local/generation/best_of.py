"""Best-of-N over steered texts: N sequences side by side in one engine, and the best of them kept.

    with SIA.load("base.gguf", value="value.gguf", slots=8) as sia:
        result = best_of(sia, "Once upon a time", n=8, config=SiaConfig(beta=2.0), seed=7)
        print(result.winner.text, result.scores, result.kl, result.kl_bound)

The prompt is encoded once: the sequences share its part of the KV cache, in the base and in the value model.
Choosing costs KL, too: at most log N − (N − 1)/N nats (Beirami et al., arXiv 2401.01879) on top of what sampling
the texts cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError
from ..evaluation.metrics import bon_kl_bound
from ..llama.keys import TRAIN_LOSS
from ..llama.library import MAX_SEQUENCES
from ..llama.model import Model
from ..rewards.load import Reward
from ..values.sources import MixedValues, Source
from .decode import Prompt, Stats, Step
from .sia import SIA, Completion, Messages

CRITERIA = ("value", "reward", "likelihood")


@dataclass(frozen=True)
class Contender:
    """One of the N texts. `seed` alone makes it again with SIA.generate; score: what it was compared by."""

    completion: Completion
    steps: tuple[Step, ...]
    seed: int
    score: float

    @property
    def text(self) -> str:
        return self.completion.text


@dataclass(frozen=True)
class BestOfResult:
    """All contenders in the order of their seeds. by: one of CRITERIA."""

    contenders: tuple[Contender, ...]
    by: str

    @property
    def n(self) -> int:
        return len(self.contenders)

    @property
    def scores(self) -> list[float]:
        return [c.score for c in self.contenders]

    @property
    def best(self) -> int:
        """Index of the winner; the first of equals."""
        return int(np.argmax(self.scores))

    @property
    def winner(self) -> Contender:
        return self.contenders[self.best]

    @property
    def kl(self) -> float:
        """KL of sampling one text from the base, nats: the mean over the contenders, truncation included."""
        return float(np.mean([c.completion.kl for c in self.contenders]))

    @property
    def kl_steering(self) -> float:
        """The part of `kl` that steering caused, nats a text: KL from the same steps without values."""
        return float(np.mean([sum(step.kl_steering for step in c.steps) for c in self.contenders]))

    @property
    def kl_bound(self) -> float:
        """Most that keeping the best of N can add to either, nats."""
        return bon_kl_bound(self.n)


def best_of(
    sia: SIA,
    prompt: str | Messages | Prompt,
    config: SiaConfig | None = None,
    *,
    n: int,
    by: str | None = None,
    reward: Reward | None = None,
    max_tokens: int = 256,
    seed: int = 0,
    stop: Sequence[str] = (),
    raw: bool = False,
    trace: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> BestOfResult:
    """Generates n texts and scores them.

    by: `value` (the value model's estimate for the whole text; default where one is loaded), `reward` (needs
    `reward`, see rewards.load_reward), `likelihood` (mean log-probability a token under the unsteered base, nats;
    default otherwise). `sia` should be loaded with slots=n; with fewer, texts wait for a slot. The first text is
    that of `seed` itself. Once `interrupted` says so, what is there is compared. `sia.last_stats` sums over all.
    """
    by = check_criterion(sia.value, n, by, reward)
    made = prompt if isinstance(prompt, Prompt) else sia.prompt(prompt, raw)
    seeds = [seed if i == 0 else _derived(seed, i) for i in range(n)]
    jobs = [
        sia.job(made, config, max_tokens=max_tokens, seed=s, stop=stop, trace=trace, id=i) for i, s in enumerate(seeds)
    ]
    completions = [Completion(i) for i in range(n)]
    steps: list[list[Step]] = [[] for _ in range(n)]
    for step in sia.run(jobs):
        completions[step.job].add(step)
        steps[step.job].append(step)
        if interrupted():
            break
    begun = [i for i in range(n) if steps[i]]
    if by == "reward":
        assert reward is not None
        scores = reward([made.text] * len(begun), [completions[i].text for i in begun])
    elif by == "value":
        assert sia.value is not None
        # The stop token counts: value models are trained with it behind the text.
        ids = [[s.token for s in steps[i]] for i in begun]
        scores = [text_value(sia.value, 0, made, tokens) for tokens in ids]
    else:
        scores = [-completions[i].nll / completions[i].steps for i in begun]
    return BestOfResult(
        tuple(Contender(completions[i], tuple(steps[i]), seeds[i], s) for i, s in zip(begun, scores, strict=True)), by
    )


def check_criterion(value: Source | None, n: int, by: str | None, reward: Reward | None) -> str:
    """The criterion that holds, by default `value` or `likelihood`. Raises ConfigError with a sentence."""
    if n < 1:
        raise ConfigError(f"best of {n} texts was asked for; expected at least 1")
    by = by or ("reward" if reward is not None else "likelihood" if value is None else "value")
    if by not in CRITERIA:
        raise ConfigError(f"the best text cannot be chosen by {by!r}; expected one of {', '.join(CRITERIA)}")
    if by == "value" and value is None:
        raise ConfigError(
            "the best text was to be chosen by value, but no value model is loaded; give one (-v value.gguf) or "
            "choose by likelihood"
        )
    if by == "reward" and reward is None:
        raise ConfigError("the best text was to be chosen by reward, but no reward is named; name one, such as vader")
    return by


def text_value(source: Source, slot: int, prompt: Prompt, tokens: Sequence[int]) -> float:
    """The value of a whole text (non-empty) as its source means it, reward units; the slot's content is replaced.

    The value after the last token; of a model trained with the trajectory-mean loss, which fixes only the mean
    over the tokens, that mean. Of guides it is the log ratio of the whole text, nats.
    """
    if isinstance(source, MixedValues):
        return sum(scale * text_value(part, slot, prompt, tokens) for part, scale in source.parts())
    values = source.trajectory(slot, prompt, tokens)
    file = getattr(source, "file", None)
    means = file is not None and file.about.get(TRAIN_LOSS) == "trajectory-mean"
    return float(values.mean() if means else values[-1])


def slots_for(n: int, candidates: int) -> int:
    """How many of n texts can run at once when each may open `candidates` branches."""
    return max(1, min(n, MAX_SEQUENCES // (1 + candidates)))


def _derived(seed: int, i: int) -> int:
    # seed + i would make the texts of neighbouring seeds overlap.
    return int(np.random.SeedSequence([seed, i]).generate_state(1)[0])


class BestOf:
    """Generates like SIA, each text the best of n: what a chat session and `generate` take in SIA's place.

    result: of the last generation. interrupted: asked between two tokens; once true, the best so far is taken.
    """

    def __init__(self, sia: SIA, n: int, by: str | None = None, reward: Reward | None = None):
        self.by = check_criterion(sia.value, n, by, reward)
        self.sia, self.n, self.reward = sia, n, reward
        self.result: BestOfResult | None = None
        self.interrupted: Callable[[], bool] = lambda: False

    def __enter__(self) -> BestOf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sia.close()

    @property
    def n_ctx(self) -> int:
        return self.sia.n_ctx

    @property
    def model(self) -> Model:
        return self.sia.model

    @property
    def value(self) -> Source | None:
        return self.sia.value

    @property
    def last_stats(self) -> Stats:
        return self.sia.last_stats

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt:
        return self.sia.prompt(prompt, raw)

    def generate(
        self,
        prompt: str | Messages | Prompt,
        config: SiaConfig | None = None,
        *,
        max_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        raw: bool = False,
        trace: bool = False,
    ) -> Iterator[Step]:
        """The winner's steps, once all texts are there."""
        options: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed, "stop": stop, "raw": raw, "trace": trace}
        self.result = best_of(
            self.sia,
            prompt,
            config,
            n=self.n,
            by=self.by,
            reward=self.reward,
            interrupted=self.interrupted,
            **options,
        )
        yield from self.result.winner.steps
