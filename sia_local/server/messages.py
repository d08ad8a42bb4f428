"""/v1/messages, as Anthropic's clients know it: its bodies become those of a chat, and a chat's answer its blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ..files import parse_json
from ..llama.model import Model
from .asking import Asked
from .calls import Piece
from .engine import Item
from .errors import RefusedError
from .fields import AskingBody, Body, ChatBody
from .replies import Call, Reply, TypedReply, finish

PATH = "/v1/messages"


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountBody(Body):
    """What is counted of a request. The last group is taken and changes nothing."""

    messages: list[Turn] = Field(min_length=1)
    model: str | None = None
    system: str | list[dict[str, Any]] = ""
    tools: list[dict[str, Any]] = Field([])
    tool_choice: dict[str, Any] = Field({"type": "auto"})
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] = Field({})

    output_config: dict[str, Any] = Field({})

    cache_control: Any = None
    context_management: Any = None


class MessagesBody(CountBody, AskingBody):
    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] = Field([])
    top_k: int | None = None

    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None


def as_chat(body: CountBody) -> ChatBody:
    """The chat that a body asks for. Raises RefusedError for a block or a tool that a chat has not."""
    chat: dict[str, Any] = {
        "messages": list(_messages(body)),
        "tools": [_tool(i, tool) for i, tool in enumerate(body.tools)],
        "tool_choice": _choice(body.tool_choice),
        "chat_template_kwargs": _thinking(body),
        "response_format": _format(body.output_config.get("format")),
    }
    if body.tool_choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    if isinstance(body, MessagesBody):
        chat |= {"max_tokens": body.max_tokens, "stop": body.stop_sequences, "top_k": body.top_k} | body.shared()
    return ChatBody.model_validate(chat)


def _format(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        message = "output_config.format is no JSON schema; give type json_schema and a schema"
        raise RefusedError(400, message, param="output_config.format")
    return {"type": "json_schema", "json_schema": {"schema": given["schema"]}}


def _thinking(body: CountBody) -> dict[str, Any]:
    """What templates that know of thinking are told; a request that says nothing leaves it to them."""
    kind = (body.thinking or {}).get("type")
    told = {} if kind is None else {"enable_thinking": kind != "disabled"}
    return told | body.chat_template_kwargs


def _messages(body: CountBody) -> Iterator[dict[str, Any]]:
    if body.system:
        yield {"role": "system", "content": _text(body.system, "system")}
    for i, turn in enumerate(body.messages):
        if isinstance(turn.content, str):
            yield {"role": turn.role, "content": turn.content}
            continue
        said: list[str] = []
        thought: list[str] = []
        calls: list[dict[str, Any]] = []
        for j, block in enumerate(turn.content):
            kind, place = block.get("type"), f"messages[{i}].content[{j}]"
            if kind == "text":
                said.append(str(block.get("text", "")))
            elif kind == "thinking":
                thought.append(str(block.get("thinking", "")))
            elif kind == "tool_use":
                function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            elif kind == "tool_result":
                content = _text(block.get("content") or "", place)
                yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
            elif kind != "redacted_thinking":
                message = f"{place}.type is {kind!r}; expected text, tool_use, tool_result or thinking"
                raise RefusedError(400, message, param=f"{place}.type")
        if said or calls or thought:
            out: dict[str, Any] = {"role": turn.role, "content": "\n".join(said)}
            yield (
                out
                | ({"tool_calls": calls} if calls else {})
                | ({"reasoning_content": "".join(thought)} if thought else {})
            )


def _text(content: Any, place: str) -> str:
    """Text, or the text of blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or any(not isinstance(b, dict) or b.get("type") != "text" for b in content):
        raise RefusedError(400, f"{place} is not text; only text is read", param=place)
    return "\n".join(str(block.get("text", "")) for block in content)


def _tool(i: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        message = f"tools[{i}] is no function; give a name and an input_schema"
        raise RefusedError(400, message, param=f"tools[{i}].type")
    function = {"name": tool.get("name"), "parameters": tool["input_schema"], "description": tool.get("description")}
    return {"type": "function", "function": function}


def _choice(given: dict[str, Any]) -> Any:
    kind = given.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}
    if kind not in ("auto", "any", "none"):
        raise RefusedError(400, f"tool_choice.type is {kind!r}; expected auto, any, tool or none", param="tool_choice")
    return "required" if kind == "any" else kind


class MessagesReply(TypedReply):
    """One text as blocks: thinking, text, and uses of tools, in the order in which they were written."""

    kind, chunk_kind, prefix = "message", "message", "msg_"

    def __init__(self, model: Model, name: str, asked: Asked, body: MessagesBody):
        super().__init__(model, name, asked)
        self.body = body
        self.blocks: list[dict[str, Any]] = []
        self._uses: list[Call] = []

    def failed(self, problem: RefusedError) -> bytes:
        return self.event(problem.body_at(PATH))

    def chunks(self, item: Item) -> Iterator[dict[str, Any]]:
        pieces = Reply.take(self, item)
        if not self.choices[0].begun:
            self.choices[0].begun = True
            started = self._message(None) | {"content": [], "usage": self._usage() | {"output_tokens": 0}}
            yield {"type": "message_start", "message": started}
        yield from self._grown(pieces)
        if self.over():
            if self.blocks:
                yield {"type": "content_block_stop", "index": len(self.blocks) - 1}
            stop = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop_sequence()}
            yield {"type": "message_delta", "delta": stop, "usage": self._usage(), "sia": self._sia()}
            yield {"type": "message_stop"}

    def whole(self) -> dict[str, Any]:
        uses = iter(self._uses)
        for block in self.blocks:
            if block["type"] == "tool_use":
                block["input"] = _data(next(uses).arguments)
        return self._message(self._stop_reason()) | {"sia": self._sia()}

    def _message(self, stop: str | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.name,
            "content": self.blocks,
            "stop_reason": stop,
            "stop_sequence": self._stop_sequence(),
            "usage": self._usage(),
        }

    def _sia(self) -> dict[str, Any]:
        told: dict[str, Any] = self._told(self.choices[0]).get("sia", {})
        return self.sums() | told

    def _stop_reason(self) -> str:
        if self._stop_sequence() is not None:
            return "stop_sequence"
        return {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[finish(self.choices[0])]

    def _stop_sequence(self) -> str | None:
        """The stop string that ended the text, if it was the only one: of several nobody keeps which."""
        stops = self.body.stop_sequences
        return stops[0] if self.choices[0].finish == "stop" and len(stops) == 1 else None

    def _usage(self) -> dict[str, Any]:
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
        }

    def _grown(self, pieces: list[Piece]) -> Iterator[dict[str, Any]]:
        """Adds pieces to the blocks, with the events that tell of it."""
        for piece in pieces:
            kind = {"text": "text", "reasoning": "thinking"}.get(piece.kind, "tool_use")
            if piece.kind == "call" or not self.blocks or self.blocks[-1]["type"] != kind:
                if self.blocks:
                    yield {"type": "content_block_stop", "index": len(self.blocks) - 1}
                block = self._block(kind)
                self.blocks.append(block)
                yield {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": {**block}}
            delta: dict[str, Any] = {"type": "input_json_delta", "partial_json": piece.text}
            if kind == "tool_use" and piece.kind == "call":
                continue
            if kind != "tool_use":
                self.blocks[-1][kind] += piece.text
                delta = {"type": f"{kind}_delta", kind: piece.text}
            yield {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}

    def _block(self, kind: str) -> dict[str, Any]:
        if kind == "text":
            return {"type": "text", "text": ""}
        if kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        self._uses.append(self.choices[0].calls[len(self._uses)])
        call = self._uses[-1]
        return {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": {}}


def _data(arguments: str) -> Any:
    """Arguments as data; those of a call that was cut are none."""
    try:
        return parse_json(arguments or "{}")
    except ValueError:
        return {}
