"""Best-of-N over steered texts: N sequences side by side in one engine, and the best of them kept.

    with SIA.load("base.gguf", value="value.gguf", slots=8) as sia:
        result = best_of(sia, "Once upon a time", n=8, config=SiaConfig(beta=2.0), seed=7)
        print(result.winner.text, result.scores, result.kl, result.kl_bound)

The prompt is encoded once: the sequences share its part of the KV cache, in the base and in the value model.
Choosing costs KL, too: at most log N − (N − 1)/N nats (Beirami et al., arXiv 2401.01879) on top of what sampling
the texts cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError
from ..llama.library import MAX_SEQUENCES
from ..records import Completion, Messages, Prompt, Request, Step
from ..rewards.load import Reward
from ..steering.tilt import bon_kl_bound
from ..values.sources import Source
from .sia import SIA, WithSIA
from .writing import Generation, Run, Stop

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
        return float(np.mean([c.completion.kl_steering for c in self.contenders]))

    @property
    def kl_bound(self) -> float:
        """Most that keeping the best of N can add to either, nats."""
        return bon_kl_bound(self.n)


class BestOfGeneration(Generation):
    """The winner's steps, once all texts are there. result: all of them. stop() compares what there is so far."""

    def __init__(self, best: BestOf, request: Request):
        sia, self.texts = best.sia, best.n
        made = sia.prompt_of(request)
        self.seeds = [request.seed if i == 0 else _derived(request.seed, i) for i in range(best.n)]
        jobs = [sia.job(replace(request, prompt=made, seed=seed), id=i) for i, seed in enumerate(self.seeds)]
        stop = Stop()
        run = sia.run(jobs, stop)
        super().__init__(request, self._write(best, made, run), run.stats, stop)
        self.result: BestOfResult | None = None

    def __next__(self) -> Step:
        # Stopped or not, the winner comes whole.
        step = next(self._steps)
        self.completion.add(step)
        return step

    def _write(self, best: BestOf, prompt: Prompt, run: Run) -> Iterator[Step]:
        completions = [Completion(job=i) for i in range(best.n)]
        steps: list[list[Step]] = [[] for _ in range(best.n)]
        for step in run:
            completions[step.job].add(step)
            steps[step.job].append(step)
            if self.stopped:
                run.close()
        begun = [i for i in range(best.n) if steps[i]]
        if not begun:
            return
        scores = best.scores(prompt, [completions[i] for i in begun])
        contenders = tuple(
            Contender(completions[i], tuple(steps[i]), self.seeds[i], s) for i, s in zip(begun, scores, strict=True)
        )
        self.result = BestOfResult(contenders, best.by)
        yield from self.result.winner.steps

    @property
    def remark(self) -> str:  # type: ignore[override]
        if (result := self.result) is None:
            return ""
        mean = sum(result.scores) / result.n
        return (
            f"best of {result.n} by {result.by}: {max(result.scores):.3g}, mean {mean:.3g}; "
            f"choosing adds at most {result.kl_bound:.2f} nats of KL"
        )

    @property
    def facts(self) -> dict[str, Any]:
        if (result := self.result) is None:
            return {}
        return {
            "best_of": {
                "n": result.n,
                "by": result.by,
                "winner": result.best,
                "scores": result.scores,
                "seeds": [c.seed for c in result.contenders],
                "texts": [c.text for c in result.contenders],
                "kl": result.kl,
                "kl_steering": result.kl_steering,
                "kl_choosing_bound": result.kl_bound,
            }
        }


class BestOf(WithSIA):
    """Writes like SIA, each text the best of n.

    by: `value` (the value model's estimate for the whole text; default where one is loaded), `reward` (needs `reward`,
    see rewards.load_reward), `likelihood` (mean log-probability a token under the unsteered base, nats; default
    otherwise). `sia` should be loaded with slots=n; with fewer, texts wait for a slot. The first text is that of the
    request's own seed. close() closes the SIA.
    """

    def __init__(self, sia: SIA, n: int, by: str | None = None, reward: Reward | None = None):
        self.by = check_criterion(sia.value, n, by, reward)
        self.sia, self.n, self.reward = sia, n, reward

    def generate(
        self, prompt: str | Messages | Prompt | Request, config: SiaConfig | None = None, **changes: Any
    ) -> BestOfGeneration:
        """As SIA.generate."""
        return self.write(Request.of(prompt, config, **changes))

    def write(self, request: Request) -> BestOfGeneration:
        return BestOfGeneration(self, request)

    def scores(self, prompt: Prompt, texts: Sequence[Completion]) -> list[float]:
        """What finished texts of one prompt are compared by."""
        if self.by == "reward":
            assert self.reward is not None
            return self.reward([prompt.text] * len(texts), [text.text for text in texts])
        if self.by == "value":
            return [self.sia.value_of(prompt, text.all_tokens) for text in texts]
        return [-text.nll / text.steps for text in texts]


def best_of(
    sia: SIA,
    prompt: str | Messages | Prompt | Request,
    config: SiaConfig | None = None,
    *,
    n: int,
    by: str | None = None,
    reward: Reward | None = None,
    **changes: Any,
) -> BestOfResult:
    """Writes n texts and scores them; n, by and reward as BestOf takes them, changes: fields of Request."""
    generation = BestOf(sia, n, by, reward).generate(prompt, config, **changes)
    for _ in generation:
        pass
    assert generation.result is not None
    return generation.result


def check_criterion(value: Source | None, n: int, by: str | None, reward: Reward | None) -> str:
    """The criterion that holds, by default `value` or `likelihood`. Raises ConfigError with a sentence."""
    if n < 1:
        raise ConfigError(f"best of {n} texts was asked for; expected at least 1")
    rates = value is not None and value.rates_texts
    by = by or ("reward" if reward is not None else "value" if rates else "likelihood")
    if by not in CRITERIA:
        raise ConfigError(f"the best text cannot be chosen by {by!r}; expected one of {', '.join(CRITERIA)}")
    if by == "value" and value is None:
        raise ConfigError(
            "the best text was to be chosen by value, but no value model is loaded; give one (-v value.gguf) or "
            "choose by likelihood"
        )
    if by == "value" and value is not None and not rates:
        raise ConfigError(
            f"{value.name} knows differences among candidates, not what a text is worth; choose texts by likelihood or "
            "by a reward, or give a value model"
        )
    if by == "reward" and reward is None:
        raise ConfigError("the best text was to be chosen by reward, but no reward is named; name one, such as vader")
    return by


def slots_for(n: int, candidates: int) -> int:
    """How many of n texts can run at once when each may open `candidates` branches."""
    return max(1, min(n, MAX_SEQUENCES // (1 + candidates)))


def _derived(seed: int, i: int) -> int:
    # seed + i would make the texts of neighbouring seeds overlap.
    return int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
