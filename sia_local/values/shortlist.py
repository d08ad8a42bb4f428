"""A Q-head picks the few candidates that count, and a source that costs rows scores those alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from ..llama.engine import Engine
from ..llama.library import FloatArray
from ..llama.part import AnyEngine
from ..records import Float64, IntArray, Prompt

if TYPE_CHECKING:
    from .sources import Source

# Spreads of the Q-head by which its favourites go before the base's: about where steering ends up.
LEAN = 2.0


class Shortlisted:
    """Values of `dear` for the `n` candidates with the highest z + 2 Q / spread, of `quick` for the rest.

    Q is known up to a constant of the prefix only, so the shortlist keeps the mean that Q gives it: the differences
    within it are dear's, those to the rest are quick's. Follows `sources.Source`; base: the engine whose rows of
    logits the candidates come from.
    """

    def __init__(self, quick: Source, dear: Source, n: int, base: Engine):
        if not 1 <= n <= dear.max_candidates:
            raise ConfigError(f"a shortlist of {n}; expected 1 to {dear.max_candidates} candidates for {dear.name}")
        self.quick, self.dear, self.n, self._base = quick, dear, n, base
        self.spread, self.max_candidates = dear.spread, quick.max_candidates
        self.shares_base, self.rates_texts = dear.shares_base, dear.rates_texts
        self.absolute = False

    @property
    def name(self) -> str:
        return f"{self.dear.name} for {self.n} of {self.quick.name}"

    @property
    def engines(self) -> list[AnyEngine]:
        return [*self.quick.engines, *self.dear.engines]

    def close(self) -> None:
        self.quick.close()
        self.dear.close()

    def begin(self, slot: int, prompt: Prompt) -> None:
        self.quick.begin(slot, prompt)
        self.dear.begin(slot, prompt)

    def room(self, slot: int) -> int:
        return min(self.quick.room(slot), self.dear.room(slot))

    def accept(self, slot: int, token: int) -> None:
        self.quick.accept(slot, token)
        self.dear.accept(slot, token)

    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int] = ()) -> list[Float64]:
        """One score of each source for all requests, float64 [k] each."""
        values = [np.array(q, np.float64) for q in self.quick.score(requests, ())]
        unit = self.quick.spread or 1.0
        rows = self._base.logits([slot for slot, _ in requests])
        # In the order in which they were asked, most likely first.
        best = [
            np.sort(np.argsort(-(row[ids] + LEAN * q / unit), kind="stable")[: self.n])
            for row, (_, ids), q in zip(rows, requests, values, strict=True)
        ]
        asked = [(slot, ids[at]) for (slot, ids), at in zip(requests, best, strict=True)]
        for q, at, exact in zip(values, best, self.dear.score(asked, also), strict=True):
            q[at] = exact - np.mean(exact) + q[at].mean()
        return values

    def levels(self, hidden: FloatArray) -> Float64 | None:
        return self.dear.levels(hidden)

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        return self.dear.trajectory(slot, prompt, tokens)
