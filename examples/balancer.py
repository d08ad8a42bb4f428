"""A balancer for replicas of `sia-local serve`: python examples/balancer.py URL URL … [--port 8090]

Asks every replica for /health and /slots once a second, as Paddler does, and gives a request to the one with the most
idle slots. One that cannot be reached, or answers 502 to 504, gives its request to the next as long as nothing of the
answer was sent on. A stream that breaks later ends with an error event. Nobody left: 503. So what was accepted gets an
answer or an error. Clients bring their own keys; replicas with --api-key are watched with the first one of SIA_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PASSING = (502, 503, 504)


class Balancer:
    """key: what replicas let in that keep /slots to themselves. idle: slots that nobody uses, by replica; only those
    that are healthy are in it."""

    def __init__(self, urls: list[str], every: float = 1.0, key: str = ""):
        self.urls, self.every = urls, every
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.idle: dict[str, int] = {}
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(600, connect=2), limits=httpx.Limits(max_connections=1024)
        )
        methods = ["GET", "POST", "OPTIONS"]
        self.app: Starlette = Starlette(
            routes=[Route("/{path:path}", self.answer, methods=methods)], lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await asyncio.gather(*map(self.look, self.urls))
        watch = asyncio.create_task(self._watch())
        yield
        watch.cancel()
        await self.client.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            await asyncio.gather(*map(self.look, self.urls))

    async def look(self, url: str) -> None:
        try:
            health = await self.client.get(f"{url}/health", timeout=2)
            slots = await self.client.get(f"{url}/slots", timeout=2, headers=self.headers)
            if health.status_code == slots.status_code == 200:
                self.idle[url] = sum(not slot["is_processing"] for slot in slots.json())
                return
        except (httpx.HTTPError, ValueError):
            pass
        self.idle.pop(url, None)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        headers = {k: v for k, v in request.headers.items() if k not in ("host", "content-length", "connection")}
        said: Response | None = None
        for url in sorted(filter(self.idle.__contains__, self.urls), key=lambda url: -self.idle[url]):
            self.idle[url] = self.idle.get(url, 0) - 1  # until the next look
            where = f"{url}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
            asked = self.client.build_request(request.method, where, headers=headers, content=body)
            try:
                reply = await self.client.send(asked, stream=True)
                if "text/event-stream" in reply.headers.get("content-type", ""):
                    return StreamingResponse(self._events(reply), reply.status_code, media_type="text/event-stream")
                data = await reply.aread()
            except httpx.HTTPError:
                self.idle.pop(url, None)
                continue
            kept = {k: v for k, v in reply.headers.items() if k in ("content-type", "retry-after")}
            said = Response(data, reply.status_code, kept)
            if reply.status_code not in PASSING:
                return said
        message = {"error": {"message": "no replica answers; try again", "type": "unavailable_error", "code": 503}}
        return said or JSONResponse(message, 503, {"Retry-After": "2"})

    async def _events(self, reply: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for part in reply.aiter_raw():
                yield part
        except httpx.HTTPError as error:
            told: dict[str, Any] = {"error": {"message": f"the replica was lost ({type(error).__name__}); ask again"}}
            yield b"\n\ndata: " + json.dumps(told).encode() + b"\n\n"
        finally:
            await reply.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--port", type=int, default=8090)
    given = parser.parse_args()
    first = os.environ.get("SIA_API_KEY", "").split(",")[0].strip()
    uvicorn.run(Balancer(given.urls, key=first).app, port=given.port, log_level="warning")
