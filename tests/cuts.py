"""Interruptions between two files that belong together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

Seen = TypeVar("Seen")


class Interrupted(KeyboardInterrupt):
    pass


def at_every_move(
    patch: pytest.MonkeyPatch, begin: Callable[[], object], write: Callable[[], object], read: Callable[[], Seen]
) -> list[Seen]:
    """What `read` finds after `write` was interrupted before its first file was moved into place, its second, … and in
    the end, when it was not; `begin` comes before each."""
    replace, found = os.replace, []
    for moves in itertools.count():
        begin()
        left = [moves]

        def move(source: Any, target: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise Interrupted
            left[0] -= 1
            replace(source, target)

        with patch.context() as within:
            within.setattr(os, "replace", move)
            try:
                write()
                whole = True
            except Interrupted:
                whole = False
        found.append(read())
        if whole:
            break
    return found
