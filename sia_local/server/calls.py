"""Tool calls in what a model writes, told apart from the text around them as it comes. Text alone: no HTTP, no model.

Four forms are known: Hermes' and Qwen's `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the same with
`<function=NAME>` inside or without marks around it, Mistral's `[TOOL_CALLS]`, and the bare JSON of Llama 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..files import parse_json


@dataclass(frozen=True)
class Piece:
    """What comes next. kind: `text`, `reasoning`, `call` (a new one; text is the function's name) or `arguments` (more
    JSON of the last call's)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Form:
    """How calls are written. marks: what opens one, wherever it stands; bare: one may be a text that begins with {."""

    name: str
    marks: tuple[str, ...]
    bare: bool = False


HERMES = Form("hermes", ("<tool_call>", "<function="))
MISTRAL = Form("mistral", ("[TOOL_CALLS]", "<tool_call>"))
LLAMA = Form("llama", ("<|python_tag|>", "<function="), bare=True)
GRANITE = Form("granite", ("<|tool_call|>", "<tool_call>"))


def find_form(template: str) -> Form | None:
    """The form that a chat template asks for; None where it asks for none, or for one that is not known here."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<|tool_call|>" in template:
        return GRANITE
    if "<tool_call>" in template or "<function=" in template:
        return HERMES
    return LLAMA if "ipython" in template or "<|python_tag|>" in template else None


_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_JSON = re.compile(rf'\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*{_QUOTED}\s*,'
                   r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')  # fmt: skip
_TAGGED = re.compile(r"<function=([^>\s]+)>\s*(?=\{)")
_TAGS = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_TAG = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_BEHIND = ("</function>", "</tool_call>", "]", ",", ";")


class Scan:
    """Finds the end of a JSON object or list as its text comes."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False

    def feed(self, text: str) -> int | None:
        """How much of `text` still belongs to the value, where it ends in it."""
        for i, c in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif c == "\\":
                    self._escaped = True
                elif c == '"':
                    self._quoted = False
            elif c == '"':
                self._quoted = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1
        return None


@dataclass
class Calls:
    """Splits one text. tools: JSON schemas of the functions' parameters, by name: only those are calls."""

    form: Form
    tools: Mapping[str, Any]
    made: int = 0
    _state: str = "start"
    _text: str = ""
    _mark: str = ""
    _scan: Scan = field(default_factory=Scan)
    _outer: Scan | None = None

    def push(self, text: str, last: bool = False) -> list[Piece]:
        """What becomes certain with this text; what may begin a call waits. last: nothing follows."""
        self._text += text
        out: list[Piece] = []
        while True:
            before = self._state, len(self._text), len(out)
            out += getattr(self, f"_{self._state}")(last)
            if (self._state, len(self._text), len(out)) == before:
                break
        if last and self._text and self._state in ("start", "plain", "call"):
            out.append(Piece("text", self._mark + self._text))
        return out

    def _start(self, last: bool) -> Iterator[Piece]:
        """Nothing was written yet but white space."""
        rest = self._text.lstrip()
        if self.form.bare and rest.startswith("{"):
            self._state, self._mark, self._text = "call", "", rest
        elif rest:
            self._state = "plain"
        yield from ()

    def _plain(self, last: bool) -> Iterator[Piece]:
        """Text outside of calls. White space at its end waits: before a call it is none of the text's."""
        found = [(at, mark) for mark in self.form.marks if (at := self._text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            if before := self._text[:at].rstrip():
                yield Piece("text", before)
            behind = at if mark == "<function=" else at + len(mark)
            self._state, self._mark, self._text = "call", self._text[len(before) : behind], self._text[behind:]
            return
        keep = max(
            (n for mark in self.form.marks for n in range(1, len(mark)) if self._text.endswith(mark[:n])), default=0
        )
        sure = self._text[: len(self._text) - keep].rstrip()
        if sure and not last:
            yield Piece("text", sure)
            self._text = self._text[len(sure) :]

    def _call(self, last: bool) -> Iterator[Piece]:
        """Behind a mark. A call shows as soon as its name is sure and its arguments begin."""
        text = self._text.lstrip()
        if text.startswith("["):
            text = text[1:].lstrip()
        head = _TAGGED.match(text) or _JSON.match(text)
        if head is None and self.form is MISTRAL:
            head = _NAMED.match(text)
        if head is not None:
            name = head.group(1)
            if name not in self.tools:
                yield from self._given_back()
                return
            self._outer = None
            if text.startswith("{"):
                self._outer = Scan()
                self._outer.feed(text[: head.end()])
            self.made += 1
            self._mark = ""
            self._state, self._text, self._scan = "arguments", text[head.end() :], Scan()
            yield Piece("call", name)
        elif (tags := _TAGS.match(text)) is not None:
            yield from self._whole(
                tags.group(1), _values(tags.group(2), self.tools.get(tags.group(1))), text[tags.end() :]
            )
        elif text.startswith("{") and (end := Scan().feed(text)) is not None:
            made = _call_of(text[:end])
            name, arguments = made or ("", {})
            yield from self._whole(name, arguments, text[end:])
        elif text and not text.startswith(("{", "<")) and not (self.form is MISTRAL and re.match(r"[\w.-]+", text)):
            yield from self._given_back()

    def _whole(self, name: str, arguments: Any, rest: str) -> Iterator[Piece]:
        """A call that was understood at its end only."""
        if name not in self.tools:
            yield from self._given_back()
            return
        self.made += 1
        self._state, self._mark, self._text = "behind", "", rest
        yield Piece("call", name)
        yield Piece("arguments", json.dumps(arguments, ensure_ascii=False))

    def _arguments(self, last: bool) -> Iterator[Piece]:
        end = self._scan.feed(self._text)
        part = self._text if end is None else self._text[:end]
        self._text = self._text[len(part) :]
        if self._outer is not None:
            self._outer.feed(part)
        if end is not None:
            self._state = "behind" if self._outer is None else "object"
        if part:
            yield Piece("arguments", part)

    def _object(self, last: bool) -> Iterator[Piece]:
        """What else the object of a call holds, and its end."""
        assert self._outer is not None
        end = self._outer.feed(self._text)
        self._text = "" if end is None else self._text[end:]
        if end is not None:
            self._state = "behind"
        yield from ()

    def _behind(self, last: bool) -> Iterator[Piece]:
        """Marks that close a call, and those that open the next."""
        self._text = self._text.lstrip()
        for mark in _BEHIND:
            if self._text.startswith(mark):
                self._text = self._text[len(mark) :]
                return
        if self._text.startswith("{") or (self._text.startswith("<function=") and "<function=" in self.form.marks):
            self._state, self._mark = "call", ""
        elif self._text and (last or not any(mark.startswith(self._text) for mark in (*_BEHIND, "<function="))):
            self._state = "plain"
        yield from ()

    def _given_back(self) -> Iterator[Piece]:
        """What looked like a call is text; the next mark may be one."""
        tag = next((mark for mark in self.form.marks if self._text.startswith(mark)), "")
        text, self._text = self._mark + tag, self._text[len(tag) :]
        self._state, self._mark = "plain", ""
        if text:
            yield Piece("text", text)


def _call_of(text: str) -> tuple[str, Any] | None:
    """Name and arguments of a call that is one JSON object; None if it is none."""
    try:
        found = parse_json(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    found = found["function"] if isinstance(found.get("function"), dict) else found
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except ValueError:
            return None
    name = found.get("name")
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _values(text: str, schema: Any) -> dict[str, Any]:
    """Parameters between tags: text where the schema says string, else JSON where it is any."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    out: dict[str, Any] = {}
    for name, value in _TAG.findall(text):
        out[name] = value
        if (properties.get(name) or {}).get("type") != "string":
            try:
                out[name] = parse_json(value)
            except ValueError:
                continue
    return out
