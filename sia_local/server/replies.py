"""Answers as OpenAI's clients know them, whole or in chunks, made of the steps of an order. Plain data, no HTTP."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .. import __version__
from ..files import finite
from ..llama.model import Model
from ..records import Candidates, Completion, Step, Tally
from ..views.trace import config_dict, token_text
from .asking import Asked
from .calls import Calls, Piece
from .engine import Item, Order
from .errors import RefusedError, dumps

IMPOSSIBLE = -9999.0  # a log-probability that JSON can hold, for one of 0
FINGERPRINT = f"b-sia_local-{__version__}"
FINISHES = {"eog": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass
class Call:
    """A call of a function. arguments: JSON text. The id is short and plain, as some templates want them."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9])


@dataclass
class Choice(Completion):
    """One text of an answer. logprobs: an entry a token; marks: what `sia.why` tells of each; begun: a chunk of it was
    sent; content: the text without the calls, which are `calls`, each told apart by `splitter`."""

    logprobs: list[dict[str, Any]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    begun: bool = False
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    splitter: Calls | None = None

    def pieces(self, step: Step) -> list[Piece]:
        """What a step adds to what is shown: reasoning, text, calls."""
        out = [Piece("reasoning", step.reasoning)] if step.reasoning else []
        if self.splitter is not None:
            out += self.splitter.push(step.text, step.finish is not None)
        elif step.text:
            out.append(Piece("text", step.text))
        for piece in out:
            if piece.kind == "text":
                self.content += piece.text
            elif piece.kind == "call":
                self.calls.append(Call(piece.text))
            elif piece.kind == "arguments":
                self.calls[-1].arguments += piece.text
        return out


class Reply:
    """An answer that grows with take(); chunks() and whole() are what is sent of it. Subclasses know the two shapes."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    prefix: ClassVar[str]

    # What ends a stream.
    ending: ClassVar[bytes] = b"data: [DONE]\n\n"
    # Whether a stream ends with the usage.
    usage_wanted = False
    order: Order

    def __init__(self, model: Model, name: str, asked: Asked):
        self.model, self.name, self.asked = model, name, asked
        self.id = self.prefix + secrets.token_hex(12)
        self.created = int(time.time())
        count = max(len(asked.jobs), len(asked.prompts))
        self.choices = [Choice(job=i, splitter=asked.offer.splitter()) for i in range(count)]
        self.texts = len(asked.jobs)
        self.left = self.texts
        self._shown = token_text(model)

    @property
    def readings(self) -> list[tuple[int, ...]]:
        """Texts whose log-probabilities belong into the answer."""
        return []

    def event(self, chunk: dict[str, Any]) -> bytes:
        """A chunk as a server-sent event."""
        return b"data: " + dumps(chunk) + b"\n\n"

    def failed(self, problem: RefusedError) -> bytes:
        """The event of an error in the middle of a stream."""
        return self.event(problem.body)

    def over(self) -> bool:
        return self.left == 0

    def take(self, item: Item) -> list[Piece]:
        """Adds what the engine gave; returns what it shows."""
        assert isinstance(item, Step)
        choice = self.choices[item.job]
        choice.add(item)
        if self.asked.top is not None:
            choice.logprobs.append(self._logprob(item))
        if self.asked.why:
            choice.marks.append(self._mark(item))
        self.left -= item.finish is not None
        return choice.pieces(item)

    def chunks(self, item: Item) -> Iterator[dict[str, Any]]:
        """Adds what the engine gave, and yields what a stream shows of it."""
        pieces = self.take(item)
        assert isinstance(item, Step)
        choice = self.choices[item.job]
        if not choice.begun:
            choice.begun = True
            yield from self._opening(choice)
        if choice.logprobs or choice.marks or self.asked.ids:
            pieces = pieces or [Piece("text", "")]
        for i, piece in enumerate(pieces):
            # What is told of the token goes with the first thing that it shows.
            part = self._part(choice, piece, choice.logprobs[-1:] if i == 0 else [])
            if i == 0:
                part |= {"token_ids": [item.token]} if self.asked.ids else {}
                part |= {"sia": choice.marks[-1]} if choice.marks else {}
            yield self._chunk([part])
        if item.finish is not None:
            yield from self._ended([choice])

    def at_once(self) -> Iterator[dict[str, Any]]:
        """What a stream shows of texts of which nothing is written."""
        for choice in self.choices:
            yield from self._opening(choice)
        yield from self._ended(self.choices)

    def _ended(self, choices: list[Choice]) -> Iterator[dict[str, Any]]:
        """The last chunk of each choice; that of the last one tells of all."""
        for choice in choices:
            chunk = self._chunk([self._end(choice)])
            if self.left == 0 and choice is choices[-1]:
                chunk |= {"timings": self.timings(), "sia": self.sums()}
            yield chunk
        if self.left == 0 and self.usage_wanted:
            yield self._chunk([]) | {"usage": self.usage(), "timings": self.timings()}

    def whole(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": FINGERPRINT,
            "choices": [self._whole_choice(choice) for choice in self.choices],
            "usage": self.usage(),
            "timings": self.timings(),
            "sia": self.sums(),
        }

    def usage(self) -> dict[str, Any]:
        jobs = self.asked.jobs
        prompt = sum(len(prompt.tokens) for prompt in self.asked.prompts)
        written = sum(choice.steps for choice in self.choices)
        # Texts of one prompt share it, so the first alone says what was there before.
        firsts = jobs[:: max(1, len(jobs) // len(self.asked.prompts))] if jobs else []
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(job.stats.cached_tokens for job in firsts)},
            "completion_tokens_details": {"reasoning_tokens": sum(choice.thought for choice in self.choices)},
        }

    def timings(self) -> dict[str, float]:
        """As llama-server tells them: ms and tokens a second; `cache_n` prompt tokens needed no reading."""
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        began = [job.stats.began for job in self.asked.jobs if job.stats.began is not None]
        first, last = self.order.first_at or 0.0, self.order.last_at or 0.0
        read = 1e3 * (first - min(began)) if began and first else 0.0
        wrote = 1e3 * max(0.0, last - first)
        fresh, written = usage["prompt_tokens"] - cached, usage["completion_tokens"]
        after = max(0, written - self.texts)
        return {
            "cache_n": cached,
            "prompt_n": fresh,
            "prompt_ms": read,
            "prompt_per_token_ms": read / fresh if fresh else 0.0,
            "prompt_per_second": 1e3 * fresh / read if read else 0.0,
            "predicted_n": written,
            "predicted_ms": wrote,
            "predicted_per_token_ms": wrote / after if after else 0.0,
            "predicted_per_second": 1e3 * after / wrote if wrote else 0.0,
        }

    def sums(self) -> dict[str, Any]:
        """Junctions, their share of the tokens, KL from the base in nats, over all texts; and how they were made."""
        tally, config, left_out = Tally(), self.asked.config, self.asked.offer.left_out
        for choice in self.choices:
            tally.join(choice)
        return {
            "tokens": tally.steps,
            "junctions": tally.junctions,
            "steered_share": tally.junction_rate,
            "flips": tally.flips,
            "values_asked": tally.values_asked,
            "kl": tally.kl,
            "kl_steering": tally.kl_steering,
            "kl_truncation": tally.kl_truncation,
            "nll": tally.nll,
            "seed": self.asked.seed,
            "config": finite({name: value for name, value in config_dict(config).items() if name in _SETTINGS}),
            **({"left_out": list(left_out)} if left_out else {}),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.chunk_kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def _mark(self, step: Step) -> dict[str, Any]:
        """What a page shows of a token. Probabilities of the base are over the whole vocabulary."""
        mark: dict[str, Any] = {
            "token": step.token,
            "text": step.text,
            "entropy": step.entropy,
            "steered": step.steered,
            "flipped": step.flipped,
            "logprob": step.logprob,
            "kl": step.kl_steering,
            "kl_truncation": step.kl_truncation,
        }
        if step.reasoning:
            mark["reasoning"] = step.reasoning
        if step.steered and step.candidates is not None:
            mark["candidates"] = list(self._candidates(step.candidates))
        return mark

    def _candidates(self, c: Candidates) -> Iterator[dict[str, Any]]:
        for i, token in enumerate(c.ids.tolist()):
            value = float(c.values[i])
            yield {
                "token": token,
                "text": self._shown(token),
                "value": None if math.isnan(value) else value,
                "p_base": float(c.p_base[i]),
                "p_steered": float(c.p_steered[i]),
            }

    def _logprob(self, step: Step) -> dict[str, Any]:
        """Of what was sampled from: after filters, steering and temperature."""
        c = step.candidates
        assert c is not None and self.asked.top is not None
        order = c.p_steered.argsort(kind="stable")[::-1]
        chances = {int(c.ids[i]): float(c.p_steered[i]) for i in order}
        top = [(token, p) for token, p in chances.items() if p > 0][: self.asked.top]
        return self._entry(step.token, log(chances.get(step.token, 0.0)), [(token, log(p)) for token, p in top])

    def _entry(self, token: int, logprob: float | None, top: list[tuple[int, float]]) -> dict[str, Any]:
        return {
            **self._named(token, logprob),
            "top_logprobs": [self._named(other, p) for other, p in top],
        }

    def _named(self, token: int, logprob: float | None) -> dict[str, Any]:
        logprob = None if logprob is None else max(logprob, IMPOSSIBLE)
        return {"token": self._shown(token), "logprob": logprob, "bytes": list(self.model.piece(token)), "id": token}

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _opening(self, choice: Choice) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _part(self, choice: Choice, piece: Piece, entries: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _told(self, choice: Choice) -> dict[str, Any]:
        told: dict[str, Any] = {"sia": {"tokens": choice.marks}} if self.asked.why else {}
        if self.asked.ids:  # as vLLM names them; the token that ended the text is among them
            prompt = self.asked.prompts[choice.job * len(self.asked.prompts) // len(self.choices)]
            told |= {"token_ids": choice.all_tokens, "prompt_token_ids": list(prompt.tokens)}
        return told


class TypedReply(Reply):
    """One text whose stream is of events that have a type, and which grows by items or blocks."""

    ending: ClassVar[bytes] = b""

    def event(self, chunk: dict[str, Any]) -> bytes:
        return b"event: " + chunk["type"].encode() + b"\ndata: " + dumps(chunk) + b"\n\n"

    def take(self, item: Item) -> list[Piece]:
        pieces = super().take(item)
        for _ in self._grown(pieces):
            pass
        return pieces

    def _grown(self, pieces: list[Piece]) -> Iterator[dict[str, Any]]:
        """Adds pieces to what there is, with the events that tell of it."""
        raise NotImplementedError


_SETTINGS = ("gate", "threshold", "rate", "entropy", "k", "beta", "beta_unit", "kl_total", "steer")


def finish(choice: Choice) -> str:
    """Why a text ended: stop, length or tool_calls."""
    why = FINISHES.get(choice.finish or "length", "length")
    return "tool_calls" if choice.calls and why == "stop" else why


def log(p: float) -> float:
    return math.log(p) if p > 0 else IMPOSSIBLE
