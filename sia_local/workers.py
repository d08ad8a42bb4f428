"""Items through a worker that holds what is dear to load, such as a SIA; an executor decides where the workers are.

Commands hand an executor a factory of workers and the items, and store what comes back: the same code for one process
and for many machines. What an item's result is must follow from the item alone, seeds included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

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


class Executor(Protocol):
    def map(
        self, make: Callable[[], Worker[I, R]], items: Iterable[I], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, R]]:
        """Position and result of every item, each once, as they finish. make: a worker; it may run elsewhere, so it and
        the items can be pickled. An error of a worker is raised."""
        ...


class Here:
    """One worker, in this process."""

    def map(
        self, make: Callable[[], Worker[I, R]], items: Iterable[I], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, R]]:
        worker = make()
        try:
            yield from worker.run(items, tick)
        finally:
            worker.close()
