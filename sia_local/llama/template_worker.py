"""Renders chat templates in a process of its own, which is bounded and can be ended. Run as a script; jinja2 alone.

A template comes with a model file, so it is a stranger's program. Jinja's sandbox keeps it from files and objects, not
from looping for ever or from building a text of gigabytes, which a few innocent operators do inside one call of C
that no check in this process could interrupt. A process can be ended from outside, whatever it is at.

Speaks with `templates.Worker`: messages of a length (4 bytes, big endian) and JSON. A request is {template, bos, eos,
opens, variables}, an answer {text} or {error}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import IO, Any


def environment() -> Any:
    """As transformers and llama-cpp-python set theirs up for chat templates."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what a model is trained on; here it is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise ValueError(message)


def renderer() -> Callable[[dict[str, Any]], str]:
    jinja = environment()
    compiled = lru_cache(maxsize=16)(jinja.from_string)

    def render(request: dict[str, Any]) -> str:
        told = {"bos_token": request["bos"], "eos_token": request["eos"], "add_generation_prompt": request["opens"]}
        unset = dict.fromkeys(("tools", "functions", "function_call", "tool_choice"))
        return str(compiled(request["template"]).render({**unset, **told, **request["variables"]}))

    return render


def read(source: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None where they end."""
    head = source.read(4)
    data = source.read(int.from_bytes(head, "big")) if len(head) == 4 else b""
    return dict(json.loads(data)) if data else None


def send(sink: IO[bytes], data: bytes) -> None:
    sink.write(len(data).to_bytes(4, "big") + data)
    sink.flush()


def main(longest: int, memory: int) -> None:
    """longest: characters of a text, memory: bytes that this process may have, where the system can bound them."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    render = renderer()
    while (request := read(source)) is not None:
        answer = {}
        try:
            text = render(request)
            answer = {"text": text} if len(text) <= longest else {"error": f"it writes more than {longest} characters"}
        except MemoryError:
            answer = {"error": f"it needs more than {memory >> 20} MiB"}
        except RecursionError:
            answer = {"error": "it calls itself without end"}
        except Exception as error:
            answer = {"error": str(error) or type(error).__name__}
        send(sink, json.dumps(answer).encode())


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    main(int(sys.argv[2]), int(sys.argv[3]))
