"""Training a Q-head: gradients against PyTorch, a planted Q found again, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted

from sia_local.errors import ConfigError, DataError, NumericError
from sia_local.learning.baseline import predict_table
from sia_local.learning.fit import Epoch, FitConfig, candidate_weights, fit, predict
from sia_local.learning.junctions import Junctions, Transitions, split
from sia_local.learning.network import Adam, centred, forward, initial, loss_and_gradients, taken_loss_and_gradients
from sia_local.learning.report import compare

ACTS = {
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
}
NETWORKS = [("bilinear", 0, "silu"), *((form, 13, act) for form in ("bilinear", "joint") for act in ACTS)]


def torch_q(p: dict[str, torch.Tensor], h: np.ndarray, e: np.ndarray, activation: str) -> torch.Tensor:
    x, rows, act = torch.tensor(h), torch.tensor(e), ACTS[activation]
    if "v" in p:
        return act((x @ p["A"].T + p["c"])[:, None] + rows @ p["B"].T) @ p["v"] + rows @ p["u"]
    f = (act(x @ p["A"].T + p["c"]) if "A" in p else x) @ p["W"].T + p["b"]
    return ((rows @ p["B"].T) * f[:, None]).sum(-1) + rows @ p["u"]


def torch_loss(
    p: dict[str, torch.Tensor], h: np.ndarray, e: np.ndarray, v: np.ndarray, w: np.ndarray, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    q, weights = torch_q(p, h, e, activation), torch.tensor(w)
    d = q - torch.tensor(v)
    d = d - (weights * d).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    return q, (weights * d * d).sum() / len(h)


@pytest.mark.parametrize("form, hidden, activation", NETWORKS)
def test_torch_agrees_on_forward_gradients_and_adam(form: str, hidden: int, activation: str) -> None:
    rng = np.random.default_rng(4)
    h, e, v = (rng.standard_normal(s).astype(np.float32) for s in ((6, 10), (6, 4, 10), (6, 4)))
    w = rng.random((6, 4)).astype(np.float32)
    params = initial(form, 10, 5, hidden, rng)
    params |= {name: 0.3 * rng.standard_normal(a.shape).astype(np.float32) for name, a in params.items()}
    theirs = {name: torch.tensor(a.copy(), requires_grad=True) for name, a in params.items()}
    decayed = [t for name, t in theirs.items() if name in ("A", "B", "W", "v", "u")]
    free = [t for name, t in theirs.items() if name in ("b", "c")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}], lr=0.01
    )
    adam = Adam(params, decay=0.1)
    for _ in range(3):
        q, expected = torch_loss(theirs, h, e, v, w, activation)
        np.testing.assert_allclose(forward(params, h, e, activation), q.detach().numpy(), atol=1e-5)
        loss, gradients = loss_and_gradients(params, h, e, v, w, activation)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        optimizer.zero_grad()
        expected.backward()
        assert gradients.keys() == params.keys()
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, theirs[name].grad.numpy(), atol=1e-5, err_msg=name)
        optimizer.step()
        adam.step(params, gradients, 0.01)
        for name, array in params.items():
            np.testing.assert_allclose(array, theirs[name].detach().numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form, hidden, activation", NETWORKS)
def test_torch_agrees_on_the_loss_of_taken_tokens(form: str, hidden: int, activation: str) -> None:
    rng = np.random.default_rng(7)
    h, e, v = (rng.standard_normal(s).astype(np.float32) for s in ((6, 10), (6, 10), (6,)))
    params = initial(form, 10, 5, hidden, rng, level=7)
    params |= {name: 0.3 * rng.standard_normal(a.shape).astype(np.float32) for name, a in params.items()}
    p = {name: torch.tensor(a.copy(), requires_grad=True) for name, a in params.items()}
    level = ACTS[activation](torch.tensor(h) @ p["L1"].T + p["l1"]) @ p["l2"] + p["l0"]
    expected = ((torch_q(p, h, e[:, None], activation)[:, 0] + level - torch.tensor(v)) ** 2).mean()
    expected.backward()
    loss, gradients = taken_loss_and_gradients(params, h, e, v, activation)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert gradients.keys() == params.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, p[name].grad, atol=1e-5, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), st.integers(0, 99))
def test_a_constant_a_junction_changes_nothing(constants: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, e, v = (rng.standard_normal(s).astype(np.float32) for s in ((3, 5), (3, 4, 5), (3, 4)))
    w = rng.random((3, 4)).astype(np.float32) + 0.01
    params = initial("joint", 5, 2, 3, rng)
    params |= {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in params.items()}
    moved = v + np.array(constants, np.float32)[:, None]
    np.testing.assert_allclose(centred(moved, w), centred(v, w), atol=1e-4)
    loss, gradients = loss_and_gradients(params, h, e, v, w, "silu")
    again, regradients = loss_and_gradients(params, h, e, moved, w, "silu")
    assert again == pytest.approx(loss, rel=1e-3, abs=1e-4)
    for name in gradients:
        np.testing.assert_allclose(gradients[name], regradients[name], atol=2e-3)


@pytest.mark.parametrize("form, hidden", [("bilinear", 0), ("bilinear", 48), ("joint", 96)])
@pytest.mark.parametrize("weighting", ["uniform", "p", "both"])
def test_a_planted_q_is_found_again(form: str, hidden: int, weighting: str) -> None:
    junctions, rows = planted()
    train, held = split(junctions, 0.15)
    seen: list[Epoch] = []
    config = FitConfig(form=form, rank=6, hidden=hidden, epochs=25, batch=64, rate=0.01, weighting=weighting, decay=0.0)
    result = fit(train, held, rows, config, seen.append)
    assert result.report.r2 > 0.95
    assert result.report.r2_p > 0.95
    assert result.report.agreement > 0.9
    assert 0.97 < result.report.gain_share < 1.03
    assert result.qhead.spread == pytest.approx(result.report.spread, rel=1e-6)
    assert result.report.spread == pytest.approx(result.report.teacher_spread, rel=0.05)
    assert tuple(seen) == result.epochs
    table = compare(held, predict_table(train, held, weighting))
    assert table.r2 < 0.6 < result.report.r2


def test_taken_tokens_teach_what_few_junctions_do_not() -> None:
    """V after the token that was taken, up to a level of its prefix, for prompts without a junction."""
    junctions, rows = planted(2000)
    train, held = split(junctions, 0.15)
    few = train.take(train.prompts < 4)
    level = np.sin(train.hidden[:, 0] / 3)
    gains = (train.values[:, 0] - train.values.mean(axis=1) + 0.6 * level).astype(np.float32)
    taken = Transitions(train.hidden, train.ids[:, 0], gains, train.prompts)
    config = FitConfig(form="bilinear", rank=6, hidden=0, epochs=30, batch=16, rate=0.01, decay=0.0)
    alone = fit(few, held, rows, config).report.r2
    both = fit(few, held, rows, config, transitions=taken).report.r2
    assert both > 0.8 > 0.7 > alone
    unheard = replace(taken, prompts=np.full(len(taken), held.prompts[0], np.int32))
    assert fit(few, held, rows, config, transitions=unheard).report.r2 == alone
    assert fit(few, held, rows, replace(config, taken=0.0), transitions=taken).report.r2 == alone


def test_predictions_are_those_of_the_dataclass_and_of_its_seed() -> None:
    junctions, rows = planted(400)
    train, held = split(junctions, 0.2)
    config = FitConfig(hidden=8, epochs=2)
    one, two = fit(train, held, rows, config), fit(train, held, rows, config)
    assert [replace(e, seconds=0) for e in one.epochs] == [replace(e, seconds=0) for e in two.epochs]
    np.testing.assert_array_equal(one.qhead.terms[0].token_weight, two.qhead.terms[0].token_weight)
    direct = [one.qhead(h, rows[ids]) for h, ids in zip(held.hidden.astype(np.float32), held.ids, strict=True)]
    np.testing.assert_allclose(predict(one.qhead, held, rows), direct, atol=1e-4, rtol=1e-4)


def test_values_at_other_scales_teach_the_same() -> None:
    junctions, rows = planted(400)
    train, held = split(junctions, 0.2)
    config = FitConfig(form="bilinear", rank=4, hidden=0, epochs=3)
    once = fit(train, held, rows, config).report
    larger, held_larger = (replace(j, values=64 * j.values) for j in (train, held))
    report = fit(larger, held_larger, rows, config).report
    assert report.r2 == pytest.approx(once.r2, abs=1e-3)
    assert report.spread == pytest.approx(64 * once.spread, rel=1e-3)


def test_training_stops_when_held_out_prompts_say_so() -> None:
    junctions, rows = planted(120)
    rng = np.random.default_rng(0)
    noise = replace(junctions, values=rng.standard_normal(junctions.values.shape).astype(np.float32))
    result = fit(*split(noise, 0.3), rows, FitConfig(epochs=60, patience=3, batch=32, rate=0.02, hidden=64))
    assert len(result.epochs) < 60
    best = max(e.epoch for e in result.epochs if e.best)
    assert len(result.epochs) == best + 3
    assert result.epochs[best - 1].held_out == min(e.held_out for e in result.epochs)


def test_means_of_rollouts_with_their_counts() -> None:
    junctions, rows = planted()
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 5, junctions.values.shape).astype(np.float32)
    noise = 0.3 * rng.standard_normal(counts.shape) / np.sqrt(np.maximum(counts, 1))
    values = np.where(counts > 0, junctions.values + noise, np.nan).astype(np.float32)
    train, held = split(replace(junctions, values=values, counts=counts), 0.15)
    result = fit(train, held, rows, FitConfig(form="bilinear", rank=6, hidden=0, epochs=25, batch=64, rate=0.01))
    exact = split(junctions, 0.15)[1]
    assert compare(exact, predict(result.qhead, exact, rows)).r2 > 0.95


def test_candidate_weights() -> None:
    j = Junctions(
        np.zeros((3, 2), np.float32),
        np.zeros((3, 2), np.int32),
        np.log(np.array([[3, 1], [1, 1], [1, 1]], np.float32)),
        np.array([[1, 2], [1, 2], [1, np.nan]], np.float32),
        np.zeros(3, np.int32),
    )
    np.testing.assert_allclose(candidate_weights(j, "uniform"), [[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(candidate_weights(j, "p"), [[0.75, 0.25], [0.5, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(candidate_weights(j, "both"), [[0.625, 0.375], [0.5, 0.5], [0.0, 0.0]])
    counted = replace(j, counts=np.array([[2, 6], [4, 4], [4, 9]], np.float32))
    np.testing.assert_allclose(candidate_weights(counted, "uniform"), [[0.25, 0.75], [0.5, 0.5], [0.0, 0.0]])


def test_the_level_rides_along() -> None:
    junctions, rows = planted(800)
    w = np.linspace(-1, 1, 24).astype(np.float32)
    level = (junctions.hidden @ w)[:, None] + 4
    p = np.exp(junctions.logits) / np.exp(junctions.logits).sum(1, keepdims=True)
    around = junctions.values - (p * junctions.values).sum(1, keepdims=True)
    train, held = split(replace(junctions, values=(around + level).astype(np.float32)), 0.2)
    qhead = fit(train, held, rows, FitConfig(form="bilinear", rank=4, hidden=0, epochs=1)).qhead
    wanted = held.hidden @ w + 4
    hidden = held.hidden.astype(np.float32)
    found = qhead.level(hidden)
    assert found is not None and np.abs(found - wanted).max() < 0.05 * wanted.std()
    without = fit(train, held, rows, FitConfig(form="bilinear", rank=4, hidden=0, epochs=1, level=False)).qhead
    assert without.level(hidden) is None


def test_a_column_that_never_varies_does_no_harm() -> None:
    junctions, rows = planted(400)
    hidden, rows = junctions.hidden.copy(), rows.copy()
    hidden[:, 3], rows[:, 5] = 7.1, -0.27
    result = fit(*split(replace(junctions, hidden=hidden), 0.2), rows, FitConfig(hidden=8, epochs=2))
    assert math.isfinite(result.report.r2)
    (term,) = result.qhead.terms
    assert term.hidden_weight is not None and np.abs(term.hidden_weight).max() < 5
    assert np.abs(term.token_weight).max() < 50


def test_refusals_of_fit() -> None:
    junctions, rows = planted(100)
    train, held = split(junctions, 0.2)
    with pytest.raises(DataError, match=r"embedding rows are \[\d+, 9\]"):
        fit(train, held, rows[:, :9])
    with pytest.raises(DataError, match="values do not differ within"):
        fit(replace(train, values=np.ones_like(train.values)), held, rows)
    alone = train.values.copy()
    alone[:, 1:] = np.nan
    with pytest.raises(DataError, match="two candidates"):
        fit(replace(train, values=alone), held, rows)
    alone = held.values.copy()
    alone[:, 1:] = np.nan
    with pytest.raises(DataError, match="two candidates"):
        fit(train, replace(held, values=alone), rows)
    with pytest.raises(NumericError, match="diverged in epoch 1; lower the learning rate"), np.errstate(all="ignore"):
        fit(train, held, rows, FitConfig(rate=1e30, hidden=8))


@pytest.mark.parametrize(
    "name, value",
    [
        ("rank", 0),
        ("hidden", -1),
        ("epochs", 0),
        ("patience", 0),
        ("batch", 0),
        ("seed", -1),
        ("activation", "tanh"),
        ("weighting", "sqrt"),
        ("decay", math.nan),
        ("taken", -1.0),
        ("rate", 0.0),
    ],
)
def test_refused_configurations(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        FitConfig(**{name: value})
