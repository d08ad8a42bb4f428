"""What a model thinks to itself, told apart from what it answers, as the text comes. Text alone: no tokens, no model.

Two shapes are known. A *pair* of marks around the reasoning at the start of a text, `<think>…</think>`; and the
channels of gpt-oss's harmony, `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .errors import ConfigError

# What the next token belongs to; UNDECIDED: a mark, or a text that has not begun.
ANSWER, REASONING, UNDECIDED = "answer", "reasoning", ""


@dataclass(frozen=True)
class Format:
    """How reasoning is marked. close is empty for channels, which have marks of their own."""

    name: str
    open: str = ""
    close: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.open, self.close) if self.close else CHANNEL_MARKS

    def splitter(self, opening: str = "") -> Splitter:
        """opening: the end of the prompt, control tokens spelled out, behind which the text begins."""
        return Pair(self.open, self.close, opening) if self.close else Channels(opening)


class Splitter(Protocol):
    """part: what a token belongs to that comes next."""

    @property
    def part(self) -> str: ...
    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        """Reasoning and answer that become certain with this text. What may begin a mark, and white space that may be
        the edge of a part, waits. last: nothing follows."""
        ...


START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
CHANNEL_MARKS = (START, CHANNEL, MESSAGE, *ENDS)
THOUGHTS = ("analysis",)

FORMATS = {
    one.name: one
    for one in (
        Format("harmony"),
        Format("think", "<think>", "</think>"),
        Format("thinking", "<thinking>", "</thinking>"),
        Format("thought", "<thought>", "</thought>"),
        Format("seed", "<seed:think>", "</seed:think>"),
        Format("minimax", "<mm:think>", "</mm:think>"),
        Format("mistral", "[THINK]", "[/THINK]"),
        Format("command", "<|START_THINKING|>", "<|END_THINKING|>"),
        Format("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
        Format("gemma", "<|channel>thought", "<channel|>"),
    )
}


def find_format(given: str, template: str | None, has_token: Callable[[str], bool]) -> Format | None:
    """The format that `given` names: one of FORMATS, `OPEN,CLOSE`, `none`; or `auto`: that whose marks the chat
    template writes, or else are tokens of the vocabulary. Raises ConfigError."""
    if given == "none":
        return None
    if given == "auto":
        known = FORMATS.values()
        told = next((f for f in known if all(mark in (template or "") for mark in _sure_marks(f))), None)
        return told or next((f for f in known if all(map(has_token, _sure_marks(f)))), None)
    if given in FORMATS:
        return FORMATS[given]
    open, _, close = given.partition(",")
    if not (open and close) or open == close:
        raise ConfigError(
            f"reasoning is marked by {given!r}; expected auto, none, {', '.join(FORMATS)}, or two marks as in "
            "<think>,</think>"
        )
    return Format("own", open, close)


def _sure_marks(form: Format) -> tuple[str, ...]:
    # Templates cut reasoning off an earlier answer by its end, and need not spell where it begins.
    return (form.close,) if form.close else (CHANNEL, MESSAGE)


class Pair:
    """Reasoning between two marks, at the start of a text or nowhere; the prompt may have opened or ended it already.
    White space inside the marks and behind them is left out."""

    def __init__(self, open: str, close: str, opening: str = ""):
        self._open, self._close = open, close
        self._held = ""
        self._at_start = True
        before = opening.rstrip()
        self._state = REASONING if before.endswith(open) else ANSWER if before.endswith(close) else UNDECIDED

    @property
    def part(self) -> str:
        return self._state

    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        self._held += text
        reasoning = answer = ""
        if self._state == UNDECIDED:
            self._decide(last)
        if self._state == REASONING:
            reasoning = self._reasoned(last)
        if self._state == ANSWER:
            if self._at_start:
                self._held = self._held.lstrip()
            if self._held:
                self._at_start = False
            answer, self._held = self._held, ""
        return reasoning, answer

    def _decide(self, last: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._open):
            self._state, self._held = REASONING, begun[len(self._open) :]
        elif last or not self._open.startswith(begun):
            # No reasoning: all of it is the answer, white space too.
            self._state, self._at_start = ANSWER, False

    def _reasoned(self, last: bool) -> str:
        if self._at_start:
            begun = self._held.lstrip()
            # A model may repeat the mark that its prompt ends with.
            while begun.startswith(self._open):
                begun = begun[len(self._open) :].lstrip()
            self._held = begun
            if not last and self._open.startswith(begun):
                return ""
            self._at_start = False
        whole, mark, rest = self._held.partition(self._close)
        if mark:
            self._state, self._held, self._at_start = ANSWER, rest, True
            return whole.rstrip()
        certain = whole if last else whole[: len(whole) - _possible_mark(whole, (self._close,))]
        certain = certain.rstrip()
        self._held = "" if last else whole[len(certain) :]
        return certain


class Channels:
    """Messages of several channels: a header, which ends in <|message|>, and a body, which ends in <|end|>. Bodies of
    `analysis` are reasoning, all others the answer; two of one kind are set apart by an empty line. A text without a
    header is an answer."""

    def __init__(self, opening: str = ""):
        self._held = ""
        self._header = opening.rpartition(START)[2]
        self._state = UNDECIDED
        self._begun = {REASONING: False, ANSWER: False}
        self._apart = False
        self._free = True
        if MESSAGE in self._header:
            self._open()

    @property
    def part(self) -> str:
        return self._state

    def push(self, text: str, last: bool = False) -> tuple[str, str]:
        self._held += text
        out = {REASONING: "", ANSWER: ""}
        while self._step(out, last):
            pass
        return out[REASONING], out[ANSWER]

    def _step(self, out: dict[str, str], last: bool) -> bool:
        """Takes one piece of what is held. False when no more is certain."""
        if self._state == UNDECIDED and self._free:
            begun = self._held.lstrip()
            marked = any(begun.startswith(mark) for mark in (*CHANNEL_MARKS, "to="))
            if not marked and not last and any(mark.startswith(begun) for mark in (*CHANNEL_MARKS, "to=")):
                return False
            self._free = False
            if not marked:
                self._state = ANSWER
        at, mark = _first_mark(self._held, CHANNEL_MARKS)
        if mark:
            piece, self._held = self._held[:at], self._held[at + len(mark) :]
        else:
            keep = 0 if last else _possible_mark(self._held, CHANNEL_MARKS)
            piece = self._held[: len(self._held) - keep]
            self._held = self._held[len(piece) :]
        if self._state == UNDECIDED:
            self._header += piece
        elif piece:
            out[self._state] += ("\n\n" if self._apart else "") + piece
            self._begun[self._state], self._apart = True, False
        if mark == MESSAGE and self._state == UNDECIDED:
            self._open()
        elif mark == CHANNEL and self._state == UNDECIDED:
            self._header = CHANNEL
        elif mark and mark != MESSAGE:
            self._state, self._header = UNDECIDED, CHANNEL if mark == CHANNEL else ""
        return bool(mark)

    def _open(self) -> None:
        """A body begins, of the channel that the header named."""
        named = self._header.rpartition(CHANNEL)[2].split(MESSAGE)[0].split()
        self._state = REASONING if named[:1] and named[0] in THOUGHTS else ANSWER
        self._apart, self._header, self._free = self._begun[self._state], "", False


def _first_mark(text: str, marks: tuple[str, ...]) -> tuple[int, str]:
    """Where the first of the marks stands, and which it is; (-1, "") for none."""
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found, default=(-1, ""))


def _possible_mark(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a mark."""
    longest = min(len(text), max(map(len, marks)) - 1)
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0)
