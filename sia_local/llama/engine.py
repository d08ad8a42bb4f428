"""Token sequences over one llama context: queue, decode, branch, commit. Knows nothing of text or steering.

Every slot is a sequence with `branches` shadow sequences beside it in the same (unified) KV cache. Accepted
tokens only queue up. A decode runs the queues of some slots at once, every token carrying the ids of its slot's
main and shadow sequences, so that the shadows always hold the same prefix as the main one. A branch decode
adds, for some slots, candidate tokens at the next position, each on a shadow of its own: attention sees exactly
prefix + own candidate. Accepting one of the candidates keeps its KV (the losers forget their last position, the
winner's is shared with all): bookkeeping, no decode. A recurrent state knows no positions: see memory.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from ..errors import ConfigError, ContextFullError, SiaError
from .context import Context
from .embeddings import EmbeddingRows
from .library import FloatArray
from .memory import memory_of
from .reuse import Beginnings, Ids
from .slots import Slot
from .store import StateStore

LONGEST_HIDDEN_QUEUE = 8
# A row of a trail pays the output layer and a row of logits, unless those are left out, so it comes in pieces.
LONGEST_TRAIL = 32


class Engine:
    """S slots in one context. `branches` is the most candidates a slot can open at once (0 for none).

    capacity: tokens a slot can hold. rows: embeddings to feed a model without a vocabulary with. keeps_hidden: the
    decodes of logits() leave the hidden state behind each row, too; all but the last token of a prompt go without.
    reads_alike: a prompt rounds the same whatever shares its decodes, and whatever of it is there already. llama.cpp's
    attention rounds a single row of a stream otherwise than several, so the last token is always read singly, behind a
    decode of the others, and of those never one alone. Not where branches share the cells.
    """

    reads_alike = False

    def __init__(
        self,
        context: Context,
        slots: int,
        branches: int = 0,
        rows: EmbeddingRows | None = None,
        keeps_hidden: bool = False,
    ):
        if context.n_seq_max < slots * (1 + branches):
            raise ConfigError(
                f"{slots} slots with {branches} branches need {slots * (1 + branches)} sequences, the context "
                f"has {context.n_seq_max}"
            )
        self.context = context
        self.branches = branches
        self.slots = [Slot() for _ in range(slots)]
        self.keeps_hidden = keeps_hidden
        self.decodes = self.decoded_tokens = self._n_outputs = 0
        self._filled: list[tuple[int, int]] = []
        self.memory = memory_of(context, slots, branches)
        if rows is not None:
            context.batch.feed_vectors(rows)
        self.capacity = context.n_ctx // slots - branches
        self._beginnings = Beginnings(context, self.memory, self.slots, self._run_queue)

    @property
    def n_rows(self) -> int:
        """Tokens that the model has a row for."""
        return self.context.batch.n_rows

    @property
    def _alike(self) -> bool:
        return self.reads_alike and not self.branches and not self.memory.reads_apart

    @property
    def store(self) -> StateStore | None:
        """Where texts that lose their slot are kept, so that they are not read again when they come back."""
        return self._beginnings.store

    @store.setter
    def store(self, store: StateStore | None) -> None:
        self._beginnings.store = store

    def best_slot(self, free: Sequence[int], tokens: Ids) -> int:
        """The free slot whose text `tokens` go on with, else the first one."""
        return self._beginnings.best_slot(free, tokens)

    def begin(self, slot: int, tokens: Ids) -> int:
        """Makes `tokens` the content of a slot; returns how many of them need no decode.

        The prefix shared with what the slot, any other slot, or the store holds is reused: a longer chat re-encodes
        only its new turn, and several samples of one prompt encode it once. Raises ContextFullError if they do not
        fit.
        """
        self._settle()
        self._check_room(len(tokens), self.capacity - 1, "prompt")
        self._close_branch(slot)
        cached = self._beginnings.begin(slot, [int(t) for t in tokens])
        if self._alike and cached == len(tokens) - 2:
            self._beginnings.forget(slot, max(0, cached - 1))
        return self.slots[slot].n_past

    def room(self, slot: int) -> int:
        """Tokens that a slot can still take."""
        return self.capacity - len(self.slots[slot].tokens)

    def queue_length(self, slot: int) -> int:
        state = self.slots[slot]
        return len(state.tokens) - state.n_past

    def accept(self, slot: int, token: int) -> None:
        """Appends a token: the winner of an open branch keeps KV and output row, any other token queues up."""
        self._settle()
        state = self.slots[slot]
        if state.open is None or token not in state.open:
            self._close_branch(slot)
            state.tokens.append(token)
            state.row = None
            return
        winner = state.open.index(token)
        with state.changing():
            self.memory.commit(slot, winner, len(state.open), state.n_past)
            state.take(winner)

    def read_ahead(self, slot: int) -> None:
        """Decodes what is queued in a slot but for the last token, without outputs."""
        self._settle()
        self._run_queue(slot, len(self.slots[slot].tokens) - 1)

    def behind(self, slot: int) -> bool:
        """Whether more than a batch is queued in a slot."""
        return self.queue_length(slot) > self.context.batch.capacity

    def read_piece(self, slot: int) -> bool:
        """Decodes a batch of a queue that is longer than one; whether what is left still is."""
        self._settle()
        if self.behind(slot):
            state = self.slots[slot]
            self._save_rows({slot})
            until = state.n_past + self.context.batch.capacity
            self._run_queue(slot, until - (until == len(state.tokens) - 2))
        return self.behind(slot)

    def keep_hidden(self) -> None:
        """From now on keeps_hidden; rows that came without are decoded again where they are wanted."""
        if not self.keeps_hidden:
            self.keeps_hidden = True
            for slot, state in enumerate(self.slots):
                self._close_branch(slot)
                state.row = None

    def hidden(self, slot: int) -> FloatArray:
        """The final normed hidden state [n_embd] behind a slot's row of logits(), in an engine that keeps them."""
        state = self.slots[slot]
        if state.hidden is None or state.hidden_at != len(state.tokens):
            raise SiaError(f"slot {slot} holds no hidden state of its last token; ask for its logits first")
        return state.hidden

    def logits(self, slots: Sequence[int]) -> list[FloatArray]:
        """Next-token output row [n_vocab] of each slot, by one decode of whatever is queued in them.

        Views into llama.cpp's buffer, valid until the next decode of this context.
        """
        self._settle()
        pending = [s for s in slots if self.slots[s].row is None]
        for slot in pending:
            if self.queue_length(slot) == 0:
                # The last token is read again, and with it goes what candidates had read behind it.
                self._close_branch(slot)
                self._beginnings.forget(slot, self.slots[slot].n_past - 1)
        if pending:
            self._decode(pending, [])
        return [row for s in slots if (row := self.slots[s].row) is not None]

    def branch(
        self,
        requests: Sequence[tuple[int, Ids]],
        *,
        also: Sequence[int] = (),
        hidden: bool = False,
        keep_rows: bool = False,
    ) -> list[FloatArray]:
        """Opens candidates in several slots with one decode.

        requests: (slot, candidate ids). also: slots whose queues run along, their rows wanted next. hidden:
        return hidden states [k, n_embd] instead of output rows [k, n_vocab] of each request. keep_rows: the
        winner's output row serves as the slot's next logits.
        """
        self._settle()
        for slot, candidates in requests:
            if not 0 < len(candidates) <= self.branches:
                raise ConfigError(f"{len(candidates)} candidates were given, this engine holds {self.branches}")
            self._close_branch(slot)
        first = self._decode(also, requests, hidden)
        n_outputs = self._n_outputs
        if keep_rows:
            logits = self.context.logits(n_outputs)
            for (slot, candidates), at in zip(requests, first, strict=True):
                self.slots[slot].open_rows = logits[at : at + len(candidates)]
                if self.keeps_hidden:
                    self.slots[slot].open_hidden = self.context.hidden(n_outputs)[at : at + len(candidates)]
        rows = self.context.hidden(n_outputs) if hidden else self.context.logits(n_outputs)
        return [rows[at : at + len(c)] for (_, c), at in zip(requests, first, strict=True)]

    def trail(self, slot: int, prefix: Ids, tokens: Ids, *, hidden: bool = False) -> Iterator[FloatArray]:
        """Output rows (hidden states with `hidden`) after each of `tokens` behind `prefix`, in chunks.

        Views [n, n_vocab] or [n, n_embd], valid until the next one. The slot ends up holding prefix and tokens. Raises
        ContextFullError if they do not fit.
        """
        self._check_room(len(prefix) + len(tokens), self.capacity, "text")
        if len(prefix):
            self.begin(slot, prefix)
            self._run_queue(slot, len(prefix))
        else:
            self._settle()
            self._beginnings.put_aside(slot)
            self.release(slot)
        state = self.slots[slot]
        chunk = self.context.batch.capacity
        if not self.context.hidden_only:
            chunk = min(chunk, LONGEST_TRAIL)
        for at in range(0, len(tokens), chunk):
            part = [int(t) for t in tokens[at : at + chunk]]
            self._save_rows({slot})
            state.tokens += part
            state.row = None
            self._fill(slot, len(part))
            self.context.batch.output[: len(part)] = 1
            self._run(hidden)
            yield self.context.hidden(len(part)) if hidden else self.context.logits(len(part))
        # The last token queues again: its row is what a continuation would want.
        if not self.memory.reads_apart:
            self._beginnings.forget(slot, len(state.tokens) - 1)

    def release(self, slot: int) -> None:
        """Forgets a slot's content and frees its KV cells."""
        self._settle()
        self._close_branch(slot)
        self._beginnings.finish_copies()
        self._beginnings.forget(slot, 0)
        self.slots[slot] = Slot()

    def _check_room(self, tokens: int, room: int, what: str) -> None:
        if tokens > room:
            raise ContextFullError(
                f"the {what} is {tokens} tokens for {self.context.model.path.name}, its context holds "
                f"{self.capacity}; shorten it or raise --ctx"
            )

    def _close_branch(self, slot: int) -> None:
        state = self.slots[slot]
        if state.open is not None:
            with state.changing():
                state.n_past = self.memory.close(slot, state.n_past)
                state.shut()

    def _settle(self) -> None:
        """A slot that something such as Ctrl-C ended in the middle of a change has its tokens and has read none."""
        for slot, state in enumerate(self.slots):
            if state.unsettled:
                self.memory.clear(slot)
                self.slots[slot] = Slot(state.tokens)

    def _make_room(self, also: Sequence[int], requests: Sequence[tuple[int, Ids]], hidden: bool) -> None:
        """Runs queues that do not belong into the coming batch beforehand, without outputs."""
        if self._alike:
            for slot in also:
                self._run_queue(slot, len(self.slots[slot].tokens) - 1)
            return
        slots = [*also, *(slot for slot, _ in requests)]
        candidates = sum(len(c) for _, c in requests)
        queued = sum(map(self.queue_length, slots))
        room = self.context.batch.capacity - candidates
        if self._embeds(hidden):
            # Every row pays the output layer and gets a row of logits, so only a short queue rides along.
            room = LONGEST_HIDDEN_QUEUE if requests else 0
        if queued <= max(room, len(also)):
            return
        for slot in slots:
            self._run_queue(slot, len(self.slots[slot].tokens) - (slot in also))

    def _read_apart(self, also: Sequence[int], requests: Sequence[tuple[int, Ids]]) -> None:
        """Decodes what is queued before the candidates, all of it at once if it is short, and opens the branches."""
        self._save_rows(set())
        for slot in also:
            self._run_queue(slot, len(self.slots[slot].tokens) - 1)
        fair = self.context.batch.capacity // max(1, len(requests))
        for slot, _ in requests:
            if self.queue_length(slot) > min(fair, self.memory.before_mark(slot, self.slots[slot].n_past)):
                self._run_queue(slot, len(self.slots[slot].tokens))
        for slot in [slot for slot, _ in requests if self.queue_length(slot)]:
            self._fill(slot, self.queue_length(slot))
        if self.context.batch.n:
            self._run()
        for slot, _ in requests:
            self.memory.open(slot, self.slots[slot].n_past)

    def _run_queue(self, slot: int, until: int) -> None:
        """Decodes a slot's queue without outputs until the KV cache holds `until` of its tokens."""
        while (missing := until - self.slots[slot].n_past) > 0:
            stop = self.memory.before_mark(slot, self.slots[slot].n_past)
            count = min(missing, stop, self.context.batch.capacity)
            self._fill(slot, count - (count == missing - 1 > 1))
            self._run()

    def _decode(self, also: Sequence[int], requests: Sequence[tuple[int, Ids]], hidden: bool = False) -> list[int]:
        """One batch: queues of `also` (output on the last token), then queue + candidates of each request.

        Returns the output row of every request's first candidate; the rows of `also` go into their slots.
        """
        hidden = hidden or self.keeps_hidden
        # An interrupt while an earlier batch was being filled may have left rows behind.
        self.context.batch.n = 0
        self._filled.clear()
        if self.memory.reads_apart:
            self._read_apart(also, requests)
        self._make_room(also, requests, hidden)
        self._save_rows({*also, *(slot for slot, _ in requests)})
        batch = self.context.batch
        last: dict[int, int] = {}
        first: list[int] = []
        for slot in also:
            self._fill(slot, self.queue_length(slot))
            last[slot] = batch.n - 1
            batch.output[last[slot]] = 1
        for slot, candidates in requests:
            self._fill(slot, self.queue_length(slot))
            first.append(batch.n)
            self._fill_branch(slot, candidates)
        if self._embeds(hidden):
            batch.output[: batch.n] = 1
        row = [outputs - 1 for outputs in accumulate(batch.output[: batch.n].tolist())]
        self._n_outputs = row[-1] + 1
        self._run(hidden)
        if also:
            logits = self.context.logits(self._n_outputs)
            for slot, at in last.items():
                state = self.slots[slot]
                state.row = logits[row[at]]
                if self.keeps_hidden:
                    states = self.context.hidden(self._n_outputs)
                    state.hidden, state.hidden_at = states[row[at]].copy(), len(state.tokens)
        return [row[at] for at in first]

    def _fill(self, slot: int, count: int) -> None:
        """Adds the first `count` queued tokens of a slot to the batch, without output."""
        state = self.slots[slot]
        past = state.n_past
        self.context.batch.add(state.tokens[past : past + count], past, self.memory.carried(slot))
        self._filled.append((slot, count))

    def _fill_branch(self, slot: int, candidates: Ids) -> None:
        """Adds candidates at a slot's next position, each on its own shadow sequence, with output."""
        state, shadows = self.slots[slot], self.memory.sequences[slot, 1 : 1 + len(candidates)]
        self.context.batch.add_candidates(candidates, len(state.tokens), shadows)
        state.open, state.open_rows, state.row = [int(c) for c in candidates], None, None

    def _run(self, hidden: bool = False) -> None:
        """Decodes the filled batch. If that fails, or is interrupted, every slot is as it was before."""
        filled, self._filled = self._filled, []
        n = self.context.batch.n
        for slot, _ in filled:
            self.slots[slot].unsettled = True
        try:
            self.context.set_embeddings(hidden)
            self.context.decode()
        except BaseException:
            self.context.batch.n = 0
            for slot, state in enumerate(self.slots):
                with state.changing():
                    state.n_past, state.row = self.memory.recover(slot, state.n_past), None
                    state.shut()
            raise
        for slot, count in filled:
            with self.slots[slot].changing():
                self.slots[slot].n_past += count
                self.memory.read(slot, self.slots[slot].n_past)
        self.decodes += 1
        self.decoded_tokens += n

    def _embeds(self, hidden: bool) -> bool:
        """Whether every row is an output, which llama.cpp's embeddings mode makes them."""
        return hidden and self.context.outputs_all

    def _save_rows(self, running: set[int]) -> None:
        """Rows of slots that sit this decode out would be overwritten; rare, so copying them is fine."""
        for index, state in enumerate(self.slots):
            if index not in running and state.row is not None and state.row.base is not None:
                state.row = state.row.copy()
