"""Answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..llama.model import Model
from .asking import Asked
from .calls import Piece
from .fields import ChatBody
from .replies import Choice, Reply, finish


class ChatReply(Reply):
    """Of a chat: text, what the model thinks to itself, and calls of functions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, model: Model, name: str, asked: Asked, body: ChatBody):
        super().__init__(model, name, asked)
        self.usage_wanted = body.stream_options.include_usage
        # The last call of each choice that a stream has told of.
        self._told_calls: dict[int, int] = {}

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.job,
            "message": self._message(choice),
            "logprobs": {"content": choice.logprobs, "refusal": None} if self.asked.top is not None else None,
            "finish_reason": finish(choice),
        } | self._told(choice)

    def _message(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["content"] = choice.content or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in choice.calls
            ]
        return message

    def _opening(self, choice: Choice) -> Iterator[dict[str, Any]]:
        delta = {"role": "assistant", "content": None}
        yield self._chunk([{"index": choice.job, "delta": delta, "finish_reason": None}])

    def _part(self, choice: Choice, piece: Piece, entries: list[dict[str, Any]]) -> dict[str, Any]:
        part = {"index": choice.job, "delta": self._delta(choice, piece), "finish_reason": None}
        return part | {"logprobs": {"content": entries, "refusal": None}} if entries else part

    def _delta(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        if piece.kind in ("text", "reasoning"):
            return {"content" if piece.kind == "text" else "reasoning_content": piece.text}
        # Several pieces of one step may be of several calls.
        if piece.kind == "call":
            self._told_calls[choice.job] = self._told_calls.get(choice.job, -1) + 1
        at = self._told_calls[choice.job]
        call: dict[str, Any] = {"index": at, "function": {"arguments": piece.text}}
        if piece.kind == "call":
            function = {"name": piece.text, "arguments": ""}
            call = {"index": at, "id": choice.calls[at].id, "type": "function", "function": function}
        return {"tool_calls": [call]}

    def _end(self, choice: Choice) -> dict[str, Any]:
        return {"index": choice.job, "delta": {}, "finish_reason": finish(choice)}
