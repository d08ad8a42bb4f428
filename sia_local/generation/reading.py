"""A given text under the base: the log-probability of each of its tokens. Nothing is generated and nothing steered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import NumericError
from ..llama.engine import Engine
from ..steering.entropy import log_partition, top_candidates


@dataclass(frozen=True, slots=True)
class Read:
    """A token of a given text: its log-probability (None for the first, which nothing foretells) and the likeliest
    tokens in its place, best first, as (id, log-probability)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def read(engine: Engine, slot: int, tokens: Sequence[int], top: int = 0) -> Iterator[list[Read]]:
    """Reads a text in pieces, between which other slots may decode; the slot ends up holding it.

    Raises NumericError for NaN logits.
    """
    yield [Read(tokens[0])]
    at = 1
    for rows in engine.trail(slot, (), tokens):
        piece: list[Read] = []
        for row, token in zip(rows, tokens[at : at + len(rows)], strict=False):
            log_z = log_partition(row)
            if not np.isfinite(log_z):
                raise NumericError(f"the base model's logits at token {at + len(piece)} contain NaN or infinity")
            likeliest = top_candidates(row, top) if top else ()
            best = tuple((int(i), float(row[i]) - log_z) for i in likeliest)
            piece.append(Read(token, float(row[token]) - log_z, best))
        at += len(rows)
        yield piece
