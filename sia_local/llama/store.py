"""States of texts that lost their slot, kept in the computer's memory until they come back or others need the room."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from .context import Context
from .library import IntArray
from .memory import Bytes, Memory


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence of one context as llama.cpp writes it: `tokens` are what it has read."""

    context: weakref.ref[Context]
    tokens: IntArray
    data: Bytes


class StateStore:
    """At most `limit` bytes of states, of any number of contexts; the one unused for longest goes first.

    A state of n tokens serves every prompt that begins with them. Where the memory can go back behind it, it serves
    those that begin with fewer, too, and makes states of beginnings of it superfluous.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._kept: list[Kept] = []

    def put(self, context: Context, memory: Memory, seq: int, tokens: IntArray) -> None:
        """Keeps the state of a sequence that has read `tokens`, if there is room for it at all."""
        size = context.state_size(seq)
        if size > self.limit:
            return
        mine = [one for one in self._kept if one.context() is context]
        for one in mine:
            same, n = shared(one.tokens, tokens), len(one.tokens)
            if same == len(tokens) and (n == same or memory.goes_back(n)):
                self._renew(one)
                return
            if same == n and memory.goes_back(len(tokens)):
                self._drop(one)
        while self.used + size > self.limit:
            self._drop(next((one for one in self._kept if one.context() is None), self._kept[0]))
        self._kept.append(Kept(weakref.ref(context), tokens, context.state(seq, size)))
        self.used += size

    def find(self, context: Context, memory: Memory, wanted: IntArray) -> tuple[Kept | None, int]:
        """The state that serves most of `wanted`, and how many tokens of it."""
        best: Kept | None = None
        most = 0
        for one in self._kept:
            if one.context() is context:
                same = shared(one.tokens, wanted)
                if same > most and (same == len(one.tokens) or memory.goes_back(len(one.tokens))):
                    best, most = one, same
        return best, most

    def take(self, kept: Kept, n: int) -> None:
        """A slot holds n tokens of a state now: one that it holds whole needs no place here."""
        if n == len(kept.tokens):
            self._drop(kept)
        else:
            self._renew(kept)

    def _renew(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self._kept.append(kept)

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self.used -= kept.data.nbytes


def shared(a: IntArray, b: IntArray) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
