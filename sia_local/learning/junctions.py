"""Junctions with a teacher's values: shards on disk that an interrupted run continues, and the arrays of them all."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError
from ..files import alone, atomic_write, parse_json

FORMAT = "sia-junctions-3"
# What they hold reads the same, but their settings do not say the context that texts were cut at; the first one's name
# model files by name and size, which those made anew share.
OLDER = ("sia-junctions-1", "sia-junctions-2")
Float32 = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16] | Float32
Int32 = npt.NDArray[np.int32]
# Before the name of each array of transitions in a shard.
TAKEN = "taken_"


@dataclass(frozen=True)
class Junctions:
    """J junctions of k candidates each.

    hidden float16 or float32 [J, n_embd]: the base's final normed hidden state. ids int32 [J, k]: candidates.
    logits float32 [J, k]: the base's. values float32 [J, k]: the teacher's, reward units, NaN where a candidate was
    not tried. counts float32 [J, k]: how much each value weighs, as the rollouts behind it (1 for a value model).
    prompts int32 [J]: which prompt the text came from. Raises DataError for arrays that do not fit together.
    """

    hidden: Halves
    ids: Int32
    logits: Float32
    values: Float32
    prompts: Int32
    counts: Float32 | None = None

    def __post_init__(self) -> None:
        n, k = self.ids.shape
        shapes = {"hidden": (n, self.hidden.shape[-1]), "logits": (n, k), "values": (n, k), "prompts": (n,)}
        shapes["counts"] = (n, k)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise DataError(f"junctions' {name} are {list(array.shape)}, expected {list(shape)} beside their ids")
        if not np.isfinite(self.hidden).all():
            raise DataError("a hidden state of the junctions is NaN or infinite; collect them again, as float32")
        if np.isinf(self.values).any() or np.isnan(self.logits).any():
            raise DataError(
                "junctions hold infinite values or NaN logits; expected numbers, NaN only for values not tried"
            )
        if self.counts is not None and not (np.isfinite(self.counts) & (self.counts >= 0)).all():
            raise DataError("the counts of junctions are negative or not finite; expected rollouts a candidate")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def k(self) -> int:
        return int(self.ids.shape[1])

    @property
    def n_embd(self) -> int:
        return int(self.hidden.shape[1])

    def take(self, rows: npt.NDArray[Any] | slice) -> Junctions:
        """Those of an index, a mask or a slice."""
        return Junctions(
            self.hidden[rows],
            self.ids[rows],
            self.logits[rows],
            self.values[rows],
            self.prompts[rows],
            None if self.counts is None else self.counts[rows],
        )

    def tried(self) -> npt.NDArray[np.bool_]:
        """Candidates with a value, bool [J, k]."""
        known = ~np.isnan(self.values)
        return known if self.counts is None else known & (self.counts > 0)

    def numbers(self) -> npt.NDArray[np.float64]:
        """The values with 0 where a candidate was not tried, float64 [J, k]."""
        return np.where(self.tried(), self.values, 0.0).astype(np.float64)


def split(junctions: Junctions, share: float = 0.1, seed: int = 0) -> tuple[Junctions, Junctions]:
    """(to learn from, held out): no prompt is in both. share: of the prompts held out, at least one.

    Raises DataError for fewer than two prompts.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the held-out share is {share}; expected between 0 and 1")
    prompts = np.unique(junctions.prompts)
    if len(prompts) < 2:
        raise DataError(f"the junctions come from {len(prompts)} prompts; expected at least 2, one to hold out")
    n = min(len(prompts) - 1, max(1, round(share * len(prompts))))
    held = np.isin(junctions.prompts, np.random.default_rng(seed).permutation(prompts)[:n])
    return junctions.take(~held), junctions.take(held)


@dataclass(frozen=True)
class Transitions:
    """T tokens that were taken where no candidates were scored, and what each was worth to the teacher.

    hidden float16 or float32 [T, n_embd]: the base's final normed hidden state before the token. ids int32 [T]: the
    tokens. gains float32 [T]: the teacher's value after the token less that before it, reward units. prompts int32 [T].
    Raises DataError for arrays that do not fit together or are not finite.
    """

    hidden: Halves
    ids: Int32
    gains: Float32
    prompts: Int32

    def __post_init__(self) -> None:
        shapes = {name: array.shape[:1] for name, array in vars(self).items()}
        if len(set(shapes.values())) > 1 or self.hidden.ndim != 2:
            raise DataError(f"transitions have {shapes}; expected as many hidden states, ids, gains and prompts")
        if not (np.isfinite(self.hidden).all() and np.isfinite(self.gains).all()):
            raise DataError("transitions hold NaN or infinite numbers; collect them again")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: npt.NDArray[Any] | slice) -> Transitions:
        """Those of an index, a mask or a slice."""
        return Transitions(*(array[rows] for array in vars(self).values()))


_TAKEN_NAMES = tuple(TAKEN + name for name in Transitions.__dataclass_fields__)


class JunctionWriter:
    """Writes shards of whole texts: `with JunctionWriter(folder, settings) as out: out.add(text, junctions)`.

    settings: what the junctions depend on (JSON values); a folder begun with others is refused, or with `anew`
    emptied. After an interruption `finished` says which texts need no second run. A shard is whole or absent, and holds
    what came in EVERY seconds, which is what a kill may cost.
    """

    EVERY = 20.0

    def __init__(
        self, folder: str | os.PathLike[str], settings: Mapping[str, Any], per_shard: int = 4096, anew: bool = False
    ):
        self.folder = Path(folder)
        self.per_shard = per_shard
        _begin(self.folder, {"format": FORMAT, **settings}, anew)
        self.finished: set[int] = set()
        self._next = 0
        for path in _shards(self.folder):
            self.finished |= set(_read(path, "texts")["texts"].tolist())
            self._next = int(path.stem.split("-")[1]) + 1
        self._began = time.monotonic()
        self._texts: list[int] = []
        self._waiting: list[Junctions] = []
        self._taken: list[Transitions] = []

    def __enter__(self) -> JunctionWriter:
        self._held = alone(self.folder)
        self._held.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._held.__exit__(None, None, None)

    def add(self, text: int, junctions: Junctions | None, taken: Transitions | None = None) -> None:
        """The junctions of one text, all of them, and its tokens; None for a text that has none."""
        if text in self.finished:
            raise ConfigError(f"text {text} is in {self.folder} already; leave out those in `finished`")
        self.finished.add(text)
        self._texts.append(text)
        if junctions is not None and len(junctions):
            self._waiting.append(junctions)
        if taken is not None and len(taken):
            self._taken.append(taken)
        full = sum(map(len, self._waiting)) >= self.per_shard
        if full or time.monotonic() - self._began >= self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes what waits as a shard."""
        if not self._texts:
            return
        arrays: dict[str, npt.NDArray[Any]] = {"texts": np.array(self._texts, np.int32)}
        if self._waiting:
            whole = concatenate(self._waiting)
            arrays |= {name: array for name, array in vars(whole).items() if array is not None}
        if self._taken:
            arrays |= {TAKEN + name: array for name, array in vars(_joined(self._taken)).items()}
        with atomic_write(self.folder / f"shard-{self._next:05d}.npz", "wb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]
        self._next += 1
        self._began = time.monotonic()
        self._texts, self._waiting, self._taken = [], [], []


def concatenate(parts: list[Junctions]) -> Junctions:
    """One after the other. DataError where widths differ, or only some have counts."""
    first = parts[0]
    for part in parts[1:]:
        if (part.n_embd, part.k) != (first.n_embd, first.k):
            raise DataError(
                f"junctions of width {part.n_embd} with {part.k} candidates follow some of width {first.n_embd} with "
                f"{first.k}; expected the same of all"
            )
        if (part.counts is None) != (first.counts is None):
            raise DataError("only some of the junctions have counts; expected all or none")
    joined: dict[str, Any] = {
        name: None if array is None else np.concatenate([getattr(part, name) for part in parts])
        for name, array in vars(first).items()
    }
    return replace(first, **joined)


def _joined(parts: list[Transitions]) -> Transitions:
    if len(widths := {part.hidden.shape[1] for part in parts}) > 1:
        raise DataError(f"transitions of widths {sorted(widths)} follow each other; expected the same of all")
    return Transitions(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Transitions)))


def read_junctions(folder: str | os.PathLike[str]) -> tuple[Junctions, dict[str, Any]]:
    """(all junctions, settings) of a folder. DataError when it holds none or a shard is damaged."""
    folder = Path(folder)
    settings = read_settings(folder)
    parts = []
    for path in _shards(folder):
        arrays = _read(path)
        if own := {name: array for name, array in arrays.items() if name in Junctions.__dataclass_fields__}:
            parts.append(Junctions(**own))
    if not parts:
        raise DataError(
            f"{folder}: holds no junctions yet; collect some, or lower the entropy threshold, in another folder"
        )
    return concatenate(parts), settings


def read_transitions(folder: str | os.PathLike[str]) -> Transitions | None:
    """The tokens that were taken in the texts of a folder; None for one whose teacher said nothing of them."""
    shards = map(_read, _shards(Path(folder)))
    parts = [
        Transitions(**{name: arrays[TAKEN + name] for name in Transitions.__dataclass_fields__})
        for arrays in shards
        if TAKEN + "ids" in arrays
    ]
    return _joined(parts) if parts else None


def read_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the junctions of a folder were collected with. DataError if it is no such folder."""
    path = Path(folder) / "settings.json"
    try:
        settings: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no settings.json; expected a folder of collected junctions") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); collect the junctions again") from error
    if not isinstance(settings, dict) or settings.get("format") not in (FORMAT, *OLDER):
        raise DataError(f"{path}: not of the format {FORMAT}; expected a folder of collected junctions")
    return settings


def _begin(folder: Path, settings: dict[str, Any], anew: bool) -> None:
    wanted = json.loads(json.dumps(settings))
    if (folder / "settings.json").exists():
        found = read_settings(folder)
        if found == wanted:
            return
        if not anew:
            raise ConfigError(_other(folder, found, wanted))
        with alone(folder):
            # The settings last: a kill leaves them beside too few shards, not new ones beside old shards.
            for path in _shards(folder):
                path.unlink()
    elif any(_shards(folder)):
        raise DataError(f"{folder}: has shards but no settings.json; give another folder")
    with atomic_write(folder / "settings.json") as handle:
        json.dump(wanted, handle, indent=1)


def _other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if found["format"] in OLDER:
        return (
            f"{folder} was begun by an older version, which did not note all that its junctions depend on, such as the "
            "context, so that may be another by now; remove it, or give another folder"
        )
    key = next(key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key))
    return (
        f"{folder} was begun with {key} = {found.get(key)!r}, now it is {wanted.get(key)!r}; give the same settings, "
        "or another folder"
    )


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.npz"))


def _read(path: Path, only: str | None = None) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path) as shard:
            arrays = {name: shard[name] for name in ([only] if only else shard.files)}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable shard ({error}); delete it and collect again") from error
    if unknown := arrays.keys() - {"texts", *Junctions.__dataclass_fields__, *_TAKEN_NAMES}:
        raise DataError(f"{path}: holds {', '.join(sorted(unknown))}, which no shard has; delete it and collect again")
    return arrays
