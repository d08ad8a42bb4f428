"""Golden numbers and invariants of the pure functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sia_local.steering.entropy import entropy, log_partition, top_candidates, varentropy
from sia_local.steering.tilt import beta_for_kl, draw, kl, log_softmax, shape_values, softmax, tilt, truncation_kl

Z = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
V = np.array([0.3, -0.2, 1.1, 0.7])
C = slice(0, 4)

rows = hnp.arrays(np.float32, st.integers(1, 900), elements=st.floats(-30, 30, width=32))


def test_golden_entropies() -> None:
    assert entropy(Z) == pytest.approx(1.2267832955, abs=1e-10)
    assert entropy(Z[C]) == pytest.approx(1.1097670015, abs=1e-10)
    assert entropy(Z / 0.7) == pytest.approx(0.9325283228, abs=1e-10)


def test_golden_tilts() -> None:
    np.testing.assert_allclose(tilt(Z[C], V, 1.0), [0.5203964221, 0.1161161370, 0.2584212153, 0.1050662256], atol=1e-10)
    np.testing.assert_allclose(
        tilt(Z[C], V, 2.0, 0.7), [0.4182193187, 0.0240194309, 0.4824431663, 0.0753180841], atol=1e-10
    )


def test_golden_kl() -> None:
    base = (Z - log_partition(Z))[C]
    assert kl(tilt(Z[C], V, 1.0), base) == pytest.approx(0.1157653556, abs=1e-10)
    untilted = softmax(Z[C])
    assert kl(untilted, base) == pytest.approx(truncation_kl(base), abs=1e-12)


def test_golden_value_augmented_sampling() -> None:
    values = np.zeros(6)
    values[C] = shape_values(V, center=True)
    np.testing.assert_allclose(
        tilt(Z, values, 1.0),
        [0.5027785573, 0.1121850601, 0.2496724426, 0.1015092400, 0.0298191209, 0.0040355792],
        atol=1e-10,
    )


def test_golden_rad() -> None:
    assert tilt(Z[C], shape_values(V, clip=(0.0, 1.0)), 30.0)[2] == pytest.approx(0.9999251504, abs=1e-10)


def test_banned_tokens_have_no_entropy() -> None:
    row = np.array([1.0, -np.inf, 1.0, -np.inf], np.float32)
    assert entropy(row) == pytest.approx(np.log(2), abs=1e-6)
    assert varentropy(row) == pytest.approx(0.0, abs=1e-9)


@given(rows, st.integers(1, 25))
def test_top_candidates_are_the_stable_best(row: np.ndarray, k: int) -> None:
    expected = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
    assert top_candidates(row, k).tolist() == expected


def test_top_candidates_over_a_real_vocabulary_size() -> None:
    row = np.random.default_rng(3).standard_normal(151_937).astype(np.float32)
    row[[5, 151_936]] = 9.0
    assert top_candidates(row, 12).tolist() == sorted(range(len(row)), key=lambda i: (-row[i], i))[:12]


@pytest.mark.parametrize("n", [1, 16_384, 16_385, 151_937])
def test_the_partition_is_over_the_whole_vocabulary(n: int) -> None:
    row = np.random.default_rng(4).standard_normal(n).astype(np.float32)
    row[-1] = 11.0
    expected = float(np.log(np.exp(row.astype(np.float64)).sum()))
    assert log_partition(row) == pytest.approx(expected, abs=1e-6)
    assert log_partition(row, row.max()) == log_partition(row)


@given(rows)
def test_entropy_is_within_its_bounds(row: np.ndarray) -> None:
    assert -1e-6 <= entropy(row) <= np.log(len(row)) + 1e-5


@given(
    hnp.arrays(np.float64, 8, elements=st.floats(-10, 10)),
    hnp.arrays(np.float64, 8, elements=st.floats(-5, 5)),
    st.floats(0.1, 2),
)
def test_beta_zero_is_the_base_and_a_constant_value_changes_nothing(
    z: np.ndarray, v: np.ndarray, temperature: float
) -> None:
    np.testing.assert_array_equal(tilt(z, v, 0.0, temperature), softmax(z, temperature))
    np.testing.assert_allclose(tilt(z, np.full(8, 3.5), 2.0, temperature), softmax(z, temperature), atol=1e-12)


def test_a_low_temperature_leaves_the_kl_finite() -> None:
    """softmax(z / 0.01) is 0 for a float where z is 8 behind the best; its logarithm is -800."""
    z, v = np.array([10.0, 2.0, 0.0, -1.0]), np.array([0.0, 10.0, 0.0, 0.0])
    assert log_softmax(z, 0.01)[1] == pytest.approx(-800) and softmax(z, 0.01)[1] == 0
    np.testing.assert_allclose(log_softmax(z, 0.7), np.log(softmax(z, 0.7)), atol=1e-12)
    assert kl(tilt(z, v, 2.0, 0.01), log_softmax(z, 0.01)) == pytest.approx(800)
    assert 0 < beta_for_kl(z, v, 2.0, 0.01, 5.0) < 0.81


def test_without_temperature_a_budget_leaves_all_of_beta_or_nothing() -> None:
    found = [beta_for_kl(Z[C], V, beta, 0.0, 5.0) for beta in (1.0, 3.0, -1.0)]
    assert found == [1.0, 0.0, -1.0]  # at 3 another candidate would be the best


@settings(max_examples=50)
@given(
    hnp.arrays(np.float64, 6, elements=st.floats(-5, 5)),
    hnp.arrays(np.float64, 6, elements=st.floats(-3, 3)),
    st.floats(-8, 8),
    st.floats(0, 1),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_a_kl_budget_holds_and_is_used(
    z: np.ndarray, v: np.ndarray, beta: float, budget: float, temperature: float
) -> None:
    lowered = beta_for_kl(z, v, beta, temperature, budget)
    base = log_softmax(z, temperature)
    spent = kl(tilt(z, v, lowered, temperature), base)
    assert spent <= budget + 1e-9
    assert abs(lowered) <= abs(beta)
    if lowered != beta:
        assert kl(tilt(z, v, lowered + 1e-3 * beta, temperature), base) > budget - 1e-9


@given(hnp.arrays(np.float64, 5, elements=st.floats(0, 1)), st.floats(0, 1, exclude_max=True))
def test_draw_never_takes_an_impossible_candidate(weights: np.ndarray, uniform: float) -> None:
    weights[2] = 1.0
    probabilities = weights / weights.sum()
    assert probabilities[draw(probabilities, uniform)] > 0


def test_draw_is_the_inverse_cdf() -> None:
    p = np.array([0.5, 0.25, 0.25])
    assert [draw(p, u) for u in (0.0, 0.49, 0.5, 0.74, 0.75, 0.999)] == [0, 0, 1, 1, 2, 2]


def test_greedy_takes_the_first_best() -> None:
    assert softmax(np.array([1.0, 3.0, 3.0]), 0.0).tolist() == [0.0, 1.0, 0.0]
