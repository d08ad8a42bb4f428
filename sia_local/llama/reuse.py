"""Where the beginning of a prompt comes from: what its slot holds, another slot, or a state that was put aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .context import Context
from .memory import Memory, common_prefix
from .slots import Slot
from .store import Kept, StateStore

Ids = Sequence[int] | npt.NDArray[np.int32]

SHORTEST_SHARED_PREFIX = 4
# A state is put aside for no less: a turn that ends a little differently is cheaper read again.
SHORTEST_KEPT = 16
# Cells that are copied in the time that reading a token takes, on a CPU, where both grow with the model.
CELLS_COPIED_A_TOKEN = 256


class Beginnings:
    """read: decodes what is queued in a slot until the KV cache holds so many of its tokens. store: where states go
    that lose their slot; None for nowhere."""

    def __init__(self, context: Context, memory: Memory, slots: list[Slot], read: Callable[[int, int], None]):
        self.context, self.memory, self.slots, self._read = context, memory, slots, read
        self.store: StateStore | None = None
        # Between streams the cells of a whole context are copied, which takes as long as reading some tokens does.
        copied = 0 if context.options.unified else context.n_ctx // len(slots) // CELLS_COPIED_A_TOKEN
        self._worth_sharing = max(SHORTEST_SHARED_PREFIX, copied)

    def best_slot(self, free: Sequence[int], tokens: Ids) -> int:
        """The free slot whose text `tokens` go on with, else the first one.

        A slot of which they would keep less than half is another conversation: its shared beginning is copied from it,
        and it stays.
        """
        kept = {slot: common_prefix(self.slots[slot].tokens, tokens) for slot in free}
        best = max(free, key=kept.__getitem__)
        return best if 2 * kept[best] > len(self.slots[best].tokens) else free[0]

    def begin(self, slot: int, wanted: list[int]) -> int:
        """Makes `wanted` the content of a slot; returns how many of them need no decode. The last one always does: its
        output row is what the caller wants next."""
        state, most = self.slots[slot], len(wanted) - 1
        common = min(common_prefix(state.tokens, wanted), state.n_past, most)
        own = self.memory.reachable(slot, common, state.n_past)
        donor, lent = self._lent(slot, wanted, max(own, self._worth_sharing))
        kept, n = self._kept(wanted[:most], max(own, lent) + self._worth_sharing)
        self.put_aside(slot, common)
        if kept is None or not self._restored(slot, kept, n):
            if lent > max(own, self._worth_sharing):
                self.forget(slot, 0)
                state.tokens = wanted
                with state.changing():
                    self.memory.share(donor, slot, lent, self.slots[donor].n_past)
                    state.n_past = lent
            elif own < state.n_past:
                self.forget(slot, own)
        state.tokens, state.row = wanted, None
        with state.changing():
            self.memory.mark(slot, most, state.n_past)
        return state.n_past

    def forget(self, slot: int, keep: int) -> None:
        state = self.slots[slot]
        with state.changing():
            state.n_past, state.row = self.memory.forget(slot, keep, state.n_past), None

    def finish_copies(self) -> None:
        """Makes what llama.cpp leaves to its next decode, the copies between streams: before it a state that is copied
        out of a borrower is not the lender's, and one that is given to a lender goes to the borrower."""
        if self.context.copies_wait:
            # A borrower has its last token to read at least, and reads it again with the others.
            slot = next(i for i, state in enumerate(self.slots) if state.n_past < len(state.tokens))
            held = self.slots[slot].n_past
            self._read(slot, held + 1)
            self.forget(slot, held)

    def _lent(self, slot: int, wanted: list[int], worth: int) -> tuple[int, int]:
        """A slot that holds more than `worth` of the tokens, once it has read them, and how many it can lend."""
        lent, donor = max(
            ((common_prefix(other.tokens, wanted), i) for i, other in enumerate(self.slots) if i != slot),
            default=(0, -1),
        )
        lent = min(lent, len(wanted) - 1)
        if lent > worth:
            lent = self.memory.lendable(donor, lent, self.slots[donor].n_past)
        if lent > worth:
            # Neither what is read nor what is left then, but for the last token, is a single one: Engine.reads_alike.
            most = len(self.slots[donor].tokens) - 1
            until = min(lent - (lent == most - 1), most)
            if until > self.slots[donor].n_past + 1:
                self._read(donor, until)
        return donor, min(lent, self.slots[donor].n_past)

    def put_aside(self, slot: int, keep: int = 0) -> None:
        """Keeps the state of a slot that is about to lose more than a little behind its first `keep` tokens."""
        state = self.slots[slot]
        if self.store is None or state.n_past - keep < max(SHORTEST_KEPT, state.n_past // CELLS_COPIED_A_TOKEN):
            return
        self.finish_copies()
        for seq, n in self.memory.states(slot, state.n_past):
            self.store.put(self.context, self.memory, seq, np.array(state.tokens[:n], np.int32))

    def _kept(self, wanted: list[int], worth: int) -> tuple[Kept | None, int]:
        """A state in the store that holds more than `worth` of the tokens, and how many."""
        if self.store is None:
            return None, 0
        kept, n = self.store.find(self.context, self.memory, np.array(wanted, np.int32))
        if kept is None or n <= worth:
            return None, 0
        self.store.take(kept, n)
        return kept, n

    def _restored(self, slot: int, kept: Kept, n: int) -> bool:
        """Gives a slot the first n tokens of a state; False, and the slot is empty, where llama.cpp refuses it."""
        self.finish_copies()
        self.forget(slot, 0)
        state = self.slots[slot]
        with state.changing():
            state.n_past = held = self.memory.restore(slot, kept.data, len(kept.tokens))
        self.forget(slot, n)
        return held > 0
