"""Some slots of an engine as an engine of their own: readers of one model share a context, and its decodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .context import Context
from .engine import Engine
from .library import FloatArray
from .reuse import Ids
from .slots import Slot
from .store import StateStore


class EnginePart:
    """The n slots of `whole` from `first` on, numbered from 0. Methods and counts are those of Engine."""

    def __init__(self, whole: Engine, first: int, n: int):
        self.whole, self.first, self._n = whole, first, n

    @property
    def context(self) -> Context:
        return self.whole.context

    @property
    def slots(self) -> list[Slot]:
        return self.whole.slots[self.first : self.first + self._n]

    @property
    def decoded_tokens(self) -> int:
        return self.whole.decoded_tokens

    @property
    def store(self) -> StateStore | None:
        return self.whole.store

    @store.setter
    def store(self, store: StateStore | None) -> None:
        self.whole.store = store

    def begin(self, slot: int, tokens: Ids) -> int:
        return self.whole.begin(self.first + slot, tokens)

    def room(self, slot: int) -> int:
        return self.whole.room(self.first + slot)

    def accept(self, slot: int, token: int) -> None:
        self.whole.accept(self.first + slot, token)

    def read_ahead(self, slot: int) -> None:
        self.whole.read_ahead(self.first + slot)

    def behind(self, slot: int) -> bool:
        return self.whole.behind(self.first + slot)

    def read_piece(self, slot: int) -> bool:
        return self.whole.read_piece(self.first + slot)

    def logits(self, slots: Sequence[int]) -> list[FloatArray]:
        return self.whole.logits([self.first + slot for slot in slots])

    def trail(self, slot: int, prefix: Ids, tokens: Ids, *, hidden: bool = False) -> Iterator[FloatArray]:
        return self.whole.trail(self.first + slot, prefix, tokens, hidden=hidden)

    def release(self, slot: int) -> None:
        self.whole.release(self.first + slot)


AnyEngine = Engine | EnginePart


def logits_together(engines: Sequence[AnyEngine], slots: Sequence[int]) -> list[list[FloatArray]]:
    """Output rows of the same slots of several engines: by one decode if they are parts of one, else by one each."""
    parts = [engine for engine in engines if isinstance(engine, EnginePart)]
    if len(parts) < len(engines) or len({id(part.whole) for part in parts}) != 1:
        return [engine.logits(slots) for engine in engines]
    rows = parts[0].whole.logits([part.first + slot for part in parts for slot in slots])
    return [rows[at : at + len(slots)] for at in range(0, len(rows), len(slots))]
