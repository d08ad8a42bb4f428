"""Errors as OpenAI's clients know them: a status and a body. Whatever the library raises on purpose has one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, ContextFullError, IncompatibleError, SiaError
from .engine import TooManyError, UnavailableError

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass
class RefusedError(Exception):
    """A request that is answered with an error. param: the field it is about; headers: to send along; more: what else
    the body tells."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.more}

    def body_at(self, path: str) -> dict[str, Any]:
        """The body as the clients of an address know it: Anthropic's under /v1/messages, else OpenAI's."""
        if not path.startswith("/v1/messages"):
            return self.body
        return {"type": "error", "error": {"type": _ANTHROPIC.get(self.status, "api_error"), "message": self.message}}


def refused(error: Exception) -> RefusedError:
    """The answer to an error."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ValidationError):
        return _of_fields(error)
    if isinstance(error, UnavailableError):
        headers = {"Retry-After": str(error.retry)}
        return RefusedError(503, str(error), "unavailable_error", code="unavailable", headers=headers)
    if isinstance(error, TooManyError):
        headers = {"Retry-After": "1"}
        return RefusedError(429, str(error), "rate_limit_error", code="rate_limit_exceeded", headers=headers)
    if isinstance(error, ContextFullError):
        more = {"n_prompt_tokens": error.tokens, "n_ctx": error.holds} if error.tokens is not None else {}
        return RefusedError(400, str(error), "exceed_context_size_error", code="context_length_exceeded", more=more)
    if isinstance(error, (ConfigError, IncompatibleError)):
        return RefusedError(400, str(error))
    if isinstance(error, SiaError):
        return RefusedError(500, str(error), "server_error")
    return RefusedError(500, f"the server failed ({type(error).__name__}); see its log", "server_error")


def _of_fields(error: ValidationError) -> RefusedError:
    """The first field that is wrong, named as in the request."""
    # Of a field that may be of several types the most specific complaint comes last.
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    same = [e for e in error.errors(include_url=False) if e["loc"][:1] == first["loc"][:1]]
    name = place[0] if len(same) > 1 and place else ".".join(place)
    if first["type"] == "json_invalid":
        return RefusedError(400, f"the request is not JSON ({first.get('ctx', {}).get('error', 'unreadable')})")
    if first["type"] == "extra_forbidden":
        message = f"{name} is not supported; leave it out"
        return RefusedError(400, message, param=name, code="unsupported_field")
    if first["type"] == "missing":
        return RefusedError(400, f"{name} is missing; the request needs it", param=name, code="missing_field")
    given = repr(first["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    message = f"{name or 'the request'} is {given}; {first['msg'][0].lower()}{first['msg'][1:]}"
    return RefusedError(400, message, param=name or None, code="invalid_field")


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dumps(data: Any) -> bytes:
    """Data as JSON bytes."""
    return _JSON.encode(data).encode("utf-8", "replace")
