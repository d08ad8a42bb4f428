"""Standard streams of the commands: text that cannot break on an odd locale, Ctrl-C between two tokens."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..errors import CONTROLS


def writer() -> Callable[[str], None]:
    """Writes and flushes text to standard output; a character the terminal cannot show becomes `?`."""
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")

    def write(text: str) -> None:
        if text:
            out.write(text)
            out.flush()

    return write


def visible(text: str) -> str:
    """Text as it may reach a terminal: a model can write escape sequences, which must not steer it. Elsewhere as is."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def notice(text: str) -> None:
    """A line on standard error."""
    click.echo(text, err=True)


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C calls `stop`, which ends a text between two tokens; the second interrupts at once. Yields what
    says whether it was pressed.

    An exception in the middle of a decode could leave the KV cache and its bookkeeping apart.
    """
    pressed = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Wrapped:
    """Writes streamed text so that lines break between words: a word waits for its end, at most half a line."""

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int]):
        self._write, self._columns = write, columns
        self._column = self._length = 0
        self._space = self._word = ""

    def put(self, text: str, mark: Callable[[str], str]) -> None:
        """mark: adds codes without width to a part of a word."""
        for part in re.findall(r"\s+|\S+", text):
            if part.isspace():
                self._put_word()
                self._space += part
                continue
            wide = sum(unicodedata.east_asian_width(c) in "WF" for c in part)
            self._word += mark(part)
            self._length += len(part) + wide
            # Scripts without spaces break anywhere.
            if wide or self._length > self._columns() // 2:
                self._put_word()

    def flush(self) -> None:
        """Writes what waits, space behind the last word included."""
        self._put_word()
        self._write(self._space)
        self._advance(self._space)
        self._space = ""

    def _put_word(self) -> None:
        if not self._word:
            return
        self._advance(self._space)
        if self._space and self._column + self._length > self._columns():
            self._space, self._column = self._space.rstrip(" ") + "\n", 0
        self._write(self._space + self._word)
        self._column += self._length
        self._space, self._word, self._length = "", "", 0

    def _advance(self, space: str) -> None:
        _, line_break, rest = space.rpartition("\n")
        self._column = len(rest) if line_break else self._column + len(rest)


class Thoughts:
    """Reasoning as it comes: in full, dim, with an empty line behind it; or, on a terminal, a line that counts its
    tokens and goes when the answer begins."""

    def __init__(self, write: Callable[[str], None], style: Style, shown: bool):
        self._write, self._style, self._shown = write, style, shown
        self._count = 0

    def put(self, text: str) -> None:
        """Of one token; it may be empty."""
        self._count += 1
        if self._shown:
            self._write(self._style.dim(visible(text)) if text else "")
        elif self._style.on:
            self._write("\r" + self._style.dim(f"reasoning, {self._count} tokens"))

    def end(self) -> None:
        """The answer begins, or the text is over."""
        if self._count and self._shown:
            self._write("\n\n")
        elif self._count and self._style.on:
            self._write("\r\x1b[K")
        self._count = 0


class Style:
    """How steered tokens look: coloured and underlined, only underlined under NO_COLOR, plain off a terminal."""

    def __init__(self, on: bool, colour: bool = True):
        self.on = on
        # Of the 256 colours, a teal and a magenta with a contrast of more than 4 to white and to black alike.
        self._turned = "\x1b[1;4;38;5;163m" if colour else "\x1b[1;4m"
        self._steered = "\x1b[4;38;5;30m" if colour else "\x1b[4m"

    @classmethod
    def of_terminal(cls) -> Style:
        on = sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"
        return cls(on, not os.environ.get("NO_COLOR"))

    def token(self, text: str, steered: bool, turned: bool) -> str:
        """A token's text with its mark; white space around it stays unmarked."""
        core = text.strip()
        if not self.on or not steered or not core:
            return text
        at = text.index(core)
        return f"{text[:at]}{self._turned if turned else self._steered}{core}\x1b[0m{text[at + len(core) :]}"

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.on else text

    @property
    def legend(self) -> str:
        steered, turned = self.token("steered", True, False), self.token("turned", True, True)
        return f"  {steered}  the value model was asked\n  {turned}   and it changed which word was the likeliest"
