"""What a person enters in a chat: whole messages, typed with history and paste, or piped in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PROMPT, MORE = "> ", ". "
QUOTES = '"""'


@dataclass(frozen=True)
class Entry:
    """A message or, with `command`, a line that begins with `/`."""

    text: str
    command: bool = False


def entries(commands: Sequence[str]) -> Iterator[Entry]:
    """What is entered until the end of input; commands: what begins with `/` and is completed by Tab. Ctrl-C discards a
    half-typed message. What is pasted is one message, however many lines it has."""
    read = _typed(commands) if sys.stdin.isatty() else _piped
    if hasattr(sys.stdin, "reconfigure"):
        # A line that is no UTF-8 is refused by itself, not with all that follow.
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            text = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo("(Ctrl-D or /quit leaves)")
            continue
        if (entry := parse(text)).text.strip():
            yield entry


def parse(text: str) -> Entry:
    """One entry from its lines, or a block between two lines of three quotes.

    A block is a message whatever it begins with, and so is a line that begins with two slashes, less one of them.
    """
    start = text.lstrip()
    if start.startswith(QUOTES):
        return Entry(start[3:].rstrip().removesuffix(QUOTES).strip("\n"))
    if text.startswith("//"):
        return Entry(text[1:])
    return Entry(text, text.startswith("/"))


def complete(text: str) -> bool:
    """Whether an entry ends behind these lines: a backslash at the end of a line asks for another one."""
    start = text.lstrip()
    if in_block(text):
        return len(start.rstrip()) >= 2 * len(QUOTES) and start.rstrip().endswith(QUOTES)
    return not text.endswith("\\")


def in_block(text: str) -> bool:
    """Whether an entry is a block between three quotes, in which a backslash is one."""
    return text.lstrip().startswith(QUOTES)


def continued(text: str) -> str:
    """An incomplete entry, with what comes next on a line of its own: a backslash that asked for it is gone."""
    return (text if in_block(text) else text.removesuffix("\\")) + "\n"


def _piped() -> str:
    """Lines of standard input until an entry is complete, or the input over; EOFError where there are none."""
    text = ""
    while True:
        line = sys.stdin.readline()
        if not line:
            if not text:
                raise EOFError
            return text.removesuffix("\n")
        text += line.rstrip("\r\n")
        if complete(text):
            return text
        text = continued(text)


def _typed(commands: Sequence[str]) -> Callable[[], str]:
    """Reads from a terminal, with a history that outlives the session."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.output import create_output

    aside = not sys.stdout.isatty() and sys.stderr.isatty()
    session: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=lambda width, number, wrapped: MORE,
        history=_history(),
        key_bindings=_keys(),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        enable_open_in_editor=True,
        # A file or pipe gets the answers alone.
        output=create_output(sys.stderr) if aside else None,
    )
    return session.prompt


def _keys() -> KeyBindings:
    """Enter sends what is complete, and Alt-Enter goes on in the next line."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.text = continued(buffer.text)
            buffer.cursor_position = len(buffer.text)

    @keys.add("escape", "enter")
    def go_on(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """Kept under $XDG_STATE_HOME; in memory alone where nothing can be written there."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    root = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    with suppress(OSError, RuntimeError):
        file = Path(root).expanduser() / "sia_local" / "history"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a"):
            pass
        return FileHistory(file)
    return InMemoryHistory()
