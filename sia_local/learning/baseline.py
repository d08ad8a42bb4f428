"""What a Q-head has to beat: one number a token, whatever came before."""

from __future__ import annotations

import numpy as np

from .fit import Float32, candidate_weights
from .junctions import Junctions


def predict_table(junctions: Junctions, held_out: Junctions, weighting: str = "uniform") -> Float32:
    """What one number a token would say of the held-out candidates, float32 [J, k]: the baseline to beat.

    The numbers are fitted to `junctions` by alternating least squares with a prior of one candidate; a token never
    seen counts as 0.
    """
    ids, index = np.unique(junctions.ids, return_inverse=True)
    index = index.ravel()
    weights = candidate_weights(junctions, weighting).astype(np.float64)
    values = junctions.numbers()
    total = weights.sum(axis=1, keepdims=True)
    prior = 1.0 / junctions.k
    mass = np.bincount(index, weights.ravel(), len(ids)) + prior
    numbers = np.zeros(len(ids))
    for _ in range(60):
        left = (weights * (values - numbers[index].reshape(values.shape))).sum(axis=1, keepdims=True)
        level = left / np.where(total > 0, total, 1.0)
        numbers = np.bincount(index, (weights * (values - level)).ravel(), len(ids)) / mass
    at = np.minimum(np.searchsorted(ids, held_out.ids), len(ids) - 1)
    return np.where(ids[at] == held_out.ids, numbers[at], 0.0).astype(np.float32)
