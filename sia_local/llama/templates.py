"""Chat templates: a jinja text, which runs under bounds, or one of those that llama.cpp knows by name."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..records import Message
from . import template_worker
from .library import C

# Seconds, characters and bytes that one rendering may take. A long chat takes milliseconds and its own length.
LONGEST_TIME, LONGEST_TEXT, MOST_MEMORY = 20.0, 16 << 20, 1 << 30


class TemplateError(Exception):
    """Why a template rendered nothing."""


class Worker:
    """A process that renders. It is started by start() or the first render(), ended where it does not answer in time,
    and started anew for the next. One rendering at a time, whichever thread asks."""

    def __init__(self, seconds: float = LONGEST_TIME, longest: int = LONGEST_TEXT, memory: int = MOST_MEMORY):
        self.seconds, self.longest, self.memory = seconds, longest, memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self) -> None:
        """Returns at once: the process gets ready while other things are done. Where there can be none, render() says
        so."""
        with self._lock, suppress(OSError):
            self._running()

    def render(self, template: str, bos: str, eos: str, opens: bool, variables: Mapping[str, Any]) -> str:
        """Raises TemplateError with what went wrong, TypeError for variables that are not JSON."""
        request = {"template": template, "bos": bos, "eos": eos, "opens": opens, "variables": dict(variables)}
        data = json.dumps(request).encode()
        with self._lock:
            try:
                process = self._running()
            except OSError as error:
                raise TemplateError(f"no process can be started to render it, {error}") from None
            over = threading.Event()

            def end() -> None:
                over.set()
                process.kill()

            late = threading.Timer(self.seconds, end)
            late.start()
            try:
                answer = self._ask(process, data)
            except BaseException:
                # Its answer would be read as that to the next question.
                self._end()
                raise
            finally:
                late.cancel()
            if answer is None:
                self._end()
                late_by = f"it does not end within {self.seconds:g} s"
                raise TemplateError(late_by if over.is_set() else "the process that rendered it was ended")
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ask(self, process: subprocess.Popen[bytes], data: bytes) -> dict[str, Any] | None:
        """None where the process ended."""
        assert process.stdin is not None and process.stdout is not None
        try:
            template_worker.send(process.stdin, data)
            return template_worker.read(process.stdout)
        except (OSError, ValueError):
            return None

    def _running(self) -> subprocess.Popen[bytes]:
        # A forked copy of this program has no child: it would read another's answers.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            bounds = [json.dumps([path for path in sys.path if path]), str(self.longest), str(self.memory)]
            # A session of its own: Ctrl-C is for this program, which then ends that one.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.fspath(Path(template_worker.__file__)), *bounds],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._owner = os.getpid()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()


WORKER = Worker()
atexit.register(WORKER.close)


@cache
def builtin_names() -> tuple[str, ...]:
    """Templates that llama.cpp has in itself, such as chatml."""
    count = C.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    C.llama_chat_builtin_templates(names, count)
    return tuple(sorted(name.decode() for name in names if name is not None))


def find_template(given: str) -> str:
    """The template that a file holds, or that has this name. Raises ConfigError."""
    path = Path(given)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); expected a chat template, in jinja") from None
    if given in builtin_names():
        return given
    raise ConfigError(
        f"the chat template {given!r} is no file and no template of llama.cpp; expected a file in jinja, or one of "
        f"{', '.join(builtin_names())}"
    )


def render(
    template: str, messages: Sequence[Message], bos: str, eos: str, opens: bool, variables: Mapping[str, Any]
) -> str:
    """messages as `template` spells them. opens: an assistant turn is opened behind them. Raises TemplateError."""
    if template not in builtin_names():
        return WORKER.render(template, bos, eos, opens, {"messages": list(messages), **variables})
    if variables:
        raise TemplateError(f"{template} is a template of llama.cpp, which is told nothing; {next(iter(variables))} is")
    chat = (C.llama_chat_message * len(messages))()
    for i, message in enumerate(messages):
        chat[i] = C.llama_chat_message(str(message["role"]).encode(), str(message["content"]).encode())
    name, size = template.encode(), 0
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = C.llama_chat_apply_template(name, chat, len(messages), opens, buffer, size)
        if needed < 0:
            raise TemplateError(f"llama.cpp cannot render it as {template}")
        if needed <= size:
            return buffer.raw[:needed].decode("utf-8", "replace")
        size = needed
