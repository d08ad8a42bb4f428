from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from sia_local.config import SiaConfig
from sia_local.errors import ConfigError
from sia_local.steering.choice import Choice
from sia_local.steering.gates import AnyGate, DenseGate, Gate, Moment, RateGate, make_gate


def opened(gate: Gate, entropies: npt.ArrayLike) -> np.ndarray:
    return np.array([gate.opens(Moment(i, float(h))) for i, h in enumerate(np.asarray(entropies))])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", ["steady", "drifting", "sticky"])
def test_rate_gate_holds_the_rate_within_two_points_over_500_tokens(rate: float, shape: str) -> None:
    rng = np.random.default_rng(11)
    entropies = {
        "steady": rng.gamma(1.0, 0.8, 500),
        "drifting": rng.gamma(1.0, 0.3 + np.linspace(0, 2, 500)),
        "sticky": np.repeat(rng.gamma(1.0, 0.8, 100), 5),
    }[shape]
    realised = opened(RateGate(rate, start=1.0), entropies).mean()
    assert abs(realised - rate) <= 0.02


def test_rate_gate_prefers_the_high_entropies() -> None:
    entropies = np.random.default_rng(0).gamma(1.0, 0.8, 2000)
    steered = opened(RateGate(0.2), entropies)
    assert entropies[steered].mean() > 2 * entropies[~steered].mean()


def test_a_rate_gate_that_spent_too_much_stays_shut_whatever_comes() -> None:
    """It begins below everything: eight tokens of a tenth are steered, and the ninth is due at the eightieth."""
    steered = opened(RateGate(0.1, start=0.0, horizon=1), np.arange(1.0, 101.0))
    assert steered[:8].all() and not steered[8:70].any() and steered[70:].any()


def test_gates_by_name() -> None:
    entropies = [0.2, 1.0, 1.7, 0.4]
    assert opened(make_gate(SiaConfig(threshold=1.0)), entropies).tolist() == [False, True, True, False]
    assert opened(make_gate(SiaConfig(gate="dense")), entropies).all()
    assert not opened(make_gate(SiaConfig(gate="off")), entropies).any()
    assert opened(make_gate(SiaConfig(gate="first-n", first_n=2)), entropies).tolist() == [True, True, False, False]


def test_a_rate_begins_at_the_threshold_and_each_of_several_gates_sees_every_step() -> None:
    begun = [make_gate(SiaConfig(gate="rate", threshold=3.0)).opens(Moment(0, h)) for h in (2.0, 4.0)]
    assert begun == [False, True]
    seen: list[int] = []
    watching = SimpleNamespace(opens=lambda moment: seen.append(moment.index))
    assert opened(AnyGate([DenseGate(), watching]), [0.2, 1.0]).all() and seen == [0, 1]


def test_random_gate_repeats_with_its_seed_and_keeps_its_rate() -> None:
    a = opened(make_gate(SiaConfig(gate="random", rate=0.3), seed=1), np.zeros(4000))
    b = opened(make_gate(SiaConfig(gate="random", rate=0.3), seed=1), np.zeros(4000))
    assert (a == b).all() and abs(a.mean() - 0.3) < 0.03


def test_ratio_and_varentropy_gates_and_their_union() -> None:
    ratio = make_gate(SiaConfig(gate="ratio", ratio=2.0))
    assert ratio.opens(Moment(1, 1.0, previous=0.4)) and not ratio.opens(Moment(1, 1.0, previous=0.6))
    assert not ratio.opens(Moment(0, 1.0))
    # Sure after sure is no rise.
    assert not ratio.opens(Moment(1, 1e-4, previous=0.0)) and ratio.opens(Moment(1, 2e-3, previous=0.0))
    either = make_gate(SiaConfig(gate="entropy+varentropy", threshold=1.0, varentropy_threshold=2.0))
    assert either.opens(Moment(0, 0.1, varentropy=2.5)) and either.opens(Moment(0, 1.2))
    assert not either.opens(Moment(0, 0.1, varentropy=1.0))


def test_config_sentences_name_the_value_and_the_range() -> None:
    with pytest.raises(ConfigError, match=r"unknown gate 'sometimes'; expected one of entropy, rate"):
        SiaConfig(gate="sometimes")
    with pytest.raises(ConfigError, match=r"rate is 20; expected a share from 0 to 1"):
        SiaConfig(rate=20)
    assert SiaConfig(beta=-2.0).beta == -2.0


def test_a_spread_that_nobody_stored_is_the_mean_of_the_junctions_so_far() -> None:
    z = np.array([2.0, 1.0, 0.5, 0.0])
    config = SiaConfig(k=4, gate="dense", beta=2.0, beta_unit="spread")
    choice = Choice(config, source=SimpleNamespace(spread=None, max_candidates=4))
    seen = [np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 3.0, 3.0])]
    betas = [choice.weigh(choice.look(z), v).beta for v in (np.zeros(4), *seen)]
    assert betas == pytest.approx([0.0, 2.0 / (0.5 / 2), 2.0 / (2.0 / 3)])
    known = Choice(config, source=SimpleNamespace(spread=0.5, max_candidates=4))
    assert [known.weigh(known.look(z), v).beta for v in seen] == [4.0, 4.0]
