"""Items through a worker that holds what is dear to load, such as a SIA; an executor decides where the workers are.

Commands hand an executor a factory of workers and the items, and store what comes back: the same code for one process
and for many machines. What an item's result is must follow from the item alone, seeds included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
I_contra = TypeVar("I_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


def silent() -> None:
    """Nothing is told of work that is under way."""


class Worker(Protocol[I_contra, R_co]):
    def run(self, items: Iterable[I_contra], tick: Callable[[], None] = silent) -> Iterator[tuple[int, R_co]]:
        """Position and result of every item, as they finish. tick: called for each part of an item's work, a token."""
        ...

    def close(self) -> None: ...


class Pool(Protocol[I_contra, R_co]):
    """Workers that are ready, `size` of them. Use as a context manager."""

    size: int

    def map(self, items: Iterable[I_contra], tick: Callable[[], None] = silent) -> Iterator[tuple[int, R_co]]:
        """Position and result of every item, each once, as they finish. An error of a worker is raised."""
        ...

    def __enter__(self) -> Pool[I_contra, R_co]: ...
    def __exit__(self, *_: object) -> None: ...


class Executor(Protocol):
    def open(self, make: Callable[[], Worker[I, R]]) -> Pool[I, R]:
        """make: a worker. It may run elsewhere, so that it, items and results can be pickled."""
        ...


class Here:
    """One worker, in this process."""

    def open(self, make: Callable[[], Worker[I, R]]) -> Pool[I, R]:
        return _Here(make())


class _Here:
    size = 1

    def __init__(self, worker: Worker[Any, Any]):
        self.map = worker.run
        self._worker = worker

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()
