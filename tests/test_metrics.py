from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sia_local.errors import ConfigError, SiaError
from sia_local.evaluation.metrics import (
    Frontier,
    Interval,
    bootstrap_mean,
    distinct_n,
    lift_share,
    paired_difference,
    perplexity,
    repetition,
    threshold_of,
)
from sia_local.steering.tilt import bon_kl_bound


def test_bootstrap_is_seeded_and_has_the_right_width() -> None:
    x = np.random.default_rng(1).normal(2.0, 3.0, 400)
    a = bootstrap_mean(x, seed=5)
    assert a == bootstrap_mean(x, seed=5) != bootstrap_mean(x, seed=6)
    assert a.mean == pytest.approx(x.mean(), abs=1e-12)
    assert a.half == pytest.approx(1.96 * x.std() / 20, rel=0.06)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_interval_holds_the_mean_of_constant_and_any_data(values: list[float]) -> None:
    got = bootstrap_mean(values)
    assert min(values) - 1e-9 <= got.low <= got.high <= max(values) + 1e-9


def test_paired_difference_removes_what_prompts_share() -> None:
    hard = np.linspace(-50, 50, 40)
    assert paired_difference(hard + 1, hard) == Interval(1.0, 1.0, 1.0, 40)
    with pytest.raises(ConfigError, match="same prompts"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="at least one"):
        bootstrap_mean([])


def test_diversity() -> None:
    texts = [["a", "b", "a", "b"], ["a"]]
    assert distinct_n(texts, 1) == 2 / 5
    assert distinct_n(texts, 2) == 2 / 3
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n([], 1) == 0.0
    assert repetition([list("abcdabcd"), list("abcdefgh"), list("ab")], 4) == pytest.approx((1 / 5 + 0) / 2)
    assert repetition([list("aaaaaa")], 4) == pytest.approx(2 / 3)


def test_perplexity_and_bon_bound() -> None:
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4.0)
    assert bon_kl_bound(1) == 0.0
    assert bon_kl_bound(8) == pytest.approx(1.204441541679836)
    with pytest.raises(ConfigError):
        bon_kl_bound(0)


def frontier(*points: tuple[float, float], n: int = 6) -> Frontier:
    return Frontier(*(np.array([[p[i]] * n for p in points], float) for i in (0, 1)))


def test_frontier_interpolates_between_betas_and_never_beyond() -> None:
    arm = frontier((0, 0.4), (2, 0.8), (6, 1.0))
    assert arm.reward_at(0) == pytest.approx(0.4)
    assert arm.reward_at(1) == pytest.approx(0.6)
    assert arm.reward_at(5) == pytest.approx(0.95)
    assert arm.reward_at(6.01) is None
    assert arm.reward_at(-0.1) is None
    assert frontier((0, 0.0), (4, 1.0), (2, 0.5)).reward_at(1) == pytest.approx(0.25)


def test_share_of_lift_at_equal_kl() -> None:
    dense, sparse = frontier((0, 0.5), (4, 0.9)), frontier((0, 0.5), (3, 0.8), (8, 1.0))
    share = lift_share(sparse, dense, 4.0)
    assert share is not None
    assert (share.mean, share.low, share.high) == pytest.approx((0.85, 0.85, 0.85)) and share.n == 6
    assert lift_share(sparse, dense, 5.0) is None
    assert lift_share(sparse, frontier((0, 0.5), (4, 0.4)), 2.0) is None
    one, other = (Frontier(f.kl[:, :1], f.reward[:, :1]) for f in (sparse, dense))
    assert lift_share(one, other, 4.0) is None  # every resample of one prompt is that prompt


@pytest.mark.parametrize(("gains", "known"), [((3.0, -1.0), False), ((-1.0, 9.0, 9.0, 9.0), True)])
def test_there_is_no_share_of_a_lift_that_may_be_none(gains: tuple[float, ...], known: bool) -> None:
    """The first loses in the resamples that hold the second prompt alone, a quarter; the second in one of 256."""
    n = len(gains)
    kl, dense = np.array([[0.0] * n, [4.0] * n]), np.array([[0.0] * n, gains])
    share = lift_share(Frontier(kl, dense / 2), Frontier(kl, dense), 4.0)
    assert share == (Interval(0.5, 0.5, 0.5, n) if known else None)


def test_share_carries_the_noise_of_prompts() -> None:
    rng = np.random.default_rng(0)
    kl = np.array([np.zeros(200), rng.gamma(4, 1, 200)])
    reward = np.array([rng.normal(0, 0.3, 200), rng.normal(0.5, 0.3, 200)])
    other = np.array([reward[0], rng.normal(0.45, 0.3, 200)])
    share = lift_share(Frontier(kl, other), Frontier(kl, reward), 2.0)
    assert share is not None
    assert 0.02 < share.half < 0.3
    assert share.low < share.mean < share.high


def test_a_threshold_needs_tokens() -> None:
    assert threshold_of([1.0, 2.0, 3.0], 0.5, "all") == 2.0
    with pytest.raises(SiaError, match=r"none of the unsteered tokens is of the part to steer \(answer\)"):
        threshold_of([], 0.2, "answer")
