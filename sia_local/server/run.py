"""Uvicorn around a Server: signals, the port, and an exit that leaves nothing running."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from ..errors import ConfigError
from ..generation.sia import SIA
from .app import Server
from .asking import Defaults
from .settings import ServerConfig


class _Uvicorn(uvicorn.Server):
    """Tells the engine to stop as soon as the signal comes, while streams are still read."""

    server: Server

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal again when all is over, and the process would not end with 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server.engine.stop(self.server.config.grace)
        await super().shutdown(sockets)


# Seconds a thread may keep Python to itself while another waits: the event loop and the engine wake often and briefly.
SWITCH_INTERVAL = 0.0005


def serve(
    config: ServerConfig, load: Callable[[], SIA], defaults: Defaults, say: Callable[[str], None] = lambda _: None
) -> None:
    """Serves until a signal comes. Raises what loading raised. say: takes the line that names the address."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, reuse_port=False, backlog=256)
    except OSError as error:
        raise ConfigError(
            f"{config.host}, port {config.port}: {error.strerror or error}; choose another --port or --host"
        ) from None
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
        say(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        web.run([listener])
    if server.engine.error is not None:
        raise server.engine.error
