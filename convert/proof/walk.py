"""One pass over the junctions of recorded trajectories that `spread` and `verify` both read, kept beside the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sia_local.errors import DataError, NumericError
from sia_local.files import atomic_write, file_mark, path_mark
from sia_local.progress import Progress

from ..data.examples import Reader
from ..data.trajectories import Trajectory, in_order
from ..formats.checkpoint import ValueCheckpoint
from ..formats.hf import load_tokenizer
from ..settings import Machine
from .junctions import Case, JunctionConfig, find_cases, torch_values

KEPT = "junctions.npz"


@dataclass(frozen=True)
class Walk:
    """Junctions and what PyTorch says of their candidates: values[c] float32 [J, k] for cases[c]."""

    config: JunctionConfig
    cases: list[Case]
    values: list[np.ndarray]

    @property
    def junctions(self) -> int:
        return sum(len(v) for v in self.values)


def walk(
    checkpoint: ValueCheckpoint,
    base: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    config: JunctionConfig | None = None,
    machine: Machine | None = None,
) -> Walk:
    """The junctions of up to `limit` trajectories of `data`, by the base, with values by `checkpoint`.

    Taken from junctions.npz in the checkpoint's folder where that was computed from the same things, and kept there
    otherwise. DataError when there is no trajectory or no junction.
    """
    config, machine = config or JunctionConfig(), machine or Machine()
    trajectories = take(data, config.limit)
    if not trajectories:
        raise DataError("the trajectory files are empty: sample some with `sia-convert rollouts`")
    key, kept = _key(checkpoint, base, trajectories, config), checkpoint.folder / KEPT
    found = _read(kept, key, config, trajectories)
    if found is not None:
        return found
    cases = find_cases(base, trajectories, reader_for(checkpoint), config, machine)
    made = Walk(config, cases, _values(checkpoint, cases))
    _write(kept, key, made, trajectories)
    return made


def reader_for(checkpoint: ValueCheckpoint) -> Reader:
    """The reader of prompts that a trained value model was trained with."""
    meta = checkpoint.meta
    return Reader(load_tokenizer(meta.backbone), meta.prompt_template, as_base=meta.placement == "head")


def take(paths: Iterable[str | os.PathLike[str]], limit: int) -> list[Trajectory]:
    """`limit` trajectories spread over different prompts as far as there are any, in order of their ids."""
    by_prompt: dict[int, list[Trajectory]] = {}
    for trajectory in in_order(paths):
        by_prompt.setdefault(trajectory.prompt_id, []).append(trajectory)
    chosen: list[Trajectory] = []
    rounds = max(map(len, by_prompt.values()), default=0)
    for i in range(rounds):
        chosen += [group[i] for group in by_prompt.values() if i < len(group)]
        if len(chosen) >= limit:
            break
    return chosen[:limit]


def spread_of(found: Walk) -> float:
    """Mean over junctions of the standard deviation of V among the candidates, in the units of V."""
    return float(np.concatenate([v.std(axis=1) for v in found.values]).mean())


def store_spread(checkpoint: ValueCheckpoint, found: Walk) -> float:
    """Writes the spread, the unit of beta in calibrated mode, beside the checkpoint, where `export` finds it."""
    spread = spread_of(found)
    if not spread > 0:
        raise NumericError(f"the spread of V among candidates is {spread}: the value model tells nothing apart")
    checkpoint.store_spread(spread, found.junctions, dataclasses.asdict(found.config))
    return spread


def _values(checkpoint: ValueCheckpoint, cases: Sequence[Case]) -> list[np.ndarray]:
    from ..train.model import load

    model = load(checkpoint)
    progress = Progress("PyTorch", len(cases))
    values = []
    for case in cases:
        values.append(torch_values(model, case))
        progress.update()
    return values


def _key(
    checkpoint: ValueCheckpoint, base: str | os.PathLike[str], trajectories: list[Trajectory], config: JunctionConfig
) -> str:
    parts = [checkpoint.fingerprint(), file_mark(base), path_mark(checkpoint.meta.backbone)]
    parts += [json.dumps(dataclasses.asdict(config), sort_keys=True), *(t.to_json() for t in trajectories)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(path: Path, key: str, made: Walk, trajectories: list[Trajectory]) -> None:
    index = {id(t): i for i, t in enumerate(trajectories)}
    try:
        with atomic_write(path, "wb") as handle:
            np.savez_compressed(
                handle,
                key=np.array(key),
                trajectory=np.array([index[id(c.trajectory)] for c in made.cases], np.int64),
                junctions=np.array([len(c.positions) for c in made.cases], np.int64),
                prompts=np.array([len(c.prompt_ids) for c in made.cases], np.int64),
                prompt_ids=np.concatenate([np.array(c.prompt_ids, np.int64) for c in made.cases]),
                positions=np.concatenate([np.array(c.positions, np.int64) for c in made.cases]),
                candidates=np.concatenate([c.candidates for c in made.cases]),
                values=np.concatenate(made.values),
            )
    except PermissionError:
        return  # a folder that only may be read: the next command walks again


def _read(path: Path, key: str, config: JunctionConfig, trajectories: list[Trajectory]) -> Walk | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            at = np.cumsum(stored["junctions"])[:-1]
            prompts = np.split(stored["prompt_ids"], np.cumsum(stored["prompts"])[:-1])
            positions, candidates = np.split(stored["positions"], at), np.split(stored["candidates"], at)
            cases = [
                Case(trajectories[i], tuple(p.tolist()), where.tolist(), ids)
                for i, p, where, ids in zip(stored["trajectory"], prompts, positions, candidates, strict=True)
            ]
            return Walk(config, cases, np.split(stored["values"], at))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return None  # damaged: made again
