"""Adds rewards to trajectories: in batches, resumable, refusing what could not be learnt from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from sia_local.config import setting
from sia_local.errors import ConfigError, DataError
from sia_local.progress import Progress
from sia_local.rewards.load import Reward, is_function, load_reward, reward_mark
from sia_local.workers import Executor, Here, silent

from .outputs import Appender
from .trajectories import Shard, Trajectory, check_rewards, read_trajectories


@dataclass(frozen=True)
class ScoreConfig:
    batch: int = setting(64, "Trajectories a call of the reward.")

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError("batch must be at least 1")


def score_files(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    spec: str,
    batch: int = ScoreConfig.batch,
    shard: Shard | None = None,
    executor: Executor | None = None,
) -> int:
    """Appends every trajectory of `sources` with its reward to `out`; returns how many are new.

    `spec` is what `sia_local.rewards.load_reward` takes; `data` keeps the rewards that are there. Trajectories
    already in `out` are skipped. DataError for an empty set, an id that stands for two texts, a missing, or a
    constant reward, or an output that another process writes or that was scored otherwise; NumericError for NaN,
    before the batch it is in is written; ConfigError for an output that is a source. A shard alone may be empty, and
    its rewards constant.
    """
    shard = shard or Shard()
    if Path(out).resolve() in (Path(source).resolve() for source in sources):
        raise ConfigError(f"{out} is read and written: name another output")
    whole = list(read_trajectories(sources))
    if not whole:
        raise DataError("the trajectory files are empty: sample some with `sia-convert rollouts`")
    everything = [t for t in whole if shard.mine(t.prompt_id)]
    by_id = {t.id: t for t in everything}
    if len(by_id) < len(everything):
        twice = next(t.id for t in everything if by_id[t.id] is not t)
        raise DataError(f"the id {twice} stands in several of the files: score them into an output each")
    with Appender(out, reward_settings(spec)) as append:
        waiting = [t for t in everything if not append.check_same(t, reward=spec == "data")]
        progress = Progress("score", len(everything), len(everything) - len(waiting))
        if waiting:
            with (executor or Here()).open(partial(Scorer, spec, batch)) as pool:
                for _, scored in pool.map(waiting):
                    append(scored.to_json())
                    progress.update()
    check_rewards(read_trajectories([out]), shard.count == 1)
    return len(waiting)


def reward_settings(spec: str) -> dict[str, str]:
    """What an output with rewards depends on: the reward's name, and what it does, wherever its file or folder lies."""
    mark = reward_mark(spec)
    kind, _, argument = spec.partition(":")
    named = spec if is_function(spec) or not mark else f"{kind}:{Path(argument).resolve().name}"
    return {"reward": named, **({"reward_files": mark} if mark else {})}


class Scorer:
    """A worker that holds a reward."""

    def __init__(self, spec: str, batch: int):
        self.reward = load_reward(spec) if spec != "data" else None
        self.batch = batch

    def close(self) -> None: ...

    def run(self, items: Iterable[Trajectory], tick: Callable[[], None] = silent) -> Iterator[tuple[int, Trajectory]]:
        waiting = iter(items)
        at = 0
        while part := list(islice(waiting, self.batch)):
            yield from enumerate(_scored(part, self.reward), at)
            at += len(part)


def _scored(part: list[Trajectory], reward: Reward | None) -> list[Trajectory]:
    if reward is None:
        check = [t for t in part if t.reward is None]
        if check:
            raise DataError(f"trajectory {check[0].id} has no reward: the reward data needs one in every line")
        return part
    values = reward([t.prompt for t in part], [t.response for t in part])
    return [dataclasses.replace(t, reward=v) for t, v in zip(part, values, strict=True)]
