"""Preference pairs: dialogues of which one was chosen and one rejected, as HH-RLHF writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sia_local.dialogues import messages
from sia_local.errors import DataError
from sia_local.files import parse_json
from sia_local.packed import lines
from sia_local.tables import is_table, rows

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

    path: JSONL (also .gz), or what `sia_local.tables` reads. A line holds `chosen` and `rejected`, each a dialogue as
    `sia_local.dialogues` reads it, or `prompt`, a text or a dialogue, with answers. DataError names a line that is
    neither, and a file without a pair.
    """
    pairs = []
    for number, line in _lines(path):
        try:
            entry = parse_json(line) if isinstance(line, bytes) else line
            chosen, rejected = _turns(entry, "chosen"), _turns(entry, "rejected")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: expected JSON with chosen and rejected ({error})") from error
        if pair := _pair(chosen, rejected, turns):
            pairs.append(pair)
    if not pairs:
        raise DataError(f"{path} has no pair of dialogues that differ only in one of their first {turns} answers")
    return pairs


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    if is_table(path):
        yield from enumerate(rows(path), 1)
        return
    yield from lines(path, "preference pairs (JSONL with chosen and rejected, also .gz or .xz)")


def _turns(entry: dict[str, Any], side: str) -> list[tuple[str, str]]:
    end, prompt = entry[side], entry.get("prompt")
    if not isinstance(end, (str, list)):
        raise TypeError(f"{side} is {end!r:.60}")
    before = [("user", prompt)] if isinstance(prompt, str) else messages(prompt)
    if before and isinstance(end, str):
        return [*before, ("assistant", end)]
    found = messages(end)
    return [*before, *found] if found and found[0][0] == "assistant" else found


def _pair(good: list[tuple[str, str]], bad: list[tuple[str, str]], turns: int) -> Pair | None:
    if good[:-1] != bad[:-1] or len(good) > 2 * turns or len(good) < 2:
        return None
    ends = good[-1], bad[-1]
    if any(role != "assistant" or not text for role, text in ends) or ends[0] == ends[1] or good[-2][0] != "user":
        return None
    return Pair(tuple(good[:-1]), ends[0][1], ends[1][1])
