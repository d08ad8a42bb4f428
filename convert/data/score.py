"""Adds rewards to trajectories: in batches, resumable, refusing what could not be learnt from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

from sia_local.errors import DataError
from sia_local.rewards.load import Reward, load_reward

from ..progress import Progress
from .trajectories import Appender, Shard, Trajectory, check_rewards, finished_ids, read_trajectories


def score_files(
    sources: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    spec: str,
    batch: int = 64,
    shard: Shard | None = None,
) -> int:
    """Appends every trajectory of `sources` with its reward to `out`; returns how many are new.

    `spec` is what `sia_local.rewards.load_reward` takes; `data` keeps the rewards that are there. Trajectories
    already in `out` are skipped. DataError for an empty set, a missing, or a constant reward; NumericError
    for NaN, before the batch it is in is written.
    """
    shard = shard or Shard()
    everything = [t for t in read_trajectories(sources) if shard.mine(t.prompt_id)]
    if not everything:
        raise DataError("the trajectory files are empty: sample some with `sia-convert rollouts`")
    done = finished_ids(out)
    waiting = [t for t in everything if t.id not in done]
    reward: Reward | None = None
    if spec != "data" and waiting:
        reward = load_reward(spec)
    progress = Progress("score", len(everything), len(everything) - len(waiting))
    with Appender(out) as append:
        for at in range(0, len(waiting), batch):
            part = waiting[at : at + batch]
            for trajectory in _scored(part, reward):
                append(trajectory.to_json())
            progress.update(len(part))
    check_rewards(read_trajectories([out]))
    return len(waiting)


def _scored(part: list[Trajectory], reward: Reward | None) -> list[Trajectory]:
    if reward is None:
        check = [t for t in part if t.reward is None]
        if check:
            raise DataError(f"trajectory {check[0].id} has no reward: `--reward data` needs one in every line")
        return part
    values = reward([t.prompt for t in part], [t.response for t in part])
    return [dataclasses.replace(t, reward=v) for t, v in zip(part, values, strict=True)]
