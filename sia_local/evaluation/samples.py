"""Samples of an evaluation and their file: JSONL, appended to as texts finish, resumed after an interruption."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, DataError
from ..files import alone, parse_json
from ..records import Completion

_UNSAID = ("job", "_thoughts")


@dataclass(kw_only=True)
class Sample(Completion):
    """One text of one arm, with its sums.

    sample counts the texts of a prompt from 0. seconds: wall time since the text that finished before. value: of the
    whole text, reward units, in arms that keep the best by value. entropies (nats) are kept for the unsteered arm only.
    """

    arm: str
    prompt_id: str
    sample: int
    prompt: str
    seconds: float = 0.0
    reward: float | None = None
    judge: float | None = None
    value: float | None = None
    entropies: list[float] | None = None

    def record(self) -> dict[str, Any]:
        """The sample as a line of the file has it: its text under `response`."""
        whole = {name: value for name, value in asdict(self).items() if value is not None and name not in _UNSAID}
        if not self.reasoning:
            del whole["reasoning"]
        return {"response": whole.pop("text"), **whole}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Sample:
        """Raises TypeError for a record that lacks a field; what it has beyond is left out."""
        known = {f.name for f in fields(cls)}
        whole = {"text": record.get("response", ""), **record}
        sample = cls(**{name: value for name, value in whole.items() if name in known})
        if [type(part) for part in sample.place] != [str, str, int]:
            raise TypeError(f"arm, prompt_id and sample are {sample.place}; expected two texts and a number")
        return sample

    @property
    def place(self) -> tuple[str, str, int]:
        return self.arm, self.prompt_id, self.sample

    def score(self, pick: str) -> float:
        """What the best of N is picked by (`reward` or `value`), -inf where it is not known."""
        score = self.value if pick == "value" else self.reward
        return -math.inf if score is None else score


class SampleFile:
    """`samples.jsonl`: a line with the settings, then samples, and decisions that later samples must follow."""

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False):
        """Opens or creates. Raises ConfigError when the file holds samples made with other settings, and while another
        process writes its folder."""
        self.path = path
        self.samples: dict[tuple[str, str, int], Sample] = {}
        self.fixed: dict[str, Any] = {}
        self.earlier: set[str] = set()  # arms with texts of an earlier run
        with ExitStack() as held:
            held.enter_context(alone(path.parent))
            if fresh or not path.exists() or b"\n" not in path.read_bytes():
                path.write_text(json.dumps({"settings": dict(settings)}) + "\n", encoding="utf-8")
            else:
                self._read(settings)
            self._handle: IO[str] = held.enter_context(path.open("a", encoding="utf-8"))
            self._held = held.pop_all()

    def _read(self, settings: Mapping[str, Any]) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        header, self.fixed, samples = parse_samples(whole.decode("utf-8", "replace"), str(self.path))
        settings = json.loads(json.dumps(settings))
        for key in {**header, **settings}:
            if header.get(key) != settings.get(key):
                raise ConfigError(
                    f"'{self.path}' was made with {key} {_difference(header.get(key), settings.get(key))}; "
                    "choose another --out folder, or --fresh to start over"
                )
        if len(whole) < len(raw):
            os.truncate(self.path, len(whole))  # the line that an interruption cut
        self.samples = {sample.place: sample for sample in samples}
        self.earlier = {sample.arm for sample in samples}

    def fix(self, name: str, value: Any, anew: bool = False) -> Any:
        """The value decided for `name` when the first samples that depend on it were made; else decides it now.

        anew: no sample depends on it yet, so that a value of a run that made none does not count.
        """
        if name not in self.fixed or (anew and self.fixed[name] != json.loads(json.dumps(value))):
            self.fixed[name] = json.loads(json.dumps(value))
            self._handle.write(json.dumps({"fixed": {name: value}}) + "\n")
            self._handle.flush()
        return self.fixed[name]

    def add(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            record = sample.record()
            self._handle.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.samples[sample.place] = sample
        self._handle.flush()

    def forget(self, score: str, mark: str) -> int:
        """Of texts that another `score` (`reward` or `judge`) than that of `mark` has scored, which then have none; how
        many. Those of a folder that has no mark yet count as of this one."""
        key, texts = f"{score} files", [text for text in self.samples.values() if getattr(text, score) is not None]
        if self.fixed.get(key, mark) == mark:
            texts = []
        for text in texts:
            setattr(text, score, None)
        # Before the mark: an interruption between them forgets again.
        self.add(texts)
        self.fix(key, mark, anew=True)
        return len(texts)

    def of_arm(self, key: str) -> list[Sample]:
        return [sample for sample in self.samples.values() if sample.arm == key]

    def close(self) -> None:
        self._held.close()


def _difference(stored: Any, now: Any) -> str:
    """What differs, in a sentence: of two mappings only the first differing entry."""
    if isinstance(stored, dict) and isinstance(now, dict):
        name = next(name for name in {**stored, **now} if stored.get(name) != now.get(name))
        return f"{name} {_difference(stored.get(name), now.get(name))}"
    return f"= {stored!r}, now it is {now!r}"


def parse_samples(text: str, source: str) -> tuple[dict[str, Any], dict[str, Any], list[Sample]]:
    """Settings, decisions and samples of a samples file's text; DataError names a line that is none of them."""
    settings: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    samples = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if "settings" in record:
                settings = record["settings"]
            elif "fixed" in record:
                fixed |= record["fixed"]
            else:
                samples.append(Sample.of_record(record))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"line {number} of '{source}' is no evaluation sample ({error}); remove it, or start over with --fresh"
            ) from error
    return settings, fixed, samples
