"""Preference pairs: dialogues of which one was chosen and one rejected, as HH-RLHF writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sia_local.errors import DataError
from sia_local.files import parse_json
from sia_local.tables import is_table, rows

from .packed import lines

_TURN = re.compile(r"\n\n(Human|Assistant):")
Message = dict[str, str]


@dataclass(frozen=True)
class Pair:
    """Two ends of one dialogue: the messages that both share, the better and the worse answer."""

    messages: tuple[tuple[str, str], ...]  # (role, text), the last one the user's
    chosen: str
    rejected: str

    def chats(self) -> tuple[list[Message], list[Message]]:
        """The chosen and the rejected dialogue as a chat template reads them."""
        before = [{"role": role, "content": text} for role, text in self.messages]
        chosen, rejected = ([*before, {"role": "assistant", "content": end}] for end in (self.chosen, self.rejected))
        return chosen, rejected


def read_pairs(path: str | os.PathLike[str], turns: int = 1) -> list[Pair]:
    """The pairs whose dialogues differ only in the last of at most `turns` answers.

    path: JSONL (also .gz), or what `sia_local.tables` reads. A line holds `chosen` and `rejected`, each a dialogue of
    "Human:" and "Assistant:" paragraphs, or `prompt` with `chosen` and `rejected` answers. DataError names a line that
    is neither, and a file without a pair.
    """
    pairs = []
    for number, line in _lines(path):
        try:
            entry = parse_json(line) if isinstance(line, bytes) else line
            chosen, rejected = str(entry["chosen"]), str(entry["rejected"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: expected JSON with chosen and rejected ({error})") from error
        if "prompt" in entry:
            pairs.append(Pair((("user", str(entry["prompt"])),), chosen, rejected))
        elif pair := _dialogues(chosen, rejected, turns):
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} has no pair of dialogues that differ only in one of their first {turns} answers")
    return pairs


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    if is_table(path):
        yield from enumerate(rows(path), 1)
        return
    yield from lines(path, "preference pairs (JSONL with chosen and rejected, also .gz or .xz)")


def _dialogues(chosen: str, rejected: str, turns: int) -> Pair | None:
    good, bad = _messages(chosen), _messages(rejected)
    if good[:-1] != bad[:-1] or len(good) > 2 * turns or len(good) < 2:
        return None
    ends = good[-1], bad[-1]
    if any(role != "assistant" or not text for role, text in ends) or ends[0] == ends[1] or good[-2][0] != "user":
        return None
    return Pair(tuple(good[:-1]), ends[0][1], ends[1][1])


def _messages(dialogue: str) -> list[tuple[str, str]]:
    parts = _TURN.split("\n\n" + dialogue.lstrip("\n"))
    roles = {"Human": "user", "Assistant": "assistant"}
    return [(roles[name], text.strip()) for name, text in zip(parts[1::2], parts[2::2], strict=True)]
