"""Prompt sets in the formats they are published in, told apart by extension and columns.

AlpacaEval JSON (`instruction`), AdvBench CSV (`goal`), HarmBench CSV (`Behavior`, `ContextString`), XSTest CSV
(`prompt`), HEx-PHI CSV (one column, no header), JSONL of objects or strings, text with one prompt a line, Parquet,
a folder of such files, and `hub:owner/name[/config][:split]`, a data set of the Hugging Face Hub. All but Parquet also
packed (.gz, .xz). Of a dialogue (`messages`, `conversations`, or the `chosen` of a preference pair, as in HH-RLHF,
UltraFeedback, ShareGPT) the user's first message is the prompt; one that came before does not come again, since pairs
share theirs.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .dialogues import first_question
from .errors import DataError
from .files import parse_json
from .packed import read, unpacked
from .tables import is_table, rows

COLUMNS = ("prompt", "instruction", "goal", "behavior", "question", "query", "text")
DIALOGUES = ("messages", "conversations", "conversation", "chosen")
CONTEXT = "contextstring"  # HarmBench puts the text a behaviour refers to here
INPUTS = ("input", "context")  # Alpaca and Dolly put there what an instruction is about
EXTENSIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True)
class PromptItem:
    """One prompt. `id` is the set's own where it has one, else the position from 0, and no other's; `meta` the other
    fields."""

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a file in order, without empty ones. Raises DataError with one sentence."""
    return [item.text for item in read_prompt_items(path)]


def read_prompt_items(path: str | os.PathLike[str]) -> list[PromptItem]:
    """Like `read_prompts`, with identifiers and the other fields of each row."""
    source = Path(path)
    if source.is_dir():
        files = sorted(child for child in source.iterdir() if unpacked(child).suffix.lower() in EXTENSIONS)
        items = [
            PromptItem(f"{file.stem}-{item.id}", item.text, item.meta)
            for file in files
            for item in read_prompt_items(file)
        ]
    else:
        items = _read_file(source)
    if not items:
        raise DataError(f"'{source}' holds no prompts; expected at least one, in {', '.join(EXTENSIONS)}")
    taken: set[str] = set()
    return [replace(item, id=distinct(item.id, at, taken)) for at, item in enumerate(items)]


def distinct(id: str, place: int, taken: set[str]) -> str:
    """The id, with its place in the file behind it where it was `taken` before; it is noted there. Rows of published
    sets share ids, as the answers to one prompt do."""
    while id in taken:
        id = f"{id}-{place}"
    taken.add(id)
    return id


def with_input(prompt: str, column: str | None, row: Mapping[str, Any]) -> str:
    """The prompt, found in this column, and what it is about below it, as Alpaca has them; behind other columns than
    `instruction` fields of these names are something else."""
    given = next((row[name] for name in INPUTS if isinstance(row.get(name), str)), "").strip()
    return f"{prompt}\n\n{given}" if column == "instruction" and given else prompt


def _read_file(source: Path) -> list[PromptItem]:
    if is_table(source):
        return _from_records(list(rows(source)), source)
    try:
        text = read(source).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"the prompt file '{source}' does not exist; check the path") from error
    except OSError as error:
        raise DataError(f"the prompt file '{source}' cannot be read ({error}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{source}' is not UTF-8 text ({error}); expected {', '.join(EXTENSIONS)}") from error
    suffix = unpacked(source).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _from_table(text, source, "\t" if suffix == ".tsv" else ",")
    if suffix == ".jsonl":
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        return _from_records([_parse(line, source, f"line {n}") for n, line in lines], source)
    if suffix == ".json":
        data = _parse(text, source, "the file")
        if not isinstance(data, list):
            raise DataError(f"'{source}' holds a JSON {type(data).__name__}; expected a list of objects or strings")
        return _from_records(data, source)
    return [
        PromptItem(str(index), line.strip())
        for index, line in enumerate(line for line in text.split("\n") if line.strip())
    ]


def _parse(text: str, source: Path, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{where} of '{source}' is not JSON ({error}); expected one value a line in .jsonl, "
                        "one list in .json") from error  # fmt: skip


def _from_table(text: str, source: Path, delimiter: str) -> list[PromptItem]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error as error:
        raise DataError(
            f"'{source}' is not a readable table ({' '.join(str(error).split())}); expected quoted text"
        ) from error
    if not rows:
        return []
    header = rows[0]
    if any(name.strip().lower() in COLUMNS for name in header):
        return _from_records([dict(zip(header, row, strict=False)) for row in rows[1:]], source)
    if all(len(row) == 1 for row in rows):
        return [PromptItem(str(index), row[0].strip()) for index, row in enumerate(rows)]
    raise DataError(
        f"'{source}' has the columns {', '.join(header)}; expected one of {', '.join(COLUMNS)}, "
        "or a single column without a header"
    )


def _from_records(records: list[Any], source: Path) -> list[PromptItem]:
    items = []
    seen: set[str] = set()
    for index, record in enumerate(records):
        if isinstance(record, str):
            if record.strip():
                items.append(PromptItem(str(index), record.strip()))
            continue
        if not isinstance(record, Mapping):
            raise DataError(f"entry {index} of '{source}' is a {type(record).__name__}; expected an object or a string")
        by_name = {str(key).strip().lower(): value for key, value in record.items()}
        column = next((name for name in (*COLUMNS, *DIALOGUES) if name in by_name), None)
        said = None if column is None else by_name[column]
        dialogue = column in DIALOGUES or isinstance(said, (list, tuple))
        prompt = first_question(said) if dialogue else said
        if not isinstance(prompt, str) or (dialogue and not prompt):
            raise DataError(
                f"entry {index} of '{source}' has the fields {', '.join(map(str, record))}; "
                f"expected text in one of {', '.join(COLUMNS)}, or a dialogue in one of {', '.join(DIALOGUES)}"
            )
        prompt = prompt.strip()
        if not prompt or (dialogue and prompt in seen):
            continue
        seen.add(prompt)
        if isinstance(by_name.get(CONTEXT), str) and by_name[CONTEXT].strip():
            prompt = f"{by_name[CONTEXT].strip()}\n\n---\n\n{prompt}"  # as HarmBench joins them
        prompt = with_input(prompt, column, by_name)
        identifier = by_name.get("id", by_name.get("behaviorid", by_name.get("prompt_id", index)))
        meta = {str(k): v for k, v in record.items() if str(k).strip().lower() not in (column, "id")}
        items.append(PromptItem(str(identifier), prompt, meta))
    return items
