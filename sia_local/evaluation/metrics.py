"""Numbers about sets of texts: intervals, diversity, and arms compared at equal KL. Pure numpy, seeded."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, SiaError

Array = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean (or a ratio) with a bootstrap interval from `low` to `high`, over n units."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def resamples(n: int, seed: int = 0, count: int = RESAMPLES) -> npt.NDArray[np.int64]:
    """Indices [count, n] drawn with replacement; the same n and seed give the same draws, so that arms pair."""
    return np.random.default_rng(seed).integers(0, n, (count, n))


def bootstrap_mean(values: Sequence[float] | Array, seed: int = 0, level: float = LEVEL) -> Interval:
    """Mean with a percentile bootstrap interval. The units must be independent: average a prompt's samples first."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ConfigError(f"an interval was asked for {x.shape} values; expected at least one, in one dimension")
    return _interval(float(x.mean()), x[resamples(len(x), seed)].mean(1), len(x), level)


def paired_difference(
    values: Sequence[float] | Array, reference: Sequence[float] | Array, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Mean of values − reference, unit by unit (the same prompts in the same order), with its interval."""
    a, b = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape:
        raise ConfigError(f"paired values have the shapes {a.shape} and {b.shape}; expected the same prompts in both")
    return bootstrap_mean(a - b, seed, level)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of a set of texts (Li et al. 2016), 0 when there are none."""
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[Sequence[Hashable]], n: int = 4) -> float:
    """Share of a text's n-grams that repeat an earlier one of the same text; mean over texts that have any."""
    shares = []
    for text in texts:
        if grams := _ngrams(text, n):
            shares.append(1 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else 0.0


def perplexity(logprobs: Sequence[float] | Array) -> float:
    """exp of the mean negative log-probability (nats) a token."""
    x = np.asarray(logprobs, np.float64)
    return float(np.exp(-x.mean())) if len(x) else math.nan


@dataclass(frozen=True)
class Frontier:
    """One way of steering at rising strength: KL and reward of every prompt at every point.

    kl, reward: float64[points, prompts]; the first point is the unsteered base. Interpolation is linear in the
    means between neighbouring points, ordered by mean KL; nothing is extrapolated.
    """

    kl: Array
    reward: Array

    @property
    def max_kl(self) -> float:
        return float(self.kl.mean(1).max())

    def reward_at(self, kl: float) -> float | None:
        """Mean reward at a mean KL (nats a text), None beyond the strongest point or below the weakest."""
        means = self.kl.mean(1)
        if not means.min() <= kl <= means.max():
            return None
        return _interpolate(means, self.reward.mean(1), kl)


def reward_at_kl(arm: Frontier, kl: float, seed: int = 0) -> Interval | None:
    """Interpolated mean reward at a mean KL with a bootstrap interval; None where the arm does not reach it."""
    mean = arm.reward_at(kl)
    if mean is None:
        return None
    n = arm.kl.shape[1]
    draws = [_interpolate(arm.kl[:, d].mean(1), arm.reward[:, d].mean(1), kl) for d in resamples(n, seed, 500)]
    return _interval(mean, np.array(draws), n, LEVEL)


def lift_share(arm: Frontier, reference: Frontier, kl: float, seed: int = 0) -> Interval | None:
    """(reward of arm − off) / (reward of reference − off) at equal mean KL, with a bootstrap interval.

    Prompts are resampled together in both arms, their KL with them. None where either frontier does not reach
    `kl`; a resample that falls just short of it takes its strongest point. None, too, of a single prompt, and where the
    reference gains nothing in more resamples than a tail of the interval holds: a share of that is no number, and
    without them the interval would be too narrow.
    """
    n = arm.kl.shape[1]
    if n == 1 or arm.reward_at(kl) is None or reference.reward_at(kl) is None:
        return None
    if reference.kl.shape[1] != n:
        raise ConfigError(f"frontiers over {n} and {reference.kl.shape[1]} prompts; expected the same prompts")
    shares = []
    for draw in [np.arange(n), *resamples(n, seed)]:
        off = arm.reward[0, draw].mean()
        lifts = [_interpolate(f.kl[:, draw].mean(1), f.reward[:, draw].mean(1), kl) - off for f in (arm, reference)]
        shares.append(lifts[0] / lifts[1] if lifts[1] > 0 else math.nan)
    draws = np.array(shares[1:])
    if not math.isfinite(shares[0]) or np.isnan(draws).mean() > (1 - LEVEL) / 2:
        return None
    return _interval(shares[0], draws, n, LEVEL)


def _interpolate(kl: Array, reward: Array, at: float) -> float:
    order = np.argsort(kl, kind="stable")
    return float(np.interp(at, kl[order], reward[order]))


def _interval(mean: float, draws: Any, n: int, level: float) -> Interval:
    tail = (1 - level) / 2 * 100
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(mean, float(low), float(high), n)


def _ngrams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def threshold_of(entropies: Sequence[float], rate: float, part: str) -> float:
    """Nats that this share of the unsteered tokens has or exceeds. Raises SiaError where no token is of the part."""
    if not entropies:
        raise SiaError(
            f"none of the unsteered tokens is of the part to steer ({part}); allow more tokens a text, or steer the "
            "other part"
        )
    return float(np.quantile(entropies, 1 - rate))
