"""What a slot of an engine holds. Imports no llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .library import FloatArray


@dataclass
class Slot:
    """tokens: everything accepted; n_past: how many of them the KV cache holds; row: the output row that
    belongs to the last token, if the latest decode computed it; hidden: the hidden state behind the row after
    `hidden_at` tokens, in an engine that keeps them; open: candidates of an open branch, then their output rows and
    hidden states. unsettled: a change of it was begun and did not end, so that cache and numbers may be apart."""

    tokens: list[int] = field(default_factory=list)
    n_past: int = 0
    row: FloatArray | None = None
    hidden: FloatArray | None = None
    hidden_at: int = -1
    open: list[int] | None = None
    open_rows: FloatArray | None = None
    open_hidden: FloatArray | None = None
    unsettled: bool = False

    def shut(self) -> None:
        """No branch is open."""
        self.open = self.open_rows = self.open_hidden = None

    def take(self, winner: int) -> None:
        """One of the open candidates is the next token; the cache holds it already."""
        assert self.open is not None
        self.tokens.append(self.open[winner])
        self.n_past += 1
        self.row = None if self.open_rows is None else self.open_rows[winner]
        if self.open_hidden is not None:
            self.hidden, self.hidden_at = self.open_hidden[winner].copy(), len(self.tokens)
        self.shut()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around what changes the cache and the numbers here together. What ends it early leaves the slot unsettled."""
        self.unsettled = True
        yield
        self.unsettled = False
