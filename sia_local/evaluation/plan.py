"""What an evaluation and a calibration are asked for: prompts, and one request that all their texts are made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config import SiaConfig, setting
from ..errors import ConfigError
from ..prompts import PromptItem
from ..records import Message, Request
from ..seeds import text_seed
from .arms import Arm

if TYPE_CHECKING:
    from .samples import Sample

DEFAULT_KL_PER_TOKEN = 0.05
BY = ("entropy", "gain")
# Many texts are compared, so they are shorter than one that is read.
USUAL = Request("", max_tokens=80)


def text_of(
    request: Request, item: PromptItem, sample: int, config: SiaConfig, instruction: str | None = None
) -> Request:
    """`request` for a prompt's n-th text, with the seed that it has in every arm. instruction: of a system turn."""
    prompt: str | list[Message] = item.text
    if instruction is not None:
        prompt = [{"role": "system", "content": instruction}, {"role": "user", "content": item.text}]
    return replace(request, prompt=prompt, config=config, seed=text_seed(request.seed, item.id, sample))


@dataclass(frozen=True)
class Plan:
    """What to run. request: what every text asks for, but for its prompt, its own seed and what an arm decides.
    samples: texts a prompt in every arm; with best_of N, each of them is the best of N."""

    prompts: Sequence[PromptItem]
    arms: Sequence[Arm]
    request: Request = setting(cli=False)
    samples: int = setting(1, "Texts a prompt.")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples is {self.samples}; expected at least 1 text a prompt")

    def texts_of(self, samples: Iterable[Sample]) -> list[Sample]:
        """Those of a store's samples that belong to this plan: a folder may hold more prompts, arms or samples."""
        ids = {item.id: item.text for item in self.prompts}
        wanted = {arm.key: self.samples * arm.best_of for arm in self.arms}
        return [s for s in samples if ids.get(s.prompt_id) == s.prompt and s.sample < wanted.get(s.arm, 0)]


@dataclass(frozen=True)
class Goal:
    """What to calibrate for: kl_per_token (nats), or reward_per_kl, below which another nat of KL a text is not worth
    its reward; one of them. by: the gate, one of BY."""

    rate: float = setting(0.2, "Share of tokens to steer.")
    by: str = setting(
        "entropy", "Steer the least sure tokens, or those where it changes most.", option="--gate", choices=BY
    )
    kl_per_token: float | None = setting(
        None, "Nats a token that steering may spend on average.", show=f"{DEFAULT_KL_PER_TOKEN}"
    )
    reward_per_kl: float | None = setting(None, "Stop where another nat a text buys less than this; needs --reward.")

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise ConfigError(f"the gate to calibrate is {self.by!r}; expected one of {', '.join(BY)}")
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate is {self.rate}; expected a share between 0 and 1, such as 0.2")
        if self.kl_per_token is not None and self.reward_per_kl is not None:
            raise ConfigError("a wanted KL and a wanted reward per KL were given; give one of them")
        for name in ("kl_per_token", "reward_per_kl"):
            goal = getattr(self, name)
            if goal is not None and not (math.isfinite(goal) and goal > 0):
                raise ConfigError(f"{name.replace('_', ' ')} is {goal}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Task(Goal):
    """A goal, and what to calibrate on. request: what every text asks for; its gate and beta are ignored."""

    prompts: Sequence[PromptItem] = setting(cli=False)
    request: Request = setting(cli=False)
