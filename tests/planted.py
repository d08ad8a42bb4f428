"""Junctions whose values are known: a Q of few weights, and small ones at random."""

from __future__ import annotations

import numpy as np

from sia_local.learning.junctions import Junctions

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
