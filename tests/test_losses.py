"""The losses and the measures of training, by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from sia_convert.data.examples import Example
from sia_convert.data.trajectories import Branch
from sia_convert.train.branches import branch_loss, draw
from sia_convert.train.metrics import pairwise_accuracy, r2, spearman
from sia_convert.train.model import value_loss

VALUES = torch.tensor([[9.0, 2.0, 3.0, 9.0], [0.5, 1.0, 4.0, 6.0]])
MASK = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
REWARDS = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "lam", "wanted"),
    [
        ("trajectory-mean", 1.0, [(2.5 - 1) ** 2, (11 / 3 - 2) ** 2]),
        ("per-token", 1.0, [(1 + 4) / 2, (1 + 4 + 16) / 3]),
        ("td-lambda", 1.0, [(1 + 4) / 2, (1 + 4 + 16) / 3]),
        ("td-lambda", 0.0, [(1 + 4) / 2, (9 + 4 + 16) / 3]),
        # lambda 1/2: targets 2, 1 and, for the second, 4, 4, 2.
        ("td-lambda", 0.5, [(0 + 4) / 2, (9 + 0 + 16) / 3]),
    ],
)
def test_losses_by_hand(kind: str, lam: float, wanted: list[float]) -> None:
    np.testing.assert_allclose(value_loss(VALUES, MASK, REWARDS, kind, lam), wanted, rtol=1e-6)


def test_the_loss_on_branches_by_hand() -> None:
    def tried(at: int, *candidates: tuple[int, float, int]) -> Branch:
        ids, means, counts = zip(*candidates, strict=True)
        return Branch(at, ids, (0.0,) * len(ids), means, (0.0,) * len(ids), counts)

    first = tried(1, (7, 1.0, 1), (8, 3.0, 3))
    second = tried(0, (9, 0.0, 2), (6, 1.0, 2))
    texts = [Example((1, 2, 3, 4), 2, 0, 0.5, (first, second)), Example((1, 5), 1, 1, 0.5)]
    all_of_them = draw(texts, None)
    rows = [(row.ids, row.start) for row in all_of_them.rows]
    assert rows == [((1, 2, 3, 7), 3), ((1, 2, 3, 8), 3), ((1, 2, 9), 2), ((1, 2, 6), 2)]
    values, targets = (
        torch.tensor([4.0, 2.0, 5.0, 5.0], requires_grad=True),
        torch.tensor([row.reward for row in all_of_them.rows]),
    )
    # V - R: 3, -1 with weights 1, 3, mean 0: (9 + 3) / 4; then 5, 4 with equal weights: 1 / 4. A level changes nothing.
    loss = branch_loss(values, targets, all_of_them, 2)
    assert loss.tolist() == [pytest.approx((3 + 0.25) / 2), 0.0]
    assert branch_loss(values + 7, targets, all_of_them, 2).tolist() == pytest.approx(loss.tolist())
    loss.sum().backward()
    assert values.grad is not None and values.grad.tolist() == pytest.approx([0.75, -0.75, 0.25, -0.25])
    one = draw(texts, np.random.default_rng(0))
    assert one.rows in (all_of_them.rows[:2], all_of_them.rows[2:])
    assert branch_loss(torch.zeros(0), torch.zeros(0), draw(texts[1:], None), 1).tolist() == [0.0]


def test_metrics_by_hand() -> None:
    predicted, actual = np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 2.0])
    assert r2(predicted, actual) == pytest.approx(1 - 5 / 2)
    # ranks 1, 2.5, 2.5, 4 and 1, 4, 2.5, 2.5: covariance 2.25, variances 4.5
    assert spearman(predicted, actual) == pytest.approx(0.5)
    # group 0: (1, 3) right; group 1: equal rewards do not count; group 2: a tied prediction is half
    groups = [0, 0, 1, 1, 2, 2]
    right = pairwise_accuracy(np.array([1.0, 2, 2, 4, 5, 5]), np.array([1.0, 3, 2, 2, 0, 1]), groups)
    assert right == 0.75
