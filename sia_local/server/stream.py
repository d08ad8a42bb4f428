"""From a mailbox to a connection: an answer whole or as server-sent events, ended at once when its reader is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .engine import EngineThread, Item, Order
from .errors import dumps, refused
from .replies import Reply

KEEP_ALIVE = 15.0  # seconds without a token after which a comment shows that the stream lives


class ReaderGoneError(Exception):
    """The client closed the connection, or took nothing for too long."""


class Mailbox:
    """Items of one order, from the engine's thread to the event loop's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: list[Item] = []
        self._arrived = asyncio.Event()

    def post(self, items: list[Item]) -> None:
        """Called by the engine's thread; does not wait. After the loop has ended nobody reads."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, items)

    def _put(self, items: list[Item]) -> None:
        self._items += items
        self._arrived.set()

    async def take(self, timeout: float | None = None) -> list[Item]:
        """Everything that has come, at least one item; nothing after the timeout. Raises what the engine raised."""
        with anyio.move_on_after(timeout):
            await self._arrived.wait()
        self._arrived.clear()
        items, self._items = self._items, []
        for at, item in enumerate(items):
            if isinstance(item, Exception):
                if at == 0:
                    raise item
                self._put(items[at:])
                return items[:at]
        return items


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
            async with _while_there(receive):
                if self.streams:
                    await self._stream(scope, send)
                else:
                    await self._whole(scope, receive, send)
        except (ReaderGoneError, OSError):
            pass
        finally:
            # Of an order that is through nothing is left to cancel.
            if not self.reply.over():
                self.engine.cancel(self.order)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        try:
            while not self.reply.over():
                for item in await self.mailbox.take():
                    self.reply.take(item)
            response = json_response(self.reply.whole())
        except Exception as error:
            response = error_response(error, scope["path"])
        await self._sent(response(scope, receive, send))

    async def _stream(self, scope: Scope, send: Send) -> None:
        started = False
        try:
            while not self.reply.over():
                items = await self.mailbox.take(KEEP_ALIVE)
                chunks = [chunk for item in items for chunk in self.reply.chunks(item)]
                body = b"".join(map(self.reply.event, chunks)) if items else b": still there\n\n"
                if not started:
                    await self._sent(send(_start()))
                    started = True
                if body:
                    await self._sent(send({"type": "http.response.body", "body": body, "more_body": True}))
        except (ReaderGoneError, OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            problem = refused(error)
            if not started:
                await self._sent(error_response(problem, scope["path"])({"type": "http"}, _nothing, send))
                return
            body = self.reply.failed(problem)
            await self._sent(send({"type": "http.response.body", "body": body, "more_body": True}))
        await self._sent(send({"type": "http.response.body", "body": self.reply.ending, "more_body": False}))

    async def _sent(self, sending: Any) -> None:
        with anyio.move_on_after(self.send_timeout) as scope:
            await sending
        if scope.cancelled_caught:
            raise ReaderGoneError


@asynccontextmanager
async def _while_there(receive: Receive) -> AsyncIterator[None]:
    """Runs a block until the client disconnects; then ReaderGoneError is raised in it."""
    running = asyncio.current_task()
    assert running is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        running.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            raise ReaderGoneError from None
        raise
    finally:
        watcher.cancel()


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
