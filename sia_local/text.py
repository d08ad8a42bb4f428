"""Tokens to text: valid UTF-8 however tokens split characters, and stop strings that never leak."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from .errors import ConfigError
from .reasoning import ANSWER, Splitter


def utf8(text: str, what: str) -> bytes:
    """Raises ConfigError for bytes of an input that were no UTF-8 (surrogates); what: whose they are."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} has bytes that are not UTF-8 at character {error.start}; give it as UTF-8") from None


class Shown(NamedTuple):
    """What becomes visible with a token: text of the answer, and of the reasoning. stopped: a stop string ends it."""

    text: str
    stopped: bool = False
    reasoning: str = ""


class TextStream:
    """Text of one sequence. Bytes of an unfinished character, and text that may begin a stop string, wait.

    stop_tokens: ids that end the text as a stop string does, such as control tokens, which have no text. split: tells
    reasoning from the answer; stop strings are looked for in the answer alone.
    """

    def __init__(
        self,
        piece: Callable[[int], bytes],
        stop: Sequence[str] = (),
        stop_tokens: Collection[int] = (),
        split: Splitter | None = None,
    ):
        if any(not s for s in stop):
            raise ConfigError("a stop string is empty; give at least one character")
        self._piece = piece
        self._stop, self._stop_tokens = tuple(stop), frozenset(stop_tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._split = split

    @property
    def part(self) -> str:
        """What the next token belongs to: reasoning.ANSWER, REASONING or UNDECIDED."""
        return self._split.part if self._split is not None else ANSWER

    def push(self, token: int, last: bool = False) -> Shown:
        """`last`: no token follows; held text comes out, an unfinished character as U+FFFD."""
        stops = token in self._stop_tokens
        reasoning, text = "", self._decoder.decode(b"" if stops else self._piece(token), final=last or stops)
        if self._split is not None:
            reasoning, text = self._split.push(text, last or stops)
        text = self._held + text
        at = min((i for s in self._stop if (i := text.find(s)) >= 0), default=-1)
        if at >= 0:
            self._held = ""
            return Shown(text[:at], True, reasoning)
        keep = 0 if last or stops else self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return Shown(text[: len(text) - keep], stops, reasoning)

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
