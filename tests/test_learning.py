"""Learning a Q-head: shards, gradients against PyTorch, a planted Q found again, the report's numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sia_local.errors import ConfigError, DataError, NumericError
from sia_local.learning.baseline import predict_table
from sia_local.learning.fit import Epoch, FitConfig, candidate_weights, fit, predict
from sia_local.learning.junctions import (
    Junctions,
    JunctionWriter,
    Transitions,
    read_junctions,
    read_transitions,
    split,
)
from sia_local.learning.network import (
    Adam,
    centred,
    forward,
    initial,
    loss_and_gradients,
    taken_loss_and_gradients,
)
from sia_local.learning.report import compare

N_VOCAB = 90


def planted(n: int = 3000, k: int = 6, n_embd: int = 24, rank: int = 3, seed: int = 0) -> tuple[Junctions, np.ndarray]:
    """(junctions whose values are a bilinear Q plus a level of each junction, embedding rows)."""
    rng = np.random.default_rng(seed)
    rows = (0.05 + 0.1 * rng.standard_normal((N_VOCAB, n_embd))).astype(np.float32)
    hidden = (2 + 3 * rng.standard_normal((n, n_embd))).astype(np.float32)
    ids = np.argsort(rng.random((n, N_VOCAB)), axis=1)[:, :k].astype(np.int32)
    f = hidden @ rng.standard_normal((n_embd, rank)) / 3
    g, u = rng.standard_normal((n_embd, rank)), rng.standard_normal(n_embd)
    q = np.einsum("jr,jkr->jk", f, rows[ids] @ g) + rows[ids] @ u
    values = (0.2 * q + rng.standard_normal((n, 1))).astype(np.float32)
    logits = (2 * rng.standard_normal((n, k))).astype(np.float32)
    return Junctions(hidden, ids, logits, values, np.arange(n, dtype=np.int32) // 10), rows


def small(n: int = 4, k: int = 3, prompt: int = 0) -> Junctions:
    rng = np.random.default_rng(prompt)
    return Junctions(
        rng.standard_normal((n, 5)).astype(np.float16),
        rng.integers(0, 9, (n, k)).astype(np.int32),
        rng.standard_normal((n, k)).astype(np.float32),
        rng.standard_normal((n, k)).astype(np.float32),
        np.full(n, prompt, np.int32),
    )


def same(a: Junctions, b: Junctions) -> bool:
    return all(np.array_equal(x, getattr(b, name), equal_nan=True) for name, x in vars(a).items() if x is not None)


# Shards.


def test_shards_continue_after_an_interruption(tmp_path: Path) -> None:
    settings = {"base": "b", "k": 3}
    with JunctionWriter(tmp_path, settings, per_shard=6) as out:
        out.add(7, small(prompt=1))
        out.add(3, None)
        out.add(5, small(prompt=2))
        assert [p.name for p in sorted(tmp_path.glob("*.npz"))] == ["shard-00000.npz"]
        out.add(9, small(prompt=3))
    with JunctionWriter(tmp_path, settings, per_shard=6) as out:
        assert out.finished == {3, 5, 7, 9}
        with pytest.raises(ConfigError, match="text 7 is in"):
            out.add(7, small())
        out.add(8, small(prompt=4))
    junctions, found = read_junctions(tmp_path)
    assert found == {"format": "sia-junctions-1", **settings}
    assert junctions.prompts.tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert same(junctions.take(slice(4, 8)), small(prompt=2))
    assert junctions.hidden.dtype == np.float16


def test_a_text_without_junctions_is_finished_too(tmp_path: Path) -> None:
    with JunctionWriter(tmp_path, {}) as out:
        out.add(1, None)
    assert JunctionWriter(tmp_path, {}).finished == {1}
    with pytest.raises(DataError, match="holds no junctions yet"):
        read_junctions(tmp_path)


def test_an_error_keeps_the_whole_texts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), JunctionWriter(tmp_path, {}) as out:
        out.add(1, small())
        raise KeyboardInterrupt
    assert len(read_junctions(tmp_path)[0]) == 4


def test_a_kill_costs_no_more_than_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sia_local.learning.junctions.time.monotonic", lambda: now[0])
    out = JunctionWriter(tmp_path, {})
    for text, seconds in enumerate((15.0, 6.0, 15.0)):
        now[0] += seconds
        out.add(text, small())
    assert JunctionWriter(tmp_path, {}).finished == {0, 1}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    JunctionWriter(tmp_path, {"k": 10, "teacher": "v"})
    with pytest.raises(ConfigError, match="was begun with k = 10, now it is 12"):
        JunctionWriter(tmp_path, {"k": 12, "teacher": "v"})
    with pytest.raises(ConfigError, match="was begun with seed = None, now it is 3"):
        JunctionWriter(tmp_path, {"k": 10, "teacher": "v", "seed": 3})


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no settings\.json"):
        read_junctions(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_junctions(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="not of the format sia-junctions-1"):
        read_junctions(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"format": "sia-junctions-1"}))
    (tmp_path / "shard-00000.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"shard-00000\.npz: not a readable shard"):
        read_junctions(tmp_path)
    np.savez(tmp_path / "shard-00000.npz", texts=np.zeros(1, np.int32), secrets=np.zeros(1))
    with pytest.raises(DataError, match="holds secrets, which no shard has"):
        read_junctions(tmp_path)
    np.savez(tmp_path / "shard-00000.npz", secrets=np.zeros(1))
    with pytest.raises(DataError, match="not a readable shard"):
        JunctionWriter(tmp_path, {})


def test_counts_and_untried_candidates_survive(tmp_path: Path) -> None:
    j = small()
    values = j.values.copy()
    values[0, 1] = np.nan
    counts = np.ones_like(values)
    counts[1, 2] = 0
    with JunctionWriter(tmp_path, {}) as out:
        out.add(0, replace(j, values=values, counts=counts))
    back = read_junctions(tmp_path)[0]
    assert same(back, replace(j, values=values, counts=counts))
    assert np.argwhere(~back.tried()).tolist() == [[0, 1], [1, 2]]
    assert back.numbers()[0, 1] == 0


def test_transitions_travel_beside_junctions_and_older_shards_have_none(tmp_path: Path) -> None:
    def tokens(prompt: int, width: int = 5) -> Transitions:
        rng = np.random.default_rng(prompt)
        hidden = rng.standard_normal((3, width)).astype(np.float16)
        gains = rng.standard_normal(3).astype(np.float32)
        return Transitions(hidden, np.arange(3, dtype=np.int32), gains, np.full(3, prompt, np.int32))

    with JunctionWriter(tmp_path, {}, per_shard=4) as out:
        out.add(0, small(prompt=1))
    assert read_transitions(tmp_path) is None
    with JunctionWriter(tmp_path, {}) as out:
        out.add(1, small(prompt=2), tokens(2))
        out.add(2, None, tokens(3))
    found = read_transitions(tmp_path)
    assert found is not None and found.prompts.tolist() == [2, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(found.gains, np.concatenate([tokens(2).gains, tokens(3).gains]))
    np.testing.assert_array_equal(found.take(slice(3, 6)).hidden, tokens(3).hidden)
    assert read_junctions(tmp_path)[0].prompts.tolist() == [1] * 4 + [2] * 4
    with JunctionWriter(tmp_path, {}) as out:
        out.add(3, None, tokens(4, width=6))
    with pytest.raises(DataError, match=r"transitions of widths \[5, 6\]"):
        read_transitions(tmp_path)
    with pytest.raises(DataError, match="expected as many hidden states"):
        replace(tokens(1), ids=np.zeros(2, np.int32))
    with pytest.raises(DataError, match="transitions hold NaN"):
        replace(tokens(1), gains=np.full(3, np.nan, np.float32))


def test_refused_junctions() -> None:
    j = small()
    with pytest.raises(DataError, match=r"logits are \[4, 2\], expected \[4, 3\]"):
        replace(j, logits=j.logits[:, :2])
    with pytest.raises(DataError, match="hidden state of the junctions is NaN"):
        replace(j, hidden=np.full_like(j.hidden, np.inf))
    with pytest.raises(DataError, match="infinite values or NaN logits"):
        replace(j, values=np.full_like(j.values, -np.inf))
    with pytest.raises(DataError, match="counts of junctions are negative"):
        replace(j, counts=np.full_like(j.values, -1))


def test_no_prompt_is_on_both_sides() -> None:
    junctions, _ = planted(200)
    train, held = split(junctions, 0.25, seed=1)
    assert len(train) + len(held) == 200
    assert set(train.prompts.tolist()).isdisjoint(held.prompts.tolist())
    assert len(set(held.prompts.tolist())) == 5
    assert same(held, split(junctions, 0.25, seed=1)[1])
    with pytest.raises(DataError, match="1 prompts; expected at least 2"):
        split(small())
    with pytest.raises(ConfigError, match=r"share is 1\.0"):
        split(junctions, 1.0)


# Training.


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


# The report.


def test_golden_report() -> None:
    j = Junctions(
        np.zeros((2, 1), np.float32),
        np.zeros((2, 3), np.int32),
        np.array([[0, 0, -1], [1, 0, 0]], np.float32),
        np.array([[1, -1, 0], [0, 0, 3]], np.float32),
        np.zeros(2, np.int32),
    )
    report = compare(j, np.array([[5, 3, 4], [1, 1, 1]], np.float32), beta=1.0)
    # Centred, the teacher is [1, -1, 0] and [-1, -1, 2]: variance 8; the first junction is exact, the second 6 off.
    assert report.r2 == pytest.approx(0.25)
    s, t = math.sqrt(2 / 3) / 2, (math.sqrt(2 / 3) + math.sqrt(2)) / 2
    assert (report.spread, report.teacher_spread) == (pytest.approx(s), pytest.approx(t))
    assert report.agreement == 0.5
    assert (report.flip_rate, report.teacher_flip_rate) == (0.0, 0.5)

    def gain(values: list[float], logits: list[float], told: list[float], spread: float) -> float:
        z, v, q = np.array(logits), np.array(values), np.array(told) / spread
        p, tilted = np.exp(z) / np.exp(z).sum(), np.exp(z + q) / np.exp(z + q).sum()
        return float(tilted @ v - p @ v)

    ours = gain([1, -1, 0], [0, 0, -1], [5, 3, 4], s) / 2
    theirs = (gain([1, -1, 0], [0, 0, -1], [1, -1, 0], t) + gain([0, 0, 3], [1, 0, 0], [0, 0, 3], t)) / 2
    assert report.gain == pytest.approx(ours)
    assert report.teacher_gain == pytest.approx(theirs)
    assert report.gain_share == pytest.approx(ours / theirs)


def test_the_teacher_itself_is_perfect_and_a_constant_is_worth_nothing() -> None:
    junctions, _ = planted(50)
    perfect = compare(junctions, junctions.values + 3 * np.arange(50, dtype=np.float32)[:, None])
    assert (perfect.r2, perfect.r2_p) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (perfect.agreement, perfect.gain_share) == (1.0, pytest.approx(1.0))
    nothing = compare(junctions, np.zeros_like(junctions.values))
    assert (nothing.r2, nothing.gain, nothing.flip_rate) == (0.0, 0.0, 0.0)


def test_untried_candidates_do_not_count() -> None:
    junctions, _ = planted(50)
    rng = np.random.default_rng(6)
    told = junctions.values + rng.standard_normal(junctions.values.shape).astype(np.float32)
    values = junctions.values.copy()
    values[:, 4:] = np.nan
    cut = Junctions(
        junctions.hidden, junctions.ids[:, :4], junctions.logits[:, :4], junctions.values[:, :4], junctions.prompts
    )
    partly, whole = compare(replace(junctions, values=values), told), compare(cut, told[:, :4])
    assert vars(partly) == pytest.approx(vars(whole))


def test_nothing_to_compare_is_refused() -> None:
    junctions, _ = planted(5)
    with pytest.raises(DataError, match="none of the 5 junctions"):
        compare(replace(junctions, values=np.full_like(junctions.values, np.nan)), junctions.values)


def test_table_knows_tokens_and_nothing_else() -> None:
    junctions, _ = planted(2000)
    token = np.linspace(-1, 1, N_VOCAB).astype(np.float32)
    level = np.arange(2000, dtype=np.float32)[:, None] % 7
    train, held = split(replace(junctions, values=token[junctions.ids] + level), 0.2)
    assert compare(held, predict_table(train, held)).r2 > 0.99
    unseen = replace(held, ids=held.ids + 1000)
    assert not predict_table(train, unseen).any()
