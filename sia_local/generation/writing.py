"""What a caller holds while a text is written: a Generation of one, a Run of many, and the desk they take turns at."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ..config import SiaConfig
from ..errors import ContextFullError, SiaError
from ..llama.model import Model
from ..records import Completion, Float64, Messages, Prompt, Request, Stats, Step
from ..values.sources import Source
from .decode import Job, Loop


class Writer(Protocol):
    """A way to write texts: SIA, BestOf, Nudged."""

    @property
    def model(self) -> Model: ...
    @property
    def value(self) -> Source | None: ...
    @property
    def n_ctx(self) -> int: ...

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt: ...
    def write(self, request: Request) -> Generation: ...
    def close(self) -> None: ...
    def __enter__(self) -> Writer: ...
    def __exit__(self, *_: object) -> None: ...


class Runner(Protocol):
    """Writes many texts at once, and says what they are worth: SIA."""

    @property
    def value(self) -> Source | None: ...

    def prompt_of(self, request: Request) -> Prompt: ...
    def job(self, prompt: Request, *, id: int = 0) -> Job: ...
    def run(self, jobs: Iterable[Job], stop: Stop | None = None) -> Run: ...
    def value_of(self, prompt: Prompt, tokens: Sequence[int]) -> float: ...
    def log_likelihoods(self, prompt: Prompt, tokens: Sequence[int], config: SiaConfig) -> Float64: ...
    def close(self) -> None: ...


class Stop:
    """Whether a reader wants no more. Set by a signal, too, so it is nothing but a flag."""

    asked = False


class Generation:
    """One text. Iterate for its Steps as they are made; text, tokens, finish and stats say what there is so far.

    stop(): ends the text after the token in hand, or a long prompt after the batch in hand. facts: what a JSON result
    says of this way of writing; remark: what the line behind the text says of it; texts: how many were written for it.
    """

    texts = 1
    remark = ""

    def __init__(self, request: Request, steps: Iterator[Step], stats: Stats, stop: Stop | None = None):
        self.request, self.stats = request, stats
        self.completion = Completion()
        self._steps, self._stop = steps, stop or Stop()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Step:
        if self.stopped:
            self.close()
            raise StopIteration
        step = next(self._steps)
        self.completion.add(step)
        return step

    def stop(self) -> None:
        self._stop.asked = True

    @property
    def stopped(self) -> bool:
        return self._stop.asked

    def close(self) -> None:
        """Ends the text at once; its slot is free."""
        self._steps.close()  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        return self.completion.text

    @property
    def tokens(self) -> list[int]:
        """Ids written, without the one that ended the text."""
        return self.completion.tokens

    @property
    def reasoning(self) -> str:
        """What the model thought to itself, where it marks that; no part of `text`."""
        return self.completion.reasoning

    @property
    def answer_tokens(self) -> list[int]:
        """Those of `tokens` that spell the text, reasoning left out."""
        return self.completion.answer_tokens

    @property
    def finish(self) -> str | None:
        """`eog`, `stop`, `length` or `context`; None while there is more to come, or where it was stopped."""
        return self.completion.finish

    @property
    def facts(self) -> dict[str, Any]:
        return {}


class Run:
    """Many texts over the slots of a SIA. Iterate for their Steps, which interleave; `stats` sums over all."""

    def __init__(self, desk: Desk, jobs: Iterable[Job], stop: Stop | None = None):
        self.stats = Stats()
        self._steps = desk.steps(self._counted(jobs), stop)

    def _counted(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            job.stats = self.stats
            yield job

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        self._steps.close()  # type: ignore[attr-defined]


class Ticket:
    """Jobs of one caller: those still to be admitted, those that run, and where their steps go."""

    def __init__(self, jobs: Iterable[Job], deliver: Callable[[Job, Step], None]):
        self.jobs, self.deliver = iter(jobs), deliver
        self.running: list[Job] = []
        self.exhausted = False
        self.closed = False
        self.error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.closed or self.error is not None or (self.exhausted and not self.running)


class Desk:
    """One loop, many callers: whoever wants a step makes the next round for all, and each takes its own.

    So two generations that are read in turns, or by two threads, are both right. A text whose reader is gone gives up
    its slot; one that is merely not read on runs to its end when others ask.
    """

    def __init__(self, loop: Loop):
        self.loop = loop
        self.lock = threading.RLock()
        self._tickets: list[Ticket] = []
        self._busy = 0

    def open(self, jobs: Iterable[Job], deliver: Callable[[Job, Step], None]) -> Ticket:
        ticket = Ticket(jobs, deliver)
        with self.lock:
            self._tickets.append(ticket)
        return ticket

    def steps(self, jobs: Iterable[Job], stop: Stop | None = None) -> Iterator[Step]:
        """The steps of jobs, as this caller asks for them. stop: ends them where a round gave this caller none."""
        mail: deque[Step] = deque()
        ticket = self.open(jobs, lambda _, step: mail.append(step))
        reader = _steps(self, ticket, mail, stop or Stop())
        # A reader that was never begun has no `finally` to give its ticket back.
        weakref.finalize(reader, self.discard, ticket)
        return reader

    def discard(self, ticket: Ticket) -> None:
        """Ends what runs of a ticket. May be called in the middle of a round, by the garbage collector; then the next
        round frees the slots."""
        ticket.closed = True
        if not self._busy and self.lock.acquire(blocking=False):
            try:
                if not self._busy:
                    self._tidy()
            finally:
                self.lock.release()

    def round(self) -> bool:
        """Admits what fits, makes one round and delivers its steps. False when nothing is live.

        An error of the loop ends every text that runs, and is raised to each of their readers.
        """
        with self._working():
            loop = self.loop
            self._tidy()
            for ticket in self._tickets:
                self._admit(ticket)
            if not loop.live:
                self._tidy()
                return False
            try:
                steps = loop.round()
            except BaseException as error:
                cause = error if isinstance(error, Exception) else SiaError("the generation was interrupted")
                for ticket in self._tickets:
                    if ticket.running:
                        ticket.error = cause
                self._tidy()
                if isinstance(error, Exception):
                    return True
                raise
            owners = {id(job): ticket for ticket in self._tickets for job in ticket.running}
            for job, step in steps:
                owner = owners[id(job)]
                if step.finish is not None:
                    owner.running.remove(job)
                owner.deliver(job, step)
            return True

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A slot to read a text with, apart from those that write; rounds are made until there is one."""
        with self._working():
            while not self.loop.free:
                self.round()
            slot = self.loop.free.pop(0)
            try:
                yield slot
            finally:
                self.loop.free.append(slot)

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self.lock:
            # Counted: readings that are open at once need not end in the order in which they began.
            self._busy += 1
            try:
                yield
            finally:
                self._busy -= 1

    def _admit(self, ticket: Ticket) -> None:
        loop = self.loop
        while loop.free and not ticket.over:
            try:
                job = next(ticket.jobs, None)
                if job is None:
                    ticket.exhausted = True
                    break
                loop.admit(job)
            except Exception as error:
                if isinstance(error, ContextFullError) and job is not None and job.left_out is not None:
                    job.left_out(error)
                else:
                    ticket.error = error
            else:
                ticket.running.append(job)

    def _tidy(self) -> None:
        for ticket in [t for t in self._tickets if t.over]:
            self.loop.cancel(ticket.running)
            ticket.running.clear()
            self._tickets.remove(ticket)


def _steps(desk: Desk, ticket: Ticket, mail: deque[Step], stop: Stop) -> Iterator[Step]:
    try:
        while True:
            while not mail:
                if ticket.error is not None:
                    raise ticket.error
                if ticket.over or stop.asked:
                    return
                with desk.lock:
                    if not mail and not ticket.over:
                        desk.round()
            yield mail.popleft()
    finally:
        desk.discard(ticket)
