"""Many requests at once, at several servers."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator

from sia_local.endpoint import PASSING, Endpoint, EndpointError

from .dialects import Answer, Dialect, Question

Numbered = tuple[int, Question]


class Crowd:
    """`each` threads a server. One that is given up leaves its questions to the others."""

    def __init__(self, servers: list[tuple[Endpoint, Dialect]], each: int):
        self.servers, self.each = servers, each
        self._change = threading.Condition()
        self._back: deque[Numbered] = deque()  # of servers that were given up
        self._open = 0  # questions that were taken and are not answered
        self._exhausted = self._stopped = False
        self._done: queue.SimpleQueue[tuple[int, Answer] | Exception | None] = queue.SimpleQueue()

    def answers(self, questions: Iterable[Numbered]) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each question, as they come; questions are taken as there is room for them.

        Raises EndpointError when no server is left, and for what one refuses.
        """
        self._questions = iter(questions)
        for i in range(len(self.servers) * self.each):
            threading.Thread(target=self._asks, args=(i % len(self.servers),), daemon=True).start()
        given_up: set[int] = set()
        try:
            while (found := self._done.get()) is not None:
                if isinstance(found, tuple):
                    yield found
                    with self._change:
                        self._open -= 1
                        self._change.notify_all()
                elif isinstance(found, _GivenUpError):
                    if found.server not in given_up:
                        given_up.add(found.server)
                        print(f"given up: {found}", file=sys.stderr)
                    if len(given_up) == len(self.servers):
                        raise EndpointError(f"no server is left; the last one: {found}") from None
                else:
                    raise found
        finally:
            with self._change:
                self._stopped = True
                self._change.notify_all()

    def _take(self) -> Numbered | None:
        """The next question; None when all are answered."""
        with self._change:
            while not self._stopped:
                if self._back:
                    return self._back.popleft()
                if not self._exhausted and (question := next(self._questions, None)) is not None:
                    self._open += 1
                    return question
                self._exhausted = True
                if not self._open:
                    return None
                self._change.wait()
            return None

    def _asks(self, i: int) -> None:
        endpoint, dialect = self.servers[i]
        try:
            while (taken := self._take()) is not None:
                try:
                    self._done.put((taken[0], dialect.ask(endpoint, taken[1])))
                except EndpointError as error:
                    if error.status is not None and 400 <= error.status < 500 and error.status not in PASSING:
                        raise
                    with self._change:
                        self._back.append(taken)
                        self._change.notify_all()
                    self._done.put(_GivenUpError(str(error), i))
                    return
            self._done.put(None)
        except Exception as error:  # raised where the answers are read
            self._done.put(error)


class _GivenUpError(EndpointError):
    def __init__(self, message: str, server: int):
        super().__init__(message)
        self.server = server
