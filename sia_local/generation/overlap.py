"""Prompts read side by side: the base's and the value source's at once, on some of the cores each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..llama.engine import Engine
from ..llama.library import FloatArray
from ..llama.part import AnyEngine


class SideBySide:
    """A base for `decode` whose prompts are read while `others`, the engines of the value source, read theirs.

    Otherwise they wait for their first junction, which may never come. The cores are divided by the size of the models
    for as long as both read: a thread more in one decode could not join in the other's.
    """

    def __init__(self, base: Engine, others: Sequence[AnyEngine]):
        self._base, self._others = base, others
        self._unread: list[int] = []
        whole = base.context.model.size_bytes
        share = whole / (whole + sum(other.context.model.size_bytes for other in others))
        n = base.context.options.n_threads
        self._base_threads = min(max(1, round(n * share)), max(1, n - 1))
        self._other_threads = max(1, n - self._base_threads)

    def best_slot(self, free: Sequence[int], tokens: Sequence[int]) -> int:
        return self._base.best_slot(free, tokens)

    def begin(self, slot: int, tokens: Sequence[int]) -> int:
        self._unread.append(slot)
        return self._base.begin(slot, tokens)

    def read_piece(self, slot: int) -> bool:
        if not self._base.behind(slot):
            return False
        with self._beside(lambda other: other.read_piece(slot)):
            return self._base.read_piece(slot)

    def accept(self, slot: int, token: int) -> None:
        self._base.accept(slot, token)

    def logits(self, slots: Sequence[int]) -> list[FloatArray]:
        unread = [slot for slot in self._unread if slot in slots]
        self._unread = [slot for slot in self._unread if slot not in slots]
        if not unread:
            return self._base.logits(slots)

        def read(other: AnyEngine) -> None:
            for slot in unread:
                if other.behind(slot):
                    other.read_piece(slot)
                else:
                    other.read_ahead(slot)

        with self._beside(read):
            return self._base.logits(slots)

    @contextmanager
    def _beside(self, read: Callable[[AnyEngine], object]) -> Iterator[None]:
        """Reads with the others while the block reads with the base."""
        # Imported late: it brings `logging` along, which no start should wait for.
        from concurrent.futures import ThreadPoolExecutor

        with self._cores_divided(), ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: [read(other) for other in self._others])
            try:
                yield
            finally:
                reading.result()

    @contextmanager
    def _cores_divided(self) -> Iterator[None]:
        contexts = [other.context for other in self._others]
        try:
            self._base.context.set_threads(self._base_threads)
            for context in contexts:
                context.set_threads(self._other_threads)
            yield
        finally:
            for context in (self._base.context, *contexts):
                context.set_threads(context.options.n_threads)
