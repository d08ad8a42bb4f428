"""Answers of /v1/completions."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

from ..llama.model import Model
from .asking import Asked
from .calls import Piece
from .engine import Item
from .fields import CompletionBody
from .replies import Choice, Reply, finish


class CompletionReply(Reply):
    """With `echo` a text begins with its prompt, and its log-probabilities with those of the prompt's tokens under the
    base."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl-"

    def __init__(self, model: Model, name: str, asked: Asked, body: CompletionBody):
        super().__init__(model, name, asked)
        self.usage_wanted = body.stream_options.include_usage
        self._each = max(1, len(self.choices) // len(asked.prompts))
        self._reads: list[list[dict[str, Any]]] = [[]]
        self._offsets = [0] * len(self.choices)
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in self.choices]

    @property
    def readings(self) -> list[tuple[int, ...]]:
        wanted = self.asked.echo and self.asked.top is not None
        return [prompt.tokens for prompt in self.asked.prompts] if wanted else []

    def over(self) -> bool:
        return super().over() and (self._read_all() or not self.readings)

    def take(self, item: Item) -> list[Piece]:
        if not isinstance(item, list):
            return super().take(item)
        reads = self._reads[-1]
        reads += [self._entry(one.token, one.logprob, list(one.top)) for one in item]
        if len(reads) == len(self.readings[len(self._reads) - 1]) and len(self._reads) < len(self.readings):
            self._reads.append([])
        return []

    def chunks(self, item: Item) -> Iterator[dict[str, Any]]:
        if not isinstance(item, list):
            yield from super().chunks(item)
            return
        self.take(item)
        if self.over():
            yield from self.at_once()

    def _read_all(self) -> bool:
        readings = self.readings
        return bool(readings) and len(self._reads) == len(readings) and len(self._reads[-1]) == len(readings[-1])

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        prompt = self.asked.prompts[choice.job // self._each].text if self.asked.echo else ""
        entries = [*self._echoed(choice), *choice.logprobs]
        return {
            "index": choice.job,
            "text": prompt + choice.text,
            "logprobs": self._listed(choice, entries) if self.asked.top is not None else None,
            "finish_reason": finish(choice),
        } | self._told(choice)

    def _opening(self, choice: Choice) -> Iterator[dict[str, Any]]:
        if self.asked.echo:
            part = {"index": choice.job, "text": self.asked.prompts[choice.job // self._each].text}
            listed = self._listed(choice, self._echoed(choice)) if self.asked.top is not None else None
            yield self._chunk([part | {"logprobs": listed, "finish_reason": None}])

    def _part(self, choice: Choice, piece: Piece, entries: list[dict[str, Any]]) -> dict[str, Any]:
        listed = self._listed(choice, entries) if entries else None
        return {"index": choice.job, "text": piece.text, "logprobs": listed, "finish_reason": None}

    def _end(self, choice: Choice) -> dict[str, Any]:
        return {"index": choice.job, "text": "", "logprobs": None, "finish_reason": finish(choice)}

    def _echoed(self, choice: Choice) -> list[dict[str, Any]]:
        return self._reads[choice.job // self._each] if self.readings else []

    def _listed(self, choice: Choice, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Entries as /v1/completions spells them; text_offset: the character of the choice's text that a token begins,
        or goes on with."""
        at, echo = choice.job, self.asked.prompts[choice.job // self._each].text if self.asked.echo else ""
        offsets = []
        for entry in entries:
            offset = self._offsets[at]
            offsets.append(offset)
            text = self._decoders[at].decode(bytes(entry["bytes"]))
            if not entry["bytes"] and echo.startswith(entry["token"], offset):
                text = entry["token"]  # a control token that the prompt spells
            elif offset == 0 and text.startswith(" ") and echo and not echo.startswith(" "):
                text = text[1:]  # some tokenizers put a space before what they read
            self._offsets[at] += len(text)
        return {
            "tokens": list(map(_name, entries)),
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [None if entry["logprob"] is None else _top(entry["top_logprobs"]) for entry in entries],
            "text_offset": offsets,
        }


def _top(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Of two that have one name, the likelier, which comes first."""
    top: dict[str, float] = {}
    for entry in entries:
        top.setdefault(_name(entry), entry["logprob"])
    return top


def _name(entry: dict[str, Any]) -> str:
    """A token's text; of a part of a character its bytes, as OpenAI names it: nothing else here tells them apart."""
    try:
        return bytes(entry["bytes"]).decode() or entry["token"]
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry["bytes"])
