"""What is entered in a chat: messages and commands, typed under a pseudo-terminal, pasted, piped."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from sia_local.chat.commands import COMMANDS
from sia_local.cli import entry
from sia_local.cli.entry import Entry, complete, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", Entry("hello")),
        ("curl \\\n  -d x \\\n  y", Entry("curl \\\n  -d x \\\n  y")),
        ('"""\n/etc/hosts is a file\n"""', Entry("/etc/hosts is a file")),
        ('"""one\ntwo"""', Entry("one\ntwo")),
        ("/why 3", Entry("/why 3", command=True)),
        ("//etc/hosts is a file", Entry("/etc/hosts is a file")),
        (" /indented", Entry(" /indented")),
        ("pasted\n\nlines\n/quit", Entry("pasted\n\nlines\n/quit")),
    ],
)
def test_an_entry_is_a_message_unless_it_begins_with_a_slash(text: str, expected: Entry) -> None:
    assert parse(text) == expected and complete(text)


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters='"\\')))
def test_any_text_can_be_sent_in_a_block(text: str) -> None:
    block = f'"""\n{text}\n"""'
    assert complete(block) and parse(block) == Entry(text) and not complete(f'"""\n{text}')


@pytest.mark.parametrize(
    ("piped", "message"),
    [
        ("one", "one"),
        ("one \\\ntwo", "one \ntwo"),
        ("one\\", "one"),
        ('"""one\n two\n"""', "one\n two"),
        ('"""one\ntwo', "one\ntwo"),
    ],
)
def test_the_end_of_input_ends_a_message(piped: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    assert list(entry.entries(COMMANDS)) == [Entry(message)]


def typed(keys: str, monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """The entries that a terminal's keys make, until Ctrl-D."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys + "\x04")
        return list(entry.entries(COMMANDS))


def test_keys_of_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    paste = "\x1b[200~first\nsecond\n/third\x1b[201~"
    assert typed(f"{paste}\r", monkeypatch) == [Entry("first\nsecond\n/third")]
    assert typed("a\x1b\rb\r", monkeypatch) == [Entry("a\nb")]  # Alt-Enter
    assert typed("one\\\rtwo\r", monkeypatch) == [Entry("one\ntwo")]
    assert typed('"""\ra\rb"""\r', monkeypatch) == [Entry("a\nb")]
    assert typed("half\x03whole\r", monkeypatch) == [Entry("whole")]  # Ctrl-C
    assert typed("\x1b[A\r", monkeypatch) == [Entry("whole")]  # the history


def test_where_answers_go_elsewhere_what_is_typed_shows_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as screen, create_pipe_input() as keys, create_app_session(input=keys):
        monkeypatch.setattr("sys.stderr", screen)
        keys.send_text("a\r\x04")
        assert list(entry.entries(COMMANDS)) == [Entry("a")]
        assert capsys.readouterr().out == ""
        said = b""
        while b"> " not in said:
            said += os.read(master, 4096)
    os.close(master)


def test_no_home_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/nowhere")
    assert typed("a\r", monkeypatch) == [Entry("a")]
