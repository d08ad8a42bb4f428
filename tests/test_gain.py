"""The gate on gain: what it measures, when it opens, and that it holds a rate."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sia_local import SiaConfig
from sia_local.errors import ConfigError
from sia_local.steering.choice import Choice
from sia_local.steering.tilt import gain, kl, softmax, tilt

Z = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
V = np.array([0.3, -0.2, 1.1, 0.7])
SOURCE = SimpleNamespace(spread=0.5, max_candidates=20)
numbers = arrays(np.float64, 4, elements=st.floats(-8, 8))


@given(numbers, numbers, st.floats(-3, 3))
def test_gain_is_a_kl_and_blind_to_a_constant(z: np.ndarray, v: np.ndarray, b: float) -> None:
    p, tilted = softmax(z), tilt(z, v, b)
    with np.errstate(divide="ignore"):
        assert gain(z, b * v) == pytest.approx(kl(p, np.log(tilted)), abs=1e-8)
    assert gain(z, b * (v + 3.0)) == pytest.approx(gain(z, b * v), abs=1e-8)


@pytest.mark.parametrize("unit", ["raw", "spread"])
def test_it_opens_at_its_threshold_and_leaves_the_rest_alone(unit: str) -> None:
    beta = 1.0 if unit == "raw" else 0.5
    here = gain(Z[:4], V)
    for threshold, opens in ((here - 1e-6, True), (here + 1e-6, False)):
        config = SiaConfig(k=4, gate="gain", gain_threshold=threshold, beta=beta, beta_unit=unit)
        choice = Choice(config, source=SOURCE)
        look = choice.look(Z)
        assert list(look.asked) == [0, 1, 2, 3]
        verdict = choice.weigh(look, V)
        assert verdict.steered == opens and (verdict.beta == 1.0) == opens and (verdict.kl_steering > 0) == opens
        np.testing.assert_allclose(verdict.probabilities, tilt(Z[:4], V, 1.0) if opens else softmax(Z[:4]))
        assert not np.isnan(verdict.candidates(4).values).any()


def test_without_a_threshold_it_holds_the_rate_where_steering_pays_most() -> None:
    rng = np.random.default_rng(0)
    choice = Choice(SiaConfig(k=4, gate="gain", rate=0.2), source=SOURCE)
    steered, gains = [], []
    for _ in range(2000):
        v = rng.standard_normal(4) * rng.exponential(1.0)
        verdict = choice.weigh(choice.look(Z), v)
        steered.append(verdict.steered)
        gains.append(gain(Z[:4], v))
    assert np.mean(steered) == pytest.approx(0.2, abs=0.01)
    taken = np.array(steered)
    assert np.quantile(np.array(gains)[taken], 0.1) > np.quantile(np.array(gains)[~taken], 0.85)


def test_a_threshold_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="gain_threshold is -1; expected 0 nats or more"):
        SiaConfig(gain_threshold=-1)
