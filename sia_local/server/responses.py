"""/v1/responses: its bodies become those of a chat, and a chat's answer its items and events. Nothing is stored."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ..llama.model import Model
from .asking import Asked
from .calls import Piece
from .engine import Item
from .errors import RefusedError, dumps
from .fields import AskingBody, ChatBody
from .replies import Choice, Reply, TypedReply, finish


class ResponsesBody(AskingBody):
    """The last group is taken and changes nothing."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] = Field([])
    text: dict[str, Any] = Field({})
    tools: list[dict[str, Any]] = Field([])
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = Field({})
    background: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"

    reasoning: Any = None
    store: Any = None
    user: Any = None
    metadata: dict[str, str] = Field({})
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    stream_options: Any = None


LOGPROBS = "message.output_text.logprobs"


def as_chat(body: ResponsesBody) -> ChatBody:
    """The chat that a body asks for. Raises RefusedError for an item or a tool that a chat has not."""
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    chat: dict[str, Any] = {
        "messages": [*system, *_messages(items)],
        "max_completion_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls,
        "tools": [_tool(i, tool) for i, tool in enumerate(body.tools)],
        "tool_choice": _choice(body.tool_choice),
        "response_format": _format(body.text.get("format")),
        "chat_template_kwargs": body.chat_template_kwargs,
    }
    if body.top_logprobs or LOGPROBS in body.include:
        chat |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return ChatBody.model_validate(chat | body.shared())


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as messages: what was thought goes with what was said or called next, calls with what was said before."""
    out: list[dict[str, Any]] = []
    thought: dict[str, Any] = {}
    for i, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "reasoning":
            thought = {"reasoning_content": _thought(item.get("content") or [], f"input[{i}].content")}
        elif kind == "message":
            out.append({"role": item.get("role"), "content": item.get("content"), **thought})
            thought = {}
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if not out or out[-1]["role"] != "assistant":
                out.append({"role": "assistant", "content": "", **thought})
                thought = {}
            calls = out[-1].setdefault("tool_calls", [])
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind == "function_call_output":
            out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        else:
            message = f"input[{i}].type is {kind!r}; expected message, function_call, function_call_output or reasoning"
            raise RefusedError(400, message, param=f"input[{i}].type")
    return out


def _thought(parts: Any, place: str) -> str:
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RefusedError(400, f"{place} is no list of parts; give parts with a text", param=place)
    return "".join(str(part.get("text", "")) for part in parts)


def _tool(i: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        message = f"tools[{i}].type is {tool.get('type')!r}; only functions are called, give type function"
        raise RefusedError(400, message, param=f"tools[{i}].type")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(given: str | dict[str, Any]) -> Any:
    return {"type": "function", "function": {"name": given.get("name")}} if isinstance(given, dict) else given


def _format(given: Any) -> dict[str, Any] | None:
    if given is not None and not isinstance(given, dict):
        message = "text.format is no object; give one with a type, such as json_schema"
        raise RefusedError(400, message, param="text.format")
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


class ResponsesReply(TypedReply):
    """One text as items: what was thought, what was said, and calls, in the order in which they were written."""

    kind, chunk_kind, prefix = "response", "response", "resp_"

    def __init__(self, model: Model, name: str, asked: Asked, body: ResponsesBody):
        super().__init__(model, name, asked)
        self.body = body
        self.items: list[dict[str, Any]] = []
        self._number = 0

    def failed(self, problem: RefusedError) -> bytes:
        error = {"code": problem.code or problem.type, "message": problem.message, "param": problem.param}
        return self.event(self._event("error", **error))

    def chunks(self, item: Item) -> Iterator[dict[str, Any]]:
        if not self._number:
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, response=self._response("in_progress"))
        yield from self._grown(Reply.take(self, item))
        if self.over():
            whole = self.whole()
            name = "response.completed" if whole["status"] == "completed" else "response.incomplete"
            yield self._event(name, response=whole)

    def whole(self) -> dict[str, Any]:
        cut = finish(self.choices[0]) == "length"
        return self._response("incomplete" if cut else "completed") | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": self._usage(),
            "sia": self.sums() | self._told(self.choices[0]).get("sia", {}),
            "timings": self.timings(),
        }

    def _response(self, status: str) -> dict[str, Any]:
        body, sampling = self.body, self.asked.config.sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": self.name,
            "output": self.items if self.over() else [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice,
            "tools": [{"strict": None, "parameters": None, **tool} for tool in body.tools],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }

    def _grown(self, pieces: list[Piece]) -> Iterator[dict[str, Any]]:
        """Adds pieces to the items, with the events that tell of it."""
        choice = self.choices[0]
        for piece in pieces:
            kind = {"text": "message", "reasoning": "reasoning"}.get(piece.kind, "function_call")
            if piece.kind == "call" or not self.items or self.items[-1]["type"] != kind:
                yield from self._closed()
                yield from self._opened(kind, piece)
            item, at = self.items[-1], {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
            if piece.kind == "arguments":
                item["arguments"] += piece.text
                yield self._event("response.function_call_arguments.delta", **at, delta=piece.text)
            elif piece.kind != "call":
                item["content"][0]["text"] += piece.text
                name = "output_text" if piece.kind == "text" else "reasoning_text"
                more = {"logprobs": self._logprobs(choice, 1)} if piece.kind == "text" else {}
                yield self._event(f"response.{name}.delta", **at, content_index=0, delta=piece.text, **more)
        if self.left == 0:
            if not self.items:
                yield from self._opened("message", Piece("text", ""))
            yield from self._closed()

    def _opened(self, kind: str, piece: Piece) -> Iterator[dict[str, Any]]:
        item: dict[str, Any]
        if kind == "function_call":
            call = self.choices[0].calls[sum(one["type"] == kind for one in self.items)]
            item = {"call_id": call.id, "name": call.name, "arguments": ""}
        elif kind == "message":
            item = {"role": "assistant", "content": [{"type": "output_text", "annotations": [], "text": ""}]}
        else:
            item = {"summary": [], "content": [{"type": "reasoning_text", "text": ""}]}
        short = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item |= {"id": f"{short}_{secrets.token_hex(12)}", "type": kind, "status": "in_progress"}
        self.items.append(item)
        at = {"output_index": len(self.items) - 1}
        empty = item | {"content": []} if kind == "message" else item
        yield self._event("response.output_item.added", **at, item=_copy(empty))
        if kind != "function_call":
            part = {"content_index": 0, "item_id": item["id"], "part": _copy(item["content"][0])}
            yield self._event("response.content_part.added", **at, **part)

    def _closed(self) -> Iterator[dict[str, Any]]:
        """The end of the last item, if it is open."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return
        item, choice = self.items[-1], self.choices[0]
        cut = self.left == 0 and finish(choice) == "length"
        item["status"] = "incomplete" if cut else "completed"
        at = {"item_id": item["id"], "output_index": len(self.items) - 1}
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **at, **done)
        else:
            part = item["content"][0]
            said = item["type"] == "message"
            if said and self.asked.top is not None:
                part["logprobs"] = self._logprobs(choice)
            name = "output_text" if said else "reasoning_text"
            more = {"logprobs": part.get("logprobs", [])} if said else {}
            yield self._event(f"response.{name}.done", **at, content_index=0, text=part["text"], **more)
            yield self._event("response.content_part.done", **at, content_index=0, part=_copy(part))
        yield self._event("response.output_item.done", output_index=at["output_index"], item=_copy(item))

    def _logprobs(self, choice: Choice, last: int = 0) -> list[dict[str, Any]]:
        return choice.logprobs[-last:] if self.asked.top is not None else []

    def _event(self, kind: str, /, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}


def _copy(data: dict[str, Any]) -> dict[str, Any]:
    """As it is now: an event may be read after its item has grown."""
    copied: dict[str, Any] = json.loads(dumps(data))
    return copied
