"""JSON over HTTP, asked again while what is wrong may pass. The standard library alone."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import SiaError
from .files import parse_json

# What a server says that is busy, starting or restarting.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0  # seconds


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: the key would go along, and a question would arrive without its body."""

    def redirect_request(self, *_: object) -> None: ...


open_url = urllib.request.build_opener(_Stay).open


class EndpointError(SiaError):
    """A server that does not answer, or refuses. status: of its answer, None where there was none."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """A server, for any number of threads. timeout: seconds without a word; tries: of one question, the first among
    them; wait: what passes the seconds between two."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    tries: int = 6
    wait: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON that answers a POST of `body`, or a GET where there is none.

        Where nobody answers, the answer breaks off or its status is one that may pass, it is asked again after 0.5 s,
        1 s, 2 s and so on, and up to half of that more by chance, or after what Retry-After says, at most a minute.
        Raises EndpointError.
        """
        for again in range(1, self.tries + 1):
            try:
                return self._once(path, body)
            except _PassingError as error:
                if again == self.tries:
                    raise EndpointError(f"{error}; asked {again} times", error.status) from None
                doubled = 0.5 * 2 ** (again - 1) * (1 + random.random() / 2)
                self.wait(min(LONGEST_WAIT, doubled if error.after is None else error.after))
        raise AssertionError("unreachable")

    def _once(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        where = self.url.rstrip("/") + path
        try:
            request = urllib.request.Request(where, None if body is None else json.dumps(body).encode(), headers)
            with open_url(request, timeout=self.timeout) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            elsewhere = f", and sends to {error.headers.get('Location')}" if 300 <= error.code < 400 else ""
            sentence = f"{where} answers {error.code}: {_message(error)}{elsewhere}"
            if error.code in PASSING:
                raise _PassingError(sentence, error.code, _seconds(error.headers.get("Retry-After"))) from None
            raise EndpointError(sentence, error.code) from None
        except ValueError:
            raise EndpointError(f"{self.url!r} is no address: expected http://HOST:PORT") from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise _PassingError(f"{where} does not answer ({type(error).__name__}: {cause})") from None
        try:
            return parse_json(data)
        except ValueError:
            raise EndpointError(f"{where} does not answer in JSON; check the address") from None


class _PassingError(EndpointError):
    """What may be better next time. after: seconds that the server asks for."""

    def __init__(self, message: str, status: int | None = None, after: float | None = None):
        super().__init__(message, status)
        self.after = after


def _message(error: urllib.error.HTTPError) -> str:
    """What went wrong, in the server's words: OpenAI's form, FastAPI's, or the text."""
    try:
        data = error.read(4096)
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        whole = parse_json(data)
    except ValueError:
        whole = data.decode("utf-8", "replace")
    if isinstance(whole, dict):
        whole = whole.get("error", whole.get("detail", whole.get("message", whole)))
        whole = whole.get("message", whole) if isinstance(whole, dict) else whole
    return " ".join(str(whole).split())[:200] or str(error.reason)


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
