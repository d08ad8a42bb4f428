"""What stands before the routes, as plain ASGI: who may ask, and that the models outlive who does.
(BaseHTTPMiddleware would hide disconnects.)"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .engine import EngineThread
from .errors import RefusedError
from .stream import error_response

PUBLIC = ("/", "/health", "/v1/health")


class Guard:
    """Lets requests through that have a key, where keys are set, and that come from no foreign web page."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], origins: Sequence[str]):
        self.app, self.origins = app, tuple(origins)
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)) is not None:
            await error_response(problem, scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        if not self._same_site(headers):
            message = f"pages of {headers.get('origin')} may not ask this server; start it with --cors to let them"
            return RefusedError(403, message, "permission_error", code="origin_refused")
        if self.keys and scope["path"] not in PUBLIC and not self._has_key(headers):
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            headers_out = {"WWW-Authenticate": "Bearer"}
            return RefusedError(401, message, "authentication_error", code="invalid_api_key", headers=headers_out)
        return None

    def _same_site(self, headers: Headers) -> bool:
        """A page elsewhere can send requests without seeing answers; those would cost time all the same."""
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return True
        return urlsplit(origin).netloc == headers.get("host")

    def _has_key(self, headers: Headers) -> bool:
        given = client_key(headers).encode()
        # Every key is compared, so that the time tells nothing.
        return any([hmac.compare_digest(given, key) for key in self.keys])


class InUse:
    """Holds the engine's models from a request's first byte to the last of its answer."""

    def __init__(self, app: ASGIApp, engine: EngineThread):
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan waits for the engine, which would wait for it
            await self.app(scope, receive, send)
            return
        with self.engine.in_use():
            await self.app(scope, receive, send)


def client_key(headers: Headers) -> str:
    """The key that a request carries, as OpenAI's or Anthropic's clients send it; empty without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
