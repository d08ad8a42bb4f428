"""The thread that owns every llama context: it loads, makes rounds over the slots, posts what they give, and frees.

Handlers submit an Order and read its mailbox. Nothing here waits for a reader: a text is at most a context long, so a
mailbox is bounded by that, and a slow reader costs memory, never another's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import SiaError
from ..generation.decode import Job
from ..generation.reading import Read, read
from ..generation.sia import SIA
from ..generation.writing import Ticket
from ..records import Step, Tally

Item = Step | list[Read] | Exception


class UnavailableError(SiaError):
    """The server cannot take a request now: it is loading, full or stopping. retry: seconds to wait."""

    def __init__(self, message: str, retry: int = 1):
        super().__init__(message)
        self.retry = retry


class TooManyError(SiaError):
    """One client has as many requests open as it may."""


@dataclass(eq=False)
class Order:
    """What one request asks of the engine: texts, whose `Job.id` is their place in the answer.

    post: takes mail, where it is read (EngineThread.hand_over). readings: texts of which every token's log-probability
    is wanted before, `top` with that many others each. Times in perf_counter's seconds.
    """

    jobs: Sequence[Job]
    post: Callable[[list[Item]], None]
    readings: Sequence[Sequence[int]] = ()
    top: int = 0
    client: str = ""
    cancelled: bool = False
    ticket: Ticket | None = None
    first_at: float | None = None
    last_at: float | None = None
    mail: list[Item] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.ticket is not None and bool(self.ticket.running)

    @property
    def waits(self) -> bool:
        return self.ticket is None or not (self.ticket.running or self.ticket.exhausted)


@dataclass
class Totals(Tally):
    """Sums since the start. Seconds: from admission to the first token, and from there to the last one."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    writing_seconds: float = 0.0
    rounds: int = 0
    longest: int = 0


class EngineThread:
    """states: loading, ready, failed, stopping, stopped. `sia` is there from `ready` on, and until the last text
    is written; it is freed when nobody is in_use(). `error` says why it failed."""

    # Seconds that requests have to end in once the last text is written. Models that are in use still are not freed.
    PATIENCE = 30.0

    def __init__(
        self, load: Callable[[], SIA], queue: int, per_client: int = 0, on_failure: Callable[[], None] | None = None
    ):
        # Runs a function where mail is read. One call a round: each may cost this thread its turn at Python.
        self.hand_over: Callable[[Callable[[], None]], object] = lambda work: work()
        self._load, self.queue, self.per_client = load, queue, per_client
        self._on_failure = on_failure
        self.state = "loading"
        self.sia: SIA | None = None
        self.error: Exception | None = None
        self.totals = Totals()
        self.orders: list[Order] = []
        self._new: list[Order] = []
        self._readings: list[Iterator[bool]] = []
        self._deadline: float | None = None
        self._users = 0
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sia-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, order: Order) -> None:
        """Queues an order. Raises UnavailableError where it cannot be taken, TooManyError where its client has
        enough."""
        with self._wake:
            if self.state != "ready":
                raise UnavailableError(f"the server is {self.state}; try again", 5)
            everyone = [*self.orders, *self._new]
            if self.per_client and sum(o.client == order.client for o in everyone) >= self.per_client:
                self.totals.refused += 1
                raise TooManyError(f"{self.per_client} requests of this client are open, which is the most; wait")
            free = len(self.sia.desk.loop.free) if self.sia is not None else 0
            if (waiting := sum(o.waits for o in everyone)) >= self.queue + free:
                self.totals.refused += 1
                raise UnavailableError(f"{waiting} requests wait for a slot already, which is the most; try again", 2)
            self.totals.requests += 1
            self._new.append(order)
            self._wake.notify()

    def cancel(self, order: Order) -> None:
        """Ends an order between two of its tokens; its slots are free before the next one."""
        if not order.cancelled:
            order.cancelled = True
            if order.ticket is None or not order.ticket.over:
                self.totals.cancelled += 1
            if order.ticket is not None:
                order.ticket.closed = True

    def stop(self, grace: float) -> None:
        """No more orders; those that run have `grace` seconds. The thread ends then, its contexts freed."""
        with self._wake:
            self._deadline = time.monotonic() + grace
            if self.state in ("loading", "ready"):
                self.state = "stopping"
            self._wake.notify()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around whatever may touch `sia` from another thread: it is not freed meanwhile."""
        with self._wake:
            self._users += 1
        try:
            yield
        finally:
            with self._wake:
                self._users -= 1
                self._wake.notify_all()

    def _run(self) -> None:
        sia: SIA | None = None
        try:
            sia = self._load()
            sia.engine.reads_alike = True
            with self._wake:
                self.sia = sia
                if self.state == "loading":
                    self.state = "ready"
            self._serve(sia)
        except Exception as error:
            self._fail(error)
        if sia is not None and self._unused():
            sia.close()
        if self.state != "failed":
            self.state = "stopped"

    def _fail(self, error: Exception) -> None:
        self.error = error
        with self._wake:
            self.state = "failed"
            left, self._new, self.orders = [*self.orders, *self._new], [], []
        for order in left:
            order.mail.append(error)
        self._post(left)
        if self._on_failure is not None:
            self._on_failure()

    def _unused(self) -> bool:
        """Nobody gets `sia` any more; whether those who have it are done with it in time."""
        with self._wake:
            self.sia = None
            return self._wake.wait_for(lambda: not self._users, self.PATIENCE)

    def _serve(self, sia: SIA) -> None:
        while True:
            with self._wake:
                while not (self._new or self.orders or self.state == "stopping"):
                    self._wake.wait()
                new, self._new = self._new, []
                self.orders += new
            for order in new:
                self._begin(sia, order)
            if not self.orders:
                if self.state == "stopping":
                    return
                continue
            self.totals.rounds += sia.desk.round()
            self._readings = [reading for reading in self._readings if next(reading, False)]
            self._post([*self._finished(sia), *self.orders])

    def _begin(self, sia: SIA, order: Order) -> None:
        if order.readings:
            self._readings.append(self._read_first(sia, order))
        else:
            self._open(sia, order)

    def _open(self, sia: SIA, order: Order) -> None:
        order.ticket = sia.desk.open(order.jobs, lambda job, step: self._deliver(order, job, step))
        if order.cancelled:
            order.ticket.closed = True

    def _read_first(self, sia: SIA, order: Order) -> Iterator[bool]:
        """Reads the texts of an order, a piece a round, then opens its jobs."""
        try:
            for tokens in order.readings:
                while not sia.desk.loop.free and not order.cancelled:
                    yield True
                if order.cancelled:
                    break
                with sia.desk.slot() as slot:
                    for piece in read(sia.engine, slot, tokens, order.top):
                        order.mail.append(piece)
                        yield True
                        if order.cancelled:
                            break
        except Exception as error:
            order.mail.append(error)
            order.cancelled = True
        self._open(sia, order)

    def _deliver(self, order: Order, job: Job, step: Step) -> None:
        now, totals, stats = time.perf_counter(), self.totals, job.stats
        if step.index == 0:
            order.first_at = order.first_at or now
            totals.prompt_tokens += stats.prompt_tokens - stats.cached_tokens
            totals.cached_tokens += stats.cached_tokens
            totals.prompt_seconds += now - (stats.began or now)
        else:
            totals.writing_seconds += now - (order.last_at or now)
        order.last_at = now
        totals.add(step)
        totals.longest = max(totals.longest, stats.prompt_tokens + stats.steps)
        order.mail.append(step)

    def _finished(self, sia: SIA) -> list[Order]:
        """Drops orders that are over, which it returns; those that run when the time to stop has come end with an
        error."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        for order in self.orders:
            if order.ticket is not None and order.ticket.error is not None:
                order.mail.append(order.ticket.error)
            elif late and not order.cancelled and not (order.ticket is not None and order.ticket.over):
                order.mail.append(UnavailableError("the server is stopping, the text was cut; try again", 5))
                self.cancel(order)
        over = [o for o in self.orders if o.ticket is not None and o.ticket.over]
        for order in over:
            if order.ticket is not None:
                sia.desk.discard(order.ticket)
        with self._wake:
            self.orders = [o for o in self.orders if o not in over]
        return over

    def _post(self, orders: Sequence[Order]) -> None:
        posts = [(order.post, order.mail) for order in orders if order.mail]
        for order in orders:
            order.mail = []

        def deliver() -> None:
            for post, mail in posts:
                post(mail)

        if posts:
            self.hand_over(deliver)
