"""Trajectories as JSONL: read with checks, appended line by line so that an interrupted run loses none."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sia_local.errors import ConfigError, DataError
from sia_local.files import atomic_write

from ..aside import provenance


@dataclass(frozen=True)
class Trajectory:
    """A prompt and one sampled response.

    tokens: generated ids without the token that ended them; finish: `stop` or `length`; stop: the id that
    ended it, if known; rendered: what the base read; reward: in reward units, None before scoring.
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

    def __post_init__(self) -> None:
        if self.finish not in ("stop", "length"):
            raise DataError(f"trajectory {self.id}: finish is {self.finish!r}, expected 'stop' or 'length'")

    def to_json(self) -> str:
        entry = {name: value for name, value in vars(self).items() if value is not None}
        return json.dumps(entry, ensure_ascii=False)


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file; a last line cut short by an interruption is left out.

    DataError names file and line of anything else that is not a JSON object.
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"no file at {source}: expected JSONL, one object a line")
    with source.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if not line.endswith(b"\n"):
                    return
                raise DataError(f"{source}, line {number}: not valid JSON ({error})") from error
            if not isinstance(entry, dict):
                raise DataError(f"{source}, line {number}: expected a JSON object, found {type(entry).__name__}")
            yield number, entry


def read_trajectories(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Trajectory]:
    """Every trajectory of the files, in order. DataError for a line that lacks what a trajectory has."""
    for path in paths:
        for number, entry in read_jsonl(path):
            try:
                reward = entry.get("reward")
                yield Trajectory(
                    str(entry["id"]),
                    int(entry["prompt_id"]),
                    str(entry["prompt"]),
                    str(entry.get("rendered", "")),
                    [int(token) for token in entry["tokens"]],
                    str(entry["response"]),
                    str(entry.get("finish", "stop")),
                    None if reward is None else float(reward),
                    None if entry.get("stop") is None else int(entry["stop"]),
                )
            except KeyError as error:
                raise DataError(
                    f"{path}, line {number}: no {error} in the trajectory; expected id, prompt_id, prompt, tokens, "
                    "response (see `sia-convert rollouts`)"
                ) from error
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error


def check_rewards(trajectories: Iterable[Trajectory]) -> None:
    """DataError for an empty set, a missing, NaN or infinite reward, or rewards that are all the same."""
    low, high, count = math.inf, -math.inf, 0
    for trajectory in trajectories:
        count += 1
        if trajectory.reward is None:
            raise DataError(f"trajectory {trajectory.id} has no reward: run `sia-convert score` first")
        if not math.isfinite(trajectory.reward):
            raise DataError(f"trajectory {trajectory.id} has reward {trajectory.reward}: expected a finite number")
        low, high = min(low, trajectory.reward), max(high, trajectory.reward)
    if not count:
        raise DataError("the trajectory files are empty: sample some with `sia-convert rollouts`")
    if low == high:
        raise DataError(f"all {count} rewards are {low}: a constant reward teaches nothing; check the reward")


def finished_ids(path: str | os.PathLike[str]) -> set[str]:
    """Ids already in a JSONL output, after cutting off a last line that an interruption left incomplete."""
    target = Path(path)
    if not target.exists():
        return set()
    data = target.read_bytes()
    if data and not data.endswith(b"\n"):
        with target.open("r+b") as handle:
            handle.truncate(data.rfind(b"\n") + 1)
    return {str(entry["id"]) for _, entry in read_jsonl(target) if "id" in entry}


class Appender:
    """Appends lines to a JSONL file, each whole before the next: `with Appender(path) as out: out(line)`.

    `<path>.made.json` beside it says by which command and versions; the lines stay free to concatenate.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __enter__(self) -> Appender:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path.with_name(f"{self.path.name}.made.json")) as made:
            json.dump(provenance(), made, indent=1)
        self._handle = self.path.open("ab", buffering=0)
        return self

    def __call__(self, line: str) -> None:
        data = memoryview(line.encode("utf-8") + b"\n")
        before = self._handle.tell()
        try:
            while data:  # an unbuffered write may take only a part
                data = data[self._handle.write(data) or 0 :]
        except BaseException:
            self._handle.truncate(before)
            raise

    def __exit__(self, *_: object) -> None:
        self._handle.close()


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
