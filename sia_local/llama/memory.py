"""How candidates branch off a sequence and come back: the two kinds of memory a model can have.

Attention keeps a cell a token, so a branch that lost forgets its last cell: `Rollback`. A recurrent state, alone or
beside attention, is that of the last token it read and cannot go back: every branch gets a copy, and what must go
back is copied anew from one that stands there: `CopyState`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .context import Context
from .library import IntArray

Bytes = npt.NDArray[np.uint8]


class Memory(Protocol):
    """sequences [slots, 1 + branches]: the main sequence of each slot, then its shadows. A slot holds `held` tokens.

    reads_apart: what is queued needs a decode before that of candidates.
    """

    sequences: IntArray
    reads_apart: bool

    def carried(self, slot: int) -> IntArray:
        """The sequences that a queued token belongs to."""
        ...

    def reachable(self, slot: int, keep: int, held: int) -> int:
        """The most tokens, at most `keep`, that a slot can go back to."""
        ...

    def lendable(self, slot: int, wanted: int, held: int) -> int:
        """The most tokens, at most `wanted`, that another slot can have of this one, once it has read them."""
        ...

    def forget(self, slot: int, keep: int, held: int) -> int:
        """Goes back to reachable(keep), which it returns."""
        ...

    def clear(self, slot: int) -> None:
        """Holds nothing, whatever an interrupt left."""
        ...

    def share(self, donor: int, slot: int, n: int, held: int) -> None:
        """Gives an empty slot the first n tokens of another that holds `held`."""
        ...

    def goes_back(self, n: int) -> bool:
        """Whether a state of n tokens that was copied out and back can be cut to fewer."""
        ...

    def states(self, slot: int, held: int) -> Iterable[tuple[int, int]]:
        """The sequences whose states are worth keeping when a slot is lost, each with the tokens it has read."""
        ...

    def restore(self, slot: int, data: Bytes, n: int) -> int:
        """Gives an empty slot a state of n tokens; returns what it holds, 0 where llama.cpp refuses it."""
        ...

    def mark(self, slot: int, at: int, held: int) -> None:
        """The slot will come back to its first `at` tokens, if memory for that was set aside."""
        ...

    def before_mark(self, slot: int, held: int) -> int:
        """Tokens that a slot must read and stop, so that it can come back there."""
        ...

    def read(self, slot: int, held: int) -> None:
        """The slot has read up to here."""
        ...

    def open(self, slot: int, held: int) -> None:
        """The shadows take the place of the main sequence: candidates come next."""
        ...

    def commit(self, slot: int, winner: int, opened: int, held: int) -> None:
        """Of `opened` candidates at position `held` one stays, for all sequences of the slot."""
        ...

    def close(self, slot: int, held: int) -> int:
        """No candidate stays; returns what the slot holds."""
        ...

    def recover(self, slot: int, held: int) -> int:
        """After a decode that failed: the slot as it was before, or as much of it as can be trusted; returns that."""
        ...


NO_MARK = 1 << 30


class Rollback:
    """Attention. A queued token belongs to main and shadows at once, and candidates ride in the same decode."""

    reads_apart = False

    def __init__(self, context: Context, sequences: IntArray):
        self.context, self.sequences = context, sequences
        self._window = context.model.window
        # Behind a window a state that was copied out has only what its end sees: no going back before it.
        self._first = [0] * len(sequences)

    def carried(self, slot: int) -> IntArray:
        row: IntArray = self.sequences[slot]
        return row

    def reachable(self, slot: int, keep: int, held: int) -> int:
        return min(keep, held) if keep >= self._first[slot] else 0

    def lendable(self, slot: int, wanted: int, held: int) -> int:
        return wanted if wanted >= self._first[slot] else 0

    def forget(self, slot: int, keep: int, held: int) -> int:
        keep = self.reachable(slot, keep, held)
        for seq in self.sequences[slot]:
            self.context.seq_rm(int(seq), keep)
        if keep == 0:
            self._first[slot] = 0
        return keep

    def clear(self, slot: int) -> None:
        self.forget(slot, 0, 0)

    def share(self, donor: int, slot: int, n: int, held: int) -> None:
        self._first[slot] = self._first[donor]
        for seq in self.sequences[slot]:
            self.context.seq_share(int(self.sequences[donor, 0]), int(seq), n)

    def goes_back(self, n: int) -> bool:
        return n <= self._window or self._window == 0

    def states(self, slot: int, held: int) -> list[tuple[int, int]]:
        return [(int(self.sequences[slot, 0]), held)]

    def restore(self, slot: int, data: Bytes, n: int) -> int:
        main, *shadows = map(int, self.sequences[slot])
        if not self.context.set_state(main, data):
            return 0
        for shadow in shadows:
            self.context.seq_share(main, shadow, n)
        self._first[slot] = 0 if self.goes_back(n) else n
        return n

    def mark(self, slot: int, at: int, held: int) -> None:
        """It can go back anywhere."""

    def before_mark(self, slot: int, held: int) -> int:
        return NO_MARK

    def read(self, slot: int, held: int) -> None:
        """The shadows have read along."""

    def open(self, slot: int, held: int) -> None:
        """The shadows are there already."""

    def commit(self, slot: int, winner: int, opened: int, held: int) -> None:
        sequences = self.sequences[slot]
        keeper = int(sequences[1 + winner])
        for j in range(opened):
            if j != winner:
                self.context.seq_rm(int(sequences[1 + j]), held)
        for seq in sequences:
            if seq != keeper:
                self.context.seq_cp(keeper, int(seq), held, held + 1)

    def close(self, slot: int, held: int) -> int:
        return self.forget(slot, held, held)

    def recover(self, slot: int, held: int) -> int:
        return self.forget(slot, held, held)


class CopyState:
    """Recurrent and hybrid models. A queued token belongs to the main sequence alone, since a decode whose tokens
    carry several sequences is refused by some and wrong in others; the shadows follow when candidates come.

    llama_memory_seq_cp of any range, an empty one too, makes the whole state of `dst` that of `src` (a reference; it is
    copied when one of them reads on) and copies the attention cells of the range. llama_memory_seq_rm of a range
    succeeds where the state lies before it. marks: a sequence a slot that keeps the state at the end of its prompt, so
    that a retry or another sample does not read it again; none without memory for them.
    """

    reads_apart = True

    def __init__(self, context: Context, sequences: IntArray, marks: Sequence[int] = ()):
        self.context, self.sequences = context, sequences
        self._marks = list(marks)
        self._followed = [0] * len(sequences)
        self._marked = [0] * len(sequences)
        self._to_mark = [0] * len(sequences)

    def carried(self, slot: int) -> IntArray:
        main: IntArray = self.sequences[slot, :1]
        return main

    def reachable(self, slot: int, keep: int, held: int) -> int:
        if keep >= held:
            return held
        return self._marked[slot] if self._marked[slot] <= keep else 0

    def lendable(self, slot: int, wanted: int, held: int) -> int:
        return wanted if held <= wanted else self.reachable(slot, wanted, held)

    def forget(self, slot: int, keep: int, held: int) -> int:
        if 0 < held <= keep:
            return held
        start = self.reachable(slot, keep, held)
        if not start:
            self.clear(slot)
            return 0
        self._clear_sequences(slot)
        self.context.seq_cp(self._marks[slot], int(self.sequences[slot, 0]), 0, start)
        return start

    def clear(self, slot: int) -> None:
        self._clear_sequences(slot)
        self._marked[slot] = self._to_mark[slot] = 0
        if self._marks:
            self.context.seq_rm(self._marks[slot], 0)

    def share(self, donor: int, slot: int, n: int, held: int) -> None:
        source = int(self.sequences[donor, 0]) if n == held else self._marks[donor]
        self.context.seq_share(source, int(self.sequences[slot, 0]), n)

    def goes_back(self, n: int) -> bool:
        return False

    def states(self, slot: int, held: int) -> list[tuple[int, int]]:
        kept = [(int(self.sequences[slot, 0]), held)]
        marked = self._marked[slot]
        return [(self._marks[slot], marked), *kept] if 0 < marked < held else kept

    def restore(self, slot: int, data: Bytes, n: int) -> int:
        return n if self.context.set_state(int(self.sequences[slot, 0]), data) else 0

    def mark(self, slot: int, at: int, held: int) -> None:
        if self._marks and at != self._marked[slot]:
            self._to_mark[slot] = at
            self.read(slot, held)

    def before_mark(self, slot: int, held: int) -> int:
        left = self._to_mark[slot] - held
        return left if left > 0 else NO_MARK

    def read(self, slot: int, held: int) -> None:
        if self._marks and 0 < held == self._to_mark[slot] != self._marked[slot]:
            self.context.seq_rm(self._marks[slot], 0)
            self.context.seq_cp(int(self.sequences[slot, 0]), self._marks[slot], 0, held)
            self._marked[slot] = held

    def open(self, slot: int, held: int) -> None:
        main, *shadows = map(int, self.sequences[slot])
        if self._followed[slot] < held:
            for shadow in shadows:
                self.context.seq_cp(main, shadow, self._followed[slot], held)
            self._followed[slot] = held

    def commit(self, slot: int, winner: int, opened: int, held: int) -> None:
        main, *shadows = map(int, self.sequences[slot])
        keeper = shadows[winner]
        for j, shadow in enumerate(shadows[:opened]):
            if j != winner:
                self._rewind(main, shadow, held)
        for seq in [*shadows, main]:
            if seq != keeper:
                self.context.seq_cp(keeper, seq, held, held + 1)
        self._followed[slot] = held + 1

    def close(self, slot: int, held: int) -> int:
        main, *shadows = map(int, self.sequences[slot])
        for shadow in shadows:
            self._rewind(main, shadow, held)
        return held

    def recover(self, slot: int, held: int) -> int:
        # A decode may have failed with some of its micro-batches done, and their states are gone.
        self.clear(slot)
        return 0

    def _rewind(self, main: int, shadow: int, held: int) -> None:
        self.context.seq_cp(main, shadow, held, held + 1)
        self.context.seq_rm(shadow, held)

    def _clear_sequences(self, slot: int) -> None:
        for seq in self.sequences[slot]:
            self.context.seq_rm(int(seq), 0)
        self._followed[slot] = 0


def memory_of(context: Context, slots: int, branches: int) -> Memory:
    """The memory of a context's model, for slots with shadows, numbered main sequences first."""
    sequences = np.array([[s] + [slots + s * branches + j for j in range(branches)] for s in range(slots)], np.int32)
    if context.model.rolls_back:
        return Rollback(context, sequences)
    used = slots * (1 + branches)
    return CopyState(context, sequences, range(used, used + slots) if context.n_seq_max >= used + slots else ())


def common_prefix(a: Iterable[int], b: Iterable[int]) -> int:
    """How many tokens two sequences begin with in common."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
