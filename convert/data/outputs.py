"""JSONL outputs that a command appends to: one writer at a time, continued only with the settings they began with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sia_local.errors import ConfigError, DataError
from sia_local.files import atomic_write, hold, parse_json
from sia_local.packed import check_plain
from sia_local.tables import is_table

from ..provenance import provenance
from .trajectories import Trajectory, read_trajectories

# How every line begins.
BEGINS = b'{"id": "'


class Done(NamedTuple):
    """What a line that is already there answers."""

    prompt_id: int
    prompt: str
    response: str
    reward: float | None


class Appender:
    """Appends lines to a JSONL file, each whole before the next: `with Appender(path, settings) as out: out(line)`.

    `out.done` holds what was there before, by id, a last line that an interruption left incomplete cut off.
    `<path>.made.json` beside it says by which command, versions and settings; the lines stay free to concatenate.
    DataError when another process writes the same file, when something else is there, which is left as it is, or when
    the lines there were made with other settings. ConfigError for the name of a packed file or a table, and for what
    cannot be read again, such as a pipe.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None):
        self.path, self.settings = Path(path), dict(settings or {})
        self.done: dict[str, Done] = {}

    def __enter__(self) -> Appender:
        check_plain(self.path)
        if is_table(self.path):
            raise ConfigError(f"{self.path}: lines are appended as plain JSONL; name it {self.path.stem}.jsonl")
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(f"{self.path}: lines are appended, and read again; expected the path of a file")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self.path.open("ab", buffering=0)
        try:
            if not hold(self._handle):
                raise DataError(f"{self.path} is being written by another process: let it end, or name another output")
            there = read_trajectories([self.path])
            self.done = {t.id: Done(t.prompt_id, t.prompt, t.response, t.reward) for t in there}
            self._mend_end()
            made = self.path.with_name(f"{self.path.name}.made.json")
            if self.done and made.exists():
                self._check_settings(made)
            with atomic_write(made) as handle:
                json.dump({"settings": self.settings, **provenance()}, handle, indent=1)
        except BaseException:
            self._handle.close()
            raise
        return self

    def _mend_end(self) -> None:
        """Ends the last line, or cuts off what an interruption left of one."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        cut = data[whole:].rstrip(b"\0")
        try:
            parse_json(cut)
            self._handle.write(b"\n")
        except ValueError:
            if not cut.startswith(BEGINS[: len(cut)]):
                raise DataError(
                    f"{self.path} ends in {cut[:40]!r}, which is no part of a trajectory: name another output"
                ) from None
            self._handle.truncate(whole)

    def _check_settings(self, made: Path) -> None:
        try:
            before = parse_json(made.read_text(encoding="utf-8")).get("settings", {})
        except (ValueError, AttributeError):
            return  # cut short by a kill: nothing is known
        now = json.loads(json.dumps(self.settings))
        other = [f"{key} {before[key]}, not {now[key]}" for key in now if key in before and before[key] != now[key]]
        if other:
            raise DataError(
                f"{self.path} holds {len(self.done)} texts made with {'; '.join(other)}: name another output, or "
                "remove it"
            )

    def check_same(self, trajectory: Trajectory, response: bool = True, reward: bool = False) -> bool:
        """Whether this trajectory is there already; DataError when its id stands there for something else, or with
        another reward where that counts."""
        found = self.done.get(trajectory.id)
        if found is None:
            return False
        if found.prompt != trajectory.prompt or (response and found.response != trajectory.response):
            raise DataError(
                f"{self.path} holds another text under the id {trajectory.id} (prompt {found.prompt[:40]!r}, now "
                f"{trajectory.prompt[:40]!r}): its prompts or texts changed; name another output, or remove it"
            )
        if reward and found.reward != trajectory.reward:
            raise DataError(
                f"{self.path} holds the text {trajectory.id} with the reward {found.reward}, now it is "
                f"{trajectory.reward}; name another output, or remove it"
            )
        return True

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
