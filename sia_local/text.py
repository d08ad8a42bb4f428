"""Tokens to text: valid UTF-8 however tokens split characters, and stop strings that never leak."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence

from .errors import ConfigError


class TextStream:
    """Text of one sequence. Bytes of an unfinished character, and text that may begin a stop string, wait.

    stop_tokens: ids that end the text as a stop string does, such as control tokens, which have no text.
    """

    def __init__(self, piece: Callable[[int], bytes], stop: Sequence[str] = (), stop_tokens: Collection[int] = ()):
        if any(not s for s in stop):
            raise ConfigError("a stop string is empty; give at least one character")
        self._piece = piece
        self._stop, self._stop_tokens = tuple(stop), frozenset(stop_tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        """Text that becomes visible with this token, and whether a stop string was completed.

        `last`: no token follows; held text comes out, an unfinished character as U+FFFD.
        """
        if token in self._stop_tokens:
            held, self._held = self._held + self._decoder.decode(b"", final=True), ""
            return held, True
        text = self._held + self._decoder.decode(self._piece(token), final=last)
        at = min((i for s in self._stop if (i := text.find(s)) >= 0), default=-1)
        if at >= 0:
            self._held = ""
            return text[:at], True
        keep = 0 if last else self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stop):
                return n
        return 0


class Written(str):
    """Text that remembers the token ids it was generated as. Serves as a message's `content`."""

    tokens: tuple[int, ...]

    def __new__(cls, text: str, tokens: Sequence[int]) -> Written:
        made = super().__new__(cls, text)
        made.tokens = tuple(tokens)
        return made
