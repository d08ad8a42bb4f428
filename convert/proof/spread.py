"""Measures the spread of V among the candidates of a junction, the unit of beta in calibrated mode."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence

from sia_local.errors import NumericError

from ..data.examples import Reader
from ..data.trajectories import Trajectory, read_trajectories
from ..formats.checkpoint import ValueCheckpoint
from ..formats.hf import load_tokenizer
from ..progress import Progress
from .junctions import Runtime, find_cases, spread_of, torch_values


def reader_for(checkpoint: ValueCheckpoint) -> Reader:
    """The reader of prompts that a trained value model was trained with."""
    meta = checkpoint.meta
    return Reader(load_tokenizer(meta.backbone), meta.prompt_template, as_base=meta.placement == "head")


def take(paths: Iterable[str | os.PathLike[str]], limit: int) -> list[Trajectory]:
    """`limit` trajectories spread over different prompts as far as there are any, in order of the file."""
    by_prompt: dict[int, list[Trajectory]] = {}
    for trajectory in read_trajectories(paths):
        by_prompt.setdefault(trajectory.prompt_id, []).append(trajectory)
    chosen: list[Trajectory] = []
    rounds = max(map(len, by_prompt.values()), default=0)
    for i in range(rounds):
        chosen += [group[i] for group in by_prompt.values() if i < len(group)]
        if len(chosen) >= limit:
            break
    return chosen[:limit]


def measure_spread(
    checkpoint: ValueCheckpoint,
    base: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    k: int = 10,
    threshold: float = 1.0,
    limit: int = 60,
    runtime: Runtime | None = None,
) -> tuple[float, int]:
    """(spread in reward units, junctions measured) on up to `limit` trajectories, junctions taken from the base."""
    from ..train.model import load

    cases = find_cases(base, take(paths, limit), reader_for(checkpoint), k, threshold, runtime=runtime)
    model = load(checkpoint)
    progress = Progress("spread", len(cases))
    values = []
    for case in cases:
        values.append(torch_values(model, case))
        progress.update()
    spread = spread_of(values)
    if not spread > 0:
        raise NumericError(f"the spread of V among candidates is {spread}: the value model tells nothing apart")
    return spread, sum(len(v) for v in values)


def store_spread(checkpoint: ValueCheckpoint, spread: float) -> None:
    """Writes the spread into the checkpoint's value.json, from where `export` takes it."""
    dataclasses.replace(checkpoint, meta=dataclasses.replace(checkpoint.meta, spread=spread)).save()
