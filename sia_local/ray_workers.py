"""Workers as actors of a Ray cluster: what one that dies was doing is done by others, and nothing is done twice."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .config import setting
from .errors import ConfigError, SiaError
from .workers import Executor, Here, Worker, silent

# Items that an actor is given at once, and deaths in a row without a result after which nothing will come of it.
CHUNK, DEATHS = 64, 3


@dataclass(frozen=True)
class RayConfig:
    """Where actors run and what each of them gets."""

    ray: str | None = setting(
        None,
        "Share the work among actors of the Ray cluster there; auto: the one of this machine, local: one of its own.",
        metavar="ADDRESS",
    )
    ray_workers: int = setting(0, "With --ray: actors.", show="as many as the cluster has room for")
    ray_cpus: int = setting(1, "With --ray: CPU cores of an actor.")
    ray_gpus: float = setting(0.0, "With --ray: GPUs of an actor; a half lets two share one.")

    def threads(self, asked: int) -> int:
        """Of a worker, where `asked` is 0 for all: those of its actor."""
        return asked or (self.ray_cpus if self.ray is not None else 0)

    def __post_init__(self) -> None:
        if self.ray_workers < 0 or self.ray_cpus < 1 or self.ray_gpus < 0:
            raise ConfigError("ray-workers and ray-gpus must be at least 0, ray-cpus at least 1")


class OnRay:
    """An executor. Paths that workers open must be the same on all machines of the cluster, as on a shared folder."""

    def __init__(self, config: RayConfig):
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--ray needs Ray, which is not installed: pip install 'sia-local[ray]'") from error
        self.config = config
        if not ray.is_initialized():
            # A local one has as many cores as its actors ask for, whatever the machine has.
            here = {"num_cpus": config.ray_workers * config.ray_cpus} if config.ray_workers else {}
            options = here if config.ray == "local" else {"address": config.ray}
            try:
                ray.init(log_to_driver=False, include_dashboard=False, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"--ray {config.ray}: {str(error).splitlines()[0][:200]}") from error

    def open(self, make: Callable[[], Worker[Any, Any]]) -> _Pool:
        return _Pool(make, self.config, self._room())

    def _room(self) -> int:
        """Actors that the cluster has room for."""
        import ray

        if self.config.ray_workers:
            return self.config.ray_workers
        has = ray.cluster_resources()
        room = has.get("CPU", 1) / self.config.ray_cpus
        if self.config.ray_gpus:
            room = min(room, has.get("GPU", 0) / self.config.ray_gpus)
        if room < 1:
            raise ConfigError(f"the Ray cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs: too few")
        return int(room)


def executor_for(config: RayConfig) -> Executor:
    """Where the commands' work is done: here, or on Ray."""
    return OnRay(config) if config.ray is not None else Here()


class _Actor:
    """Lives in a process of its own. An error while it is made is told when it is asked; Ray would see a death."""

    def __init__(self, make: Callable[[], Worker[Any, Any]]):
        self.worker, self.error = None, None
        try:
            self.worker = make()
        except SiaError as error:
            self.error = error

    def run(self, items: list[Any]) -> Iterator[tuple[int, Any]]:
        if self.worker is None:
            raise self.error or SiaError("there is no worker")
        for result in self.worker.run(items):  # noqa: UP028 - Ray sends into what it gets
            yield result


@dataclass
class _Member:
    """An actor, the positions of what it was asked, and those that it has not answered."""

    actor: Any
    chunk: list[int]
    open: set[int]


class _Pool:
    def __init__(self, make: Callable[[], Worker[Any, Any]], config: RayConfig, size: int):
        import ray

        self._ray, self.size = ray, size
        # Workers find this program, and numpy's threads stay within what the actor was given.
        here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} if config.ray == "local" else {}
        variables = {"OMP_NUM_THREADS": str(config.ray_cpus), **here}
        remote = ray.remote(_Actor).options(
            num_cpus=config.ray_cpus,
            num_gpus=config.ray_gpus,
            max_restarts=0,
            runtime_env={"env_vars": variables},
        )
        self._start = lambda: remote.remote(make)
        self._idle: list[Any] = []

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._idle:
            self._ray.kill(actor)
        self._idle = []

    def map(self, items: Iterable[Any], tick: Callable[[], None] = silent) -> Iterator[tuple[int, Any]]:
        """See workers.Pool. An actor that dies is replaced; what it has not answered is asked of another.

        Nothing is told of work that is under way.
        """
        ray = self._ray
        source = enumerate(items)
        asked: dict[int, Any] = {}  # items that are not answered
        back: deque[int] = deque()  # of actors that died
        members: dict[Any, _Member] = {}  # by the stream of their answers
        deaths = 0

        def begin(actor: Any) -> None:
            chunk = [back.popleft() for _ in range(min(len(back), CHUNK))]
            for position, item in islice(source, CHUNK - len(chunk)):
                asked[position] = item
                chunk.append(position)
            if chunk:
                stream = actor.run.options(num_returns="streaming").remote([asked[place] for place in chunk])
                members[stream] = _Member(actor, chunk, set(chunk))
            else:
                self._idle.append(actor)

        try:
            for _ in range(self.size):
                begin(self._idle.pop() if self._idle else self._start())
            while members:
                (stream, *_), _ = ray.wait(list(members), num_returns=1)
                member = members[stream]
                try:
                    place, result = ray.get(next(stream))
                    position = member.chunk[place]
                    deaths = 0
                    if position in member.open:
                        member.open.discard(position)
                        del asked[position]
                        yield position, result
                    if not member.open:
                        del members[stream]
                        begin(member.actor)
                except StopIteration:
                    raise SiaError(f"a worker left {len(member.open)} of {len(member.chunk)} items out") from None
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    raise cause if isinstance(cause, SiaError) else error from None
                except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                    deaths += 1
                    if deaths > DEATHS * self.size:
                        raise SiaError(f"Ray's workers die before they answer: {str(error).splitlines()[0]}") from None
                    back.extend(sorted(member.open))
                    del members[stream]
                    begin(self._start())
        finally:
            for member in members.values():
                ray.kill(member.actor)
