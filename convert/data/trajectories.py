"""Trajectories as JSONL: read with checks, appended line by line so that an interrupted run loses none."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sia_local.errors import ConfigError, DataError
from sia_local.files import parse_json
from sia_local.packed import lines
from sia_local.tables import is_table, rows


@dataclass(frozen=True)
class Branch:
    """Candidates that were continued to the end, instead of the token `at` of a response, several times each.

    ids, logits: the candidates and what the base said of them. means, stds, counts: of the rewards of the whole texts,
    a candidate; stds are of the sample, 0 for a single text.
    """

    at: int
    ids: tuple[int, ...]
    logits: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in vars(self).items() if name != "at"}
        if len(set(sizes.values())) > 1 or not self.ids:
            raise DataError(f"a branch has {sizes}; expected as many of each as candidates")

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Branch:
        """From JSON. KeyError, TypeError or ValueError for what is none."""
        integers = {name: tuple(map(int, entry[name])) for name in ("ids", "counts")}
        floats = {name: tuple(map(float, entry[name])) for name in ("logits", "means", "stds")}
        return cls(at=int(entry["at"]), **integers, **floats)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trajectory:
    """A prompt and one sampled response.

    tokens: generated ids without the token that ended them; finish: `stop` or `length`; stop: the id that
    ended it, if known; rendered: what the base read; raw: the plain prompt, without a chat template; reward: in
    reward units, None before scoring; branches: what else was tried at some of its tokens; told: what the chat template
    was told, which a value model's own is, too.
    """

    id: str
    prompt_id: int
    prompt: str
    rendered: str
    tokens: list[int]
    response: str
    finish: str = "stop"
    reward: float | None = None
    stop: int | None = None
    raw: bool = False
    branches: tuple[Branch, ...] = ()
    told: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.finish not in ("stop", "length"):
            raise DataError(f"trajectory {self.id}: finish is {self.finish!r}, expected 'stop' or 'length'")

    def to_json(self) -> str:
        entry = {name: value for name, value in vars(self).items() if value is not None and value != ()}
        if self.branches:
            entry["branches"] = [vars(branch) for branch in self.branches]
        return json.dumps(entry, ensure_ascii=False)


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file, which may be packed, or of what `sia_local.tables` reads; a last line cut
    short by an interruption is left out.

    DataError names file and line of anything else that is not a JSON object.
    """
    if is_table(path):
        yield from enumerate(rows(path), 1)
        return
    source = Path(path)
    for number, line in lines(source, "JSONL, one object a line, also .gz or .xz, or Parquet"):
        try:
            entry = parse_json(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                return
            raise DataError(f"{source}, line {number}: not valid JSON ({error})") from error
        if not isinstance(entry, dict):
            raise DataError(f"{source}, line {number}: expected a JSON object, found {type(entry).__name__}")
        yield number, entry


def read_trajectories(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Trajectory]:
    """Every trajectory of the files, in order.

    DataError for a line that lacks what a trajectory has, an id that stands twice in a file, and a file given twice:
    such texts would weigh double.
    """
    files: set[Path] = set()
    for path in paths:
        if Path(path).resolve() in files:
            raise DataError(f"{path} is given twice: its texts would weigh double")
        files.add(Path(path).resolve())
        ids: set[str] = set()
        for number, entry in read_jsonl(path):
            try:
                reward = entry.get("reward")
                found = Trajectory(
                    str(entry["id"]),
                    int(entry["prompt_id"]),
                    str(entry["prompt"]),
                    str(entry.get("rendered", "")),
                    [int(token) for token in entry["tokens"]],
                    str(entry["response"]),
                    str(entry.get("finish", "stop")),
                    None if reward is None else float(reward),
                    None if entry.get("stop") is None else int(entry["stop"]),
                    # Files from before there was the field: what the base read tells.
                    bool(entry.get("raw", entry.get("rendered") == entry["prompt"])),
                    tuple(map(Branch.of, entry.get("branches") or ())),
                    dict(entry["told"]) if entry.get("told") else None,
                )
            except KeyError as error:
                raise DataError(
                    f"{path}, line {number}: no {error} in the trajectory; expected id, prompt_id, prompt, tokens, "
                    "response (see `sia-convert rollouts`)"
                ) from error
            except (TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            if found.id in ids:
                raise DataError(
                    f"{path}, line {number}: the id {found.id} stands twice; two processes may have written the file "
                    "at once: remove one of each, or make it again"
                )
            ids.add(found.id)
            yield found


def in_order(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Trajectory]:
    """Like read_trajectories, each file by prompts and ids, so that what is made of it does not depend on which text
    was finished first."""
    for path in paths:
        yield from sorted(read_trajectories([path]), key=lambda t: (t.prompt_id, _natural(t.id)))


def _natural(id: str) -> list[tuple[int, str]]:
    """`3-10` behind `3-9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", id)]


def check_rewards(trajectories: Iterable[Trajectory], whole: bool = True) -> None:
    """DataError for a missing, NaN or infinite reward and, of what is a whole, not a shard, for an empty set or rewards
    that are all the same."""
    low, high, count = math.inf, -math.inf, 0
    for trajectory in trajectories:
        count += 1
        if trajectory.reward is None:
            raise DataError(f"trajectory {trajectory.id} has no reward: run `sia-convert score` first")
        if not math.isfinite(trajectory.reward):
            raise DataError(f"trajectory {trajectory.id} has reward {trajectory.reward}: expected a finite number")
        low, high = min(low, trajectory.reward), max(high, trajectory.reward)
    if not whole:
        return
    if not count:
        raise DataError("the trajectory files are empty: sample some with `sia-convert rollouts`")
    if low == high:
        raise DataError(f"all {count} rewards are {low}: a constant reward teaches nothing; check the reward")


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every count-th item, so that the shards' outputs concatenate."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """`3/16`; ConfigError for anything else."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"--shard {text}: expected I/N with 1 <= I <= N, for example 3/16")
        return cls(int(found[1]), int(found[2]))

    def mine(self, number: int) -> bool:
        """Whether item `number` (from 0) belongs to this shard."""
        return number % self.count == self.index - 1
