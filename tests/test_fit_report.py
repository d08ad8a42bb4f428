"""What is told of a fit: the report's numbers, and the table of a number a token beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from planted import N_VOCAB, planted

from sia_local.errors import DataError
from sia_local.learning.baseline import predict_table
from sia_local.learning.junctions import Junctions, split
from sia_local.learning.report import compare


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
