"""How well values predict rewards: R², Spearman, and the share of a prompt's pairs put in the right order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def r2(predicted: np.ndarray, actual: np.ndarray) -> float:
    """1 - residual / total sum of squares; NaN where `actual` is constant."""
    total = float(((actual - actual.mean()) ** 2).sum())
    return 1.0 - float(((predicted - actual) ** 2).sum()) / total if total > 0 else float("nan")


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean rank; float64."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2.0)[inverse.reshape(-1)]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of the ranks; NaN where one side is constant."""
    ra, rb = ranks(np.asarray(a)), ranks(np.asarray(b))
    if len(ra) < 2 or ra.std() == 0 or rb.std() == 0:
        return float("nan")
    return float(np.corrcoef(ra, rb)[0, 1])


def pairwise_accuracy(predicted: np.ndarray, actual: np.ndarray, groups: Sequence[int]) -> float:
    """Share of pairs with one group and different rewards that the prediction orders rightly; a tie is half."""
    right = pairs = 0.0
    keys = np.asarray(groups)
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        i, j = np.triu_indices(len(rows), 1)
        wanted = np.sign(actual[rows[i]] - actual[rows[j]])
        given = np.sign(predicted[rows[i]] - predicted[rows[j]])
        used = wanted != 0
        right += float((given[used] == wanted[used]).sum()) + 0.5 * float((given[used] == 0).sum())
        pairs += float(used.sum())
    return right / pairs if pairs else float("nan")


def of_texts(table: np.ndarray, rewards: np.ndarray, groups: Sequence[int]) -> dict[str, float]:
    """What a run reports of held-out texts. A row of `table` is a text's loss, squared error a token, mean of V over
    the response and V at its last token; rewards [n], standardised; groups: the prompt of each text."""
    losses, squares, means, lasts = table.T
    return {
        "loss": float(losses.mean()),
        "r2": r2(means, rewards),
        "r2_last": r2(lasts, rewards),
        "r2_token": 1.0 - float(squares.mean()) / max(float(rewards.var()), 1e-12),
        "spearman": spearman(means, rewards),
        "spearman_last": spearman(lasts, rewards),
        "pairwise": pairwise_accuracy(means, rewards, groups),
        "pairwise_last": pairwise_accuracy(lasts, rewards, groups),
    }
