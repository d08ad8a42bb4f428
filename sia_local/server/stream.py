"""From a mailbox to a connection: an answer whole or as server-sent events, ended at once when its reader is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .engine import EngineThread, Item, Order
from .errors import dumps, refused
from .replies import Reply

KEEP_ALIVE = 15.0  # seconds without a token after which a comment shows that the stream lives


class ReaderGoneError(Exception):
    """The client closed the connection, or took nothing for too long."""


def soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Has the event loop do something, from another thread; does not wait. After the loop has ended nobody reads."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work)


class Mailbox:
    """Items of one order, posted and taken in the event loop. (A bare future: it is waited for once a token.)"""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: list[Item] = []
        self._waiting: asyncio.Future[None] | None = None

    def post(self, items: list[Item]) -> None:
        self._items += items
        self.wake()

    def wake(self) -> None:
        """Ends a take() though nothing may have come."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def take(self) -> list[Item]:
        """Everything that has come; nothing where something woke it. Raises what the engine raised."""
        if not self._items:
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        items, self._items = self._items, []
        for at, item in enumerate(items):
            if isinstance(item, Exception):
                if at == 0:
                    raise item
                self._items = items[at:]
                return items[:at]
        return items


class Presence:
    """The reader of an answer. The block it is entered for ends with ReaderGoneError when the client disconnects, or
    takes nothing of what is sent for `patience` seconds. `bored` is called where nothing was sent for KEEP_ALIVE. (A
    timer an answer: one a chunk costs more than the chunk.)"""

    def __init__(self, receive: Receive, patience: float, bored: Callable[[], None] = lambda: None):
        self._receive, self._patience, self._bored = receive, patience, bored
        self._gone = False
        self._since: float | None = None
        self._last = 0.0

    async def __aenter__(self) -> Presence:
        running = asyncio.current_task()
        assert running is not None
        self._running, self._loop = running, asyncio.get_running_loop()
        self._watcher = asyncio.create_task(self._watch())
        self._last = self._loop.time()
        self._timer = self._loop.call_later(min(self._patience, KEEP_ALIVE), self._look)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watcher.cancel()
        self._timer.cancel()
        if self._gone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ReaderGoneError from None

    async def sent(self, sending: Awaitable[None]) -> None:
        self._since = self._loop.time()
        await sending
        self._last, self._since = self._since, None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _look(self) -> None:
        now = self._loop.time()
        if self._since is not None:
            left = self._since + self._patience - now
            if left <= 0:
                self._leave()
                return
        elif (left := self._last + KEEP_ALIVE - now) <= 0:
            self._bored()
            left = KEEP_ALIVE
        self._timer = self._loop.call_later(min(left, self._patience), self._look)

    def _leave(self) -> None:
        self._gone = True
        self._running.cancel()


class Answer(Response):
    """Sends what an order gives. The order is cancelled when the client goes, however that shows."""

    def __init__(
        self, engine: EngineThread, order: Order, mailbox: Mailbox, reply: Reply, stream: bool, send_timeout: float
    ):
        self.engine, self.order, self.mailbox, self.reply = engine, order, mailbox, reply
        self.streams, self.send_timeout = stream, send_timeout
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with Presence(receive, self.send_timeout, self.mailbox.wake) as reader:
                if self.streams:
                    await self._stream(reader, scope, send)
                else:
                    await self._whole(reader, scope, receive, send)
        except (ReaderGoneError, OSError):
            pass
        finally:
            # Of an order that is through nothing is left to cancel.
            if not self.reply.over():
                self.engine.cancel(self.order)

    async def _whole(self, reader: Presence, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        try:
            while not self.reply.over():
                for item in await self.mailbox.take():
                    self.reply.take(item)
            response = json_response(self.reply.whole())
        except Exception as error:
            response = error_response(error, scope["path"])
        await reader.sent(response(scope, receive, send))

    async def _stream(self, reader: Presence, scope: Scope, send: Send) -> None:
        started = False

        async def show(body: bytes) -> None:
            nonlocal started
            if not started:
                await reader.sent(send(_start()))
                started = True
            if body:
                await reader.sent(send({"type": "http.response.body", "body": body, "more_body": True}))

        try:
            if self.reply.over():
                # Of no tokens at all the engine gives nothing.
                await show(b"".join(map(self.reply.event, self.reply.at_once())))
            while not self.reply.over():
                items = await self.mailbox.take()
                chunks = [chunk for item in items for chunk in self.reply.chunks(item)]
                await show(b"".join(map(self.reply.event, chunks)) if items else b": still there\n\n")
        except (ReaderGoneError, OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            problem = refused(error)
            if not started:
                await reader.sent(error_response(problem, scope["path"])({"type": "http"}, _nothing, send))
                return
            body = self.reply.failed(problem)
            await reader.sent(send({"type": "http.response.body", "body": body, "more_body": True}))
        await reader.sent(send({"type": "http.response.body", "body": self.reply.ending, "more_body": False}))


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(data), status, headers, "application/json")


def error_response(error: Exception, path: str) -> Response:
    """path: the address that was asked, whose clients know errors in a form of their own."""
    problem = refused(error)
    return json_response(problem.body_at(path), problem.status, problem.headers)


def _start() -> dict[str, Any]:
    headers: Iterable[tuple[bytes, bytes]] = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    )
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}
