"""Entropies and candidates of one row of logits. Pure numpy, float64 results, nats.

`full` statistics touch the whole vocabulary once; `topk` ones only the k candidates. The official code of SIA
uses the top-k entropy (its maximum is ln k), and its threshold of about 1.0 refers to that one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

_BLOCKS = 64
_PIECE = 1 << 14


def top_candidates(logits: Floats, k: int) -> npt.NDArray[np.int32]:
    """Ids of the k largest logits, best first, ties by the lower id. int32[min(k, n)].

    Over a large vocabulary one pass finds the maximum of every block of 64. The k-th largest of these bounds the k
    best logits from below, and only blocks that reach it hold any of them.
    """
    n = logits.shape[0]
    k = min(k, n)
    width = n // _BLOCKS
    if width > 4 * k:
        body = logits[: width * _BLOCKS].reshape(_BLOCKS, width)
        peaks = body.max(axis=0)
        bound = np.partition(peaks, width - k)[width - k]
        blocks = np.flatnonzero(peaks >= bound)
        place, block = np.nonzero(body[:, blocks] >= bound)
        ids = place * width + blocks[block]
        if n > width * _BLOCKS:
            ids = np.concatenate([ids, np.arange(width * _BLOCKS, n)])
    else:
        ids = np.flatnonzero(logits >= np.partition(logits, n - k)[n - k])
    return ids[np.lexsort((ids, -logits[ids]))][:k].astype(np.int32)


def log_partition(logits: Floats, top: np.floating[Any] | None = None) -> float:
    """log sum exp over the whole vocabulary. top: the largest of it, where that is known."""
    top = logits.max() if top is None else top
    if not np.isfinite(top):
        return float(top)
    # In pieces that stay in the cache: a temporary of a large vocabulary is fresh pages at every token.
    part, total = np.empty(min(_PIECE, len(logits)), logits.dtype), 0.0
    for at in range(0, len(logits), _PIECE):
        piece = logits[at : at + _PIECE]
        shifted = np.subtract(piece, top, out=part[: len(piece)])
        total += float(np.exp(shifted, out=shifted).sum())
    return float(top) + math.log(total)


def entropy(logits: Floats) -> float:
    """Entropy of softmax(logits) in nats: of the whole row (`full`) or of k candidates' logits (`topk`).

    Banned tokens (-inf) count as probability 0.
    """
    # exp(-700) is 0 in float32 and 1e-304 in float64: the floor turns 0 * -inf into 0.
    shifted = np.maximum(logits - logits.max(), -700.0)
    weights = np.exp(shifted)
    total = float(weights.sum(dtype=np.float64))
    return max(0.0, float(np.log(total)) - float(np.einsum("i,i->", weights, shifted)) / total)


def varentropy(logits: Floats) -> float:
    """Variance of -log p under softmax(logits), nats squared."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    weights = np.exp(shifted)
    weights /= weights.sum()
    alive = weights > 0
    surprise = -np.log(weights[alive])
    p = weights[alive]
    mean = np.einsum("i,i->", p, surprise)
    return float(np.einsum("i,i->", p, (surprise - mean) ** 2))
