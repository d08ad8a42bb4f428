"""Finds settings for a base and a value model: the threshold of a rate, the spread of V, and beta for a wanted KL.

Everything is measured on the same prompts with the same seeds, so that a second run finds the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import SamplingConfig, SiaConfig
from ..errors import ConfigError, NumericError
from ..records import Step
from ..rewards.load import Reward
from .metrics import threshold_of
from .plan import DEFAULT_KL_PER_TOKEN, Task, text_of
from .profile import OF_A_TEXT, Profile

if TYPE_CHECKING:
    from ..generation.writing import Runner

RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOLERANCE = 0.03
_HALVINGS = 8
# Beta is searched from 2^-8 to 2^8 spreads: beyond, the tilt is nothing or an argmax of V.
_REACH = 8


@dataclass(frozen=True)
class Point:
    """What steering at one beta did. kl in nats; reward: mean over the texts, None without a reward."""

    beta: float
    kl_per_token: float
    kl_per_text: float
    rate: float
    tokens: int
    reward: float | None


def calibrate(
    sia: Runner, task: Task, reward: Reward | None = None, say: Callable[[str], None] = lambda sentence: None
) -> Profile:
    """The profile of `task`. Raises ConfigError for a goal that cannot be reached, NumericError for flat values."""
    if task.reward_per_kl is not None and reward is None:
        raise ConfigError("a reward per KL was asked for without a reward; give one with --reward")
    search = _Search(sia, task, reward, say)
    if task.reward_per_kl is not None:
        chosen = search.for_reward(task.reward_per_kl)
        goal = f"beyond it another nat buys less than {task.reward_per_kl:g} of {search.reward_name}"
    else:
        wanted = task.kl_per_token or DEFAULT_KL_PER_TOKEN
        chosen = search.for_kl(wanted)
        goal = f"{wanted:g} nats a token were wanted"
    return search.profile(chosen, goal)


class _Search:
    """Measures the unsteered base and the spread once, then as many betas as the search asks for."""

    def __init__(self, sia: Runner, task: Task, reward: Reward | None, say: Callable[[str], None]):
        self.sia, self.task, self.reward, self.say = sia, task, reward, say
        self.reward_name = reward.name if reward is not None else None
        self.points: dict[float, Point] = {}
        unsteered = replace(task.request.config, gate="off")
        entropies: list[float] = []
        self.off = self._measure(
            unsteered, lambda step: entropies.append(step.entropy) if unsteered.acts_on(step.part) else None
        )
        self.thresholds = {rate: _short(threshold_of(entropies, rate, unsteered.steer)) for rate in RATES}
        self.threshold = _short(threshold_of(entropies, task.rate, unsteered.steer))
        say(f"{len(entropies)} unsteered tokens: {100 * task.rate:g} % have {self.threshold:g} nats or more")
        config = replace(
            task.request.config, gate="entropy", threshold=self.threshold, rate=task.rate, beta=0.0, beta_unit="raw"
        )
        deviations: list[float] = []
        self._measure(config, lambda step: deviations.extend(_deviation(step)), trace=True)
        self.config = config if task.by == "entropy" else replace(config, gate="gain", gain_threshold=None)
        self.junctions, self.spread = len(deviations), _short(float(np.mean(deviations or [0.0])))
        say(f"{self.junctions} junctions: values spread by {self.spread:g}")
        if not self.spread > 0:
            raise NumericError(
                f"the values of the candidates do not differ at {self.junctions} junctions, so no beta can steer; "
                "check the value model with `sia-local inspect`, or raise the rate"
            )

    def for_kl(self, wanted: float) -> Point:
        """The beta whose texts spend `wanted` nats a token, by bisection over log beta."""
        low = high = 0.0
        while self.at(high).kl_per_token < wanted:
            low, high = high, high + 1
            if high > _REACH:
                most = max(point.kl_per_token for point in self.points.values())
                raise ConfigError(
                    f"steering {100 * self.task.rate:g} % of the tokens spends at most {most:.3g} nats a token, wanted "
                    f"were {wanted:g}; raise --rate or ask for less"
                )
        while low == high or self.at(low).kl_per_token > wanted:
            low, high = low - 1, low if low < high else high
            if low < -_REACH:
                raise ConfigError(f"{wanted:g} nats a token is less than any steering spends; ask for more")
        for _ in range(_HALVINGS):
            middle = self.at((low + high) / 2)
            if abs(middle.kl_per_token - wanted) <= TOLERANCE * wanted:
                return middle
            if middle.kl_per_token < wanted:
                low = (low + high) / 2
            else:
                high = (low + high) / 2
        return min(self.points.values(), key=lambda point: abs(point.kl_per_token - wanted))

    def for_reward(self, price: float) -> Point:
        """The beta at which reward − price · KL is largest: there the last nat bought just `price`."""

        def worth(power: float) -> float:
            point = self.at(power)
            assert point.reward is not None
            return point.reward - price * point.kl_per_text

        powers = [float(power) for power in range(-3, 3)]
        while powers[-1] < _REACH and worth(powers[-1]) >= max(map(worth, powers)):
            powers.append(powers[-1] + 1)
        best, step = max(powers, key=worth), 0.5
        for _ in range(2):
            best = max((best, best - step, best + step), key=worth)
            step /= 2
        assert self.off.reward is not None
        if worth(best) <= self.off.reward:
            raise ConfigError(
                f"no strength of steering buys {price:g} of {self.reward_name} with a nat of KL on these prompts; ask "
                "for less, or train a better value model"
            )
        return self.at(best)

    def at(self, power: float) -> Point:
        """What beta = 2^power spreads does, measured once."""
        beta = _short(2.0**power / self.spread, 4)
        if beta not in self.points:
            point = self.points[beta] = self._measure(replace(self.config, beta=beta))
            gained = "" if point.reward is None else f", reward {point.reward:.4f}"
            self.say(f"beta {beta:g} ({2.0**power:.3g} spreads): {point.kl_per_token:.4f} nats a token{gained}")
        return self.points[beta]

    def profile(self, chosen: Point, goal: str) -> Profile:
        task, reward = self.task, self.reward_name
        by_entropy = task.by == "entropy"
        where = f"entropy of {self.threshold:.3g} nats or more" if by_entropy else "where it changes most"
        sentence = (
            f"At {100 * task.rate:g} % of the tokens ({where}) beta "
            f"{chosen.beta:g} ({chosen.beta * self.spread:.2g} spreads) spends {chosen.kl_per_token:.3g} nats a token, "
            f"{chosen.kl_per_text:.3g} a text; {goal}."
        )
        if chosen.reward is not None:
            sentence += f" Mean {reward} went from {self.off.reward:.3f} to {chosen.reward:.3f}."
        steering = {
            "gate": task.by,
            **({"threshold": self.threshold} if by_entropy else {}),
            "rate": task.rate,
            "k": self.config.k,
            "beta": chosen.beta,
            "beta_unit": "raw",
        }
        return Profile(
            # What else was set while all this was measured.
            steering=steering | _unusual(self.config, {*steering, "threshold", "sampling"}),
            sampling=_unusual(self.config.sampling, OF_A_TEXT),
            chose=sentence,
            thresholds=self.thresholds,
            measured={
                name: value if isinstance(value, int) else _short(value)
                for name, value in {
                    "prompts": len(task.prompts),
                    "max_tokens": task.request.max_tokens,
                    "seed": task.request.seed,
                    "tokens": chosen.tokens,
                    "rate": chosen.rate,
                    "junctions": self.junctions,
                    "spread": self.spread,
                    "beta_in_spreads": chosen.beta * self.spread,
                    "kl_per_token": chosen.kl_per_token,
                    "kl_per_text": chosen.kl_per_text,
                    "reward": chosen.reward,
                    "reward_off": self.off.reward,
                }.items()
                if value is not None
            },
        )

    def _measure(
        self, config: SiaConfig, each: Callable[[Step], Any] = lambda step: None, trace: bool = False
    ) -> Point:
        task = self.task
        request = replace(task.request, trace=trace)
        jobs = (self.sia.job(text_of(request, item, 0, config), id=number) for number, item in enumerate(task.prompts))
        texts = [""] * len(task.prompts)
        run = self.sia.run(jobs)
        for step in run:
            each(step)
            texts[step.job] += step.text
        sums = run.stats
        rewards = self.reward([item.text for item in task.prompts], texts) if self.reward is not None else None
        return Point(
            beta=config.beta,
            kl_per_token=sums.kl_steering / sums.steps,
            kl_per_text=sums.kl_steering / len(texts),
            rate=sums.junction_rate,
            tokens=sums.steps,
            reward=float(np.mean(rewards)) if rewards is not None else None,
        )


def _unusual(config: SiaConfig | SamplingConfig, without: Collection[str]) -> dict[str, Any]:
    """What differs from the defaults, by name."""
    found = {f.name: (getattr(config, f.name), f.default) for f in fields(config) if f.name not in without}
    return {name: value for name, (value, usual) in found.items() if value != usual}


def _deviation(step: Step) -> list[float]:
    """The standard deviation of V among a junction's candidates, or nothing."""
    if not step.steered or step.candidates is None:
        return []
    values = step.candidates.values
    return [float(np.nanstd(values))]


def _short(number: float, digits: int = 6) -> float:
    """Rounded to significant digits, for a file that a person reads."""
    return float(f"{number:.{digits}g}")
