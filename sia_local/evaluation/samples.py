"""Samples of an evaluation and their file: JSONL, appended to as texts finish, resumed after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, DataError


@dataclass
class Sample:
    """One text of one arm. KL and nll (under the base) in nats, summed over the steps.

    sample counts the texts of a prompt from 0. flips: junctions where steering changed the likeliest token;
    values_asked: candidates scored; seconds: wall time since the text that finished before. entropies (nats)
    are kept for the unsteered arm only.
    """

    arm: str
    prompt_id: str
    sample: int
    prompt: str
    response: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    steps: int = 0
    junctions: int = 0
    flips: int = 0
    values_asked: int = 0
    kl: float = 0.0
    kl_truncation: float = 0.0
    nll: float = 0.0
    seconds: float = 0.0
    reward: float | None = None
    judge: float | None = None
    entropies: list[float] | None = None

    @property
    def place(self) -> tuple[str, str, int]:
        return self.arm, self.prompt_id, self.sample

    @property
    def kl_steering(self) -> float:
        """KL without the part due to cutting to the candidates, which the unsteered arm pays too."""
        return self.kl - self.kl_truncation


class SampleFile:
    """`samples.jsonl`: a first line with the settings, then one sample a line."""

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False):
        """Opens or creates. Raises ConfigError when the file holds samples made with other settings."""
        self.path = path
        self.samples: dict[tuple[str, str, int], Sample] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh or not path.exists() or path.stat().st_size == 0:
            path.write_text(json.dumps({"settings": dict(settings)}) + "\n", encoding="utf-8")
        else:
            self._read(settings)
        self._handle: IO[str] = path.open("a", encoding="utf-8")

    def _read(self, settings: Mapping[str, Any]) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self.path, len(whole))  # the line that an interruption cut
        header, samples = parse_samples(whole.decode("utf-8"), str(self.path))
        for key, value in settings.items():
            if header.get(key) != value:
                raise ConfigError(
                    f"'{self.path}' was made with {key} = {header.get(key)!r}, now it is {value!r}; "
                    "choose another --out folder, or --fresh to start over"
                )
        self.samples = {sample.place: sample for sample in samples}

    def add(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            record = {key: value for key, value in asdict(sample).items() if value is not None}
            self._handle.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.samples[sample.place] = sample
        self._handle.flush()

    def of_arm(self, key: str) -> list[Sample]:
        return [sample for sample in self.samples.values() if sample.arm == key]

    def close(self) -> None:
        self._handle.close()


def parse_samples(text: str, source: str) -> tuple[dict[str, Any], list[Sample]]:
    """Settings and samples of a samples file's text; DataError with the line that is not what it should be."""
    known = {f.name for f in fields(Sample)}
    settings: dict[str, Any] = {}
    samples = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "settings" in record:
                settings = record["settings"]
            else:
                samples.append(Sample(**{key: value for key, value in record.items() if key in known}))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise DataError(
                f"line {number} of '{source}' is no evaluation sample ({error}); remove it, or start over with --fresh"
            ) from error
    return settings, samples
