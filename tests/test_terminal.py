"""Lines in a terminal."""

from __future__ import annotations

import re
import signal

import pytest
from calling import run


@pytest.mark.parametrize(
    ("pieces", "columns", "written"),
    [
        (["a fox", " ran ho", "me.\n\n", "It ", "was late"], 10, "a fox ran\nhome.\n\nIt was\nlate"),
        (["ab cd ", "\n", " ef"], 10, "ab cd \n ef"),
        (["exactly", " ten"], 11, "exactly ten"),
        (["exactly", " ten"], 10, "exactly\nten"),
        (["x" * 7, "y" * 7, "z"], 10, "x" * 7 + "y" * 7 + "z"),
        (["end "], 10, "end "),
    ],
)
def test_lines_in_a_terminal_break_between_words(pieces: list[str], columns: int, written: str) -> None:
    from sia_local.cli.terminal import Wrapped

    out: list[str] = []
    wrapped = Wrapped(out.append, lambda: columns)
    for piece in pieces:
        wrapped.put(piece, lambda part: f"<{part}>")
    wrapped.flush()
    assert re.sub("[<>]", "", "".join(out)) == written


def test_a_script_without_spaces_is_written_as_it_comes() -> None:
    from sia_local.cli.terminal import Wrapped

    out: list[str] = []
    wrapped = Wrapped(out.append, lambda: 80)
    for piece in ("昔々", "ある所に"):
        wrapped.put(piece, str)
    assert "".join(out) == "昔々ある所に"


def test_a_command_in_the_background_of_a_script_hears_an_interrupt() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts it
    try:
        assert run("models").exit_code == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
