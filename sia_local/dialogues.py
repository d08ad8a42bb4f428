"""Dialogues as data sets write them, told apart by their form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


def messages(dialogue: Any) -> list[tuple[str, str]]:
    """(role, text) of every turn; none where it is no dialogue.

    dialogue: "Human:" and "Assistant:" paragraphs, as HH-RLHF has them; a list of `role` and `content`, as chat
    templates read it; or of `from` and `value`, as ShareGPT has it.
    """
    if isinstance(dialogue, str):
        parts = _TURN.split("\n\n" + dialogue.lstrip("\n"))
        return [(_role(name), text.strip()) for name, text in zip(parts[1::2], parts[2::2], strict=True)]
    if not isinstance(dialogue, (list, tuple)):
        return []
    found = []
    for turn in dialogue:
        if not isinstance(turn, Mapping):
            return []
        role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(text, str):
            return []
        found.append((_role(role), text.strip()))
    return found


def first_question(dialogue: Any) -> str:
    """The user's first message that says something; empty where there is none."""
    return next((text for role, text in messages(dialogue) if role == "user" and text), "")


def _role(name: str) -> str:
    name = name.lower()
    return _ROLES.get(name, name)
