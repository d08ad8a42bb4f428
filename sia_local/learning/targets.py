"""Targets without a teacher: what candidates earned when they were tried, as `sia-convert branch` writes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ContextFullError, DataError
from ..files import parse_json
from ..generation.sia import SIA
from ..packed import lines
from ..progress import Pace
from ..tables import is_table, rows
from .collect import Progress, hidden_states
from .junctions import Junctions, concatenate


def read_targets(
    sia: SIA, path: str | os.PathLike[str], progress: Callable[[Progress], None] = lambda _: None
) -> Junctions:
    """The branches of a file as junctions: values are mean rewards, counts the texts behind each.

    sia: the base that wrote the texts, which keeps hidden states (Setup.hidden_states); each text is read once. A
    candidate that was not tried at a junction where others were is NaN with count 0. Raises DataError where no line has
    branches, or is none of `sia-convert branch`, and ContextFullError, which names the line, for a text that the
    context does not hold.
    """
    entries = list(_entries(Path(path)))
    k = 0
    for number, entry in entries:
        with _expected(path, number):
            k = max([k, *(len(b["ids"]) for b in entry["branches"])])
    found: list[Junctions] = []
    numbers: dict[str, int] = {}
    pace = Pace(len(entries))
    for number, entry in entries:
        if entry["branches"]:
            with _expected(path, number):
                # By what they say: equal prompts may have ids of their own, and are held out together.
                prompt = numbers.setdefault(entry["prompt"], len(numbers))
                found.append(_junctions(sia, entry, k, prompt))
        pace.item()
        progress(Progress(pace.done, len(entries), sum(map(len, found)), pace.left()))
    if not found:
        raise DataError(f"{path}: no text in it has branches; make some with `sia-convert branch`")
    return concatenate(found)


@contextmanager
def _expected(path: str | os.PathLike[str], number: int) -> Iterator[None]:
    """Around what takes a line of a file at its word."""
    try:
        yield
    except ContextFullError as error:
        raise ContextFullError(f"{path}, line {number}: {error}", error.tokens, error.holds) from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(f"{path}, line {number}: {error!r}; expected a line of `sia-convert branch`") from error


def _junctions(sia: SIA, entry: dict[str, Any], k: int, number: int) -> Junctions:
    branches = entry["branches"]
    raw, told = bool(entry.get("raw", False)), entry.get("told")
    prompt = sia.prompt_again(entry["prompt"], entry.get("rendered", ""), raw, told)
    at = [int(b["at"]) for b in branches]
    hidden = hidden_states(sia, prompt, [int(t) for t in entry["tokens"][: max(at)]])

    def table(name: str, missing: float, dtype: type) -> np.ndarray[Any, Any]:
        return np.array([[*b[name], *[missing] * (k - len(b[name]))] for b in branches], dtype)

    return Junctions(
        hidden=hidden[at],
        ids=table("ids", 0, np.int32),
        logits=table("logits", 0.0, np.float32),
        values=table("means", np.nan, np.float32),
        prompts=np.full(len(at), number, np.int32),
        counts=table("counts", 0.0, np.float32),
    )


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if is_table(path):
        yield from (
            (number, {**row, "branches": row.get("branches") or []}) for number, row in enumerate(rows(path), 1)
        )
        return
    for number, line in lines(path, "the JSONL of `sia-convert branch`"):
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {type(entry).__name__}")
        yield number, {**entry, "branches": entry.get("branches", [])}
