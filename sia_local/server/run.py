"""Uvicorn around a Server: signals, the port, and an exit that leaves nothing running."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from ..generation.sia import SIA
from .app import Server
from .asking import Defaults
from .settings import ServerConfig


class _Uvicorn(uvicorn.Server):
    """Tells the engine to stop as soon as the signal comes, while streams are still read."""

    server: Server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server.engine.stop(self.server.config.grace)
        await super().shutdown(sockets)


def serve(
    config: ServerConfig, load: Callable[[], SIA], defaults: Defaults, say: Callable[[str], None] = lambda _: None
) -> None:
    """Serves until a signal comes. Raises what loading raised. say: takes the line that names the address."""
    listener = socket.create_server((config.host, config.port), reuse_port=False, backlog=256)
    with listener:
        host, port = listener.getsockname()[:2]
        web: _Uvicorn

        def give_up() -> None:
            web.should_exit = True

        server = Server(config, load, defaults, give_up)
        settings = uvicorn.Config(
            server.app, log_level="warning", timeout_graceful_shutdown=int(config.grace) + 5, server_header=False
        )
        web = _Uvicorn(settings)
        web.server = server
        say(f"http://{host}:{port}")
        web.run([listener])
    if server.engine.error is not None:
        raise server.engine.error
