"""A writer at the end of a wire: any OpenAI-compatible server; `sia-local serve` tells of its steering as well."""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Any

import numpy as np

from ..config import SamplingConfig, SiaConfig
from ..endpoint import open_url
from ..errors import ConfigError, ContextFullError, SiaError
from ..files import parse_json, settings_of
from ..generation.writing import Generation
from ..reasoning import ANSWER, REASONING
from ..records import Candidates, Messages, Prompt, Request, Stats, Step

TIMEOUT = 600.0  # seconds without a word from the server
_STEERING = tuple(f.name for f in fields(SiaConfig) if f.name != "sampling")
_THOUGHTS = ("reasoning_content", "reasoning")  # what servers call it
# Settings and the fields that say them: to every server, and to llama-server and what takes its fields.
_OPENAI = {name: name for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty")}
_LLAMA = _OPENAI | {
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
    "grammar": "grammar",
}
_FINISHES = {"stop": "eog", "length": "length"}
# How OpenAI and this server, llama-server, and vLLM say that the prompt is longer than the context.
_FULL = (b"context_length_exceeded", b"exceed_context_size", b"maximum context length")


@dataclass(frozen=True)
class RemoteValue:
    name: str
    spread: float | None = 1.0  # the server knows its own


class RemoteModel:
    """What a chat asks of a model: its name, and the text of tokens that were seen."""

    chat_template = "the server's own"

    def __init__(self, name: str):
        self.path = PurePath(name)
        self.texts: dict[int, str] = {}

    def piece(self, token: int) -> bytes:
        return self.texts.get(token, "").encode()

    def token_text(self, token: int) -> str:
        return self.texts.get(token, "")


class Remote:
    """Answers of the server at `url`. Raises ConfigError where there is none. steers: it is a `sia-local serve` with a
    value model; config: how that was started."""

    def __init__(
        self, url: str, key: str | None = None, told: Mapping[str, Any] | None = None, asked: Collection[str] = ()
    ):
        """told: what the server's chat template is told. asked: settings that are sent though they are usual."""
        self.told, self.asked = dict(told or {}), asked
        self.url, self.key = url.rstrip("/").removesuffix("/v1"), key
        models = self._json("/v1/models").get("data") or [{}]
        self.model: Any = RemoteModel(str(models[0].get("id", "model")))
        self.n_ctx = 1 << 20
        self.value: Any = None
        self.config = SiaConfig(gate="off")
        self._takes = _OPENAI
        self._knows_sia = False
        try:
            props = self._json("/props")
        except ConfigError:
            return
        usual = props.get("default_generation_settings", {})
        self._takes = _LLAMA if usual else _OPENAI
        if (sia := props.get("sia")) is not None:
            self._knows_sia, self.n_ctx = True, usual["n_ctx"]
            numbers = [f.name for f in fields(SamplingConfig) if isinstance(f.default, (int, float))]
            sampling = SamplingConfig(**{name: usual["params"][name] for name in numbers if name in usual["params"]})
            self.config = SiaConfig(gate="off", sampling=sampling)
            if sia["value"] is not None:
                own = {name: value for name, value in settings_of(sia["config"]).items() if name in _STEERING}
                clip = own.pop("clip", None)
                self.config = SiaConfig(**own, clip=tuple(clip) if clip else None, sampling=sampling)
                self.value = RemoteValue(sia["value"])

    @property
    def unsent(self) -> list[str]:
        """Settings of `asked` that this server is not told, as it would not know them."""
        k = ("k",) if self._takes is _LLAMA else ()
        known = {*self._takes, *k, *(_STEERING if self.steers else ())}
        return [name for name in self.asked if name not in known]

    @property
    def steers(self) -> bool:
        return self.value is not None

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt:
        """The messages as they are; the server renders and counts them."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return Prompt((), tuple({"role": m["role"], "content": str(m["content"])} for m in messages))

    def write(self, request: Request) -> Generation:
        stats = Stats(began=time.perf_counter())
        return Generation(request, self._steps(request, stats), stats)

    def _steps(self, request: Request, stats: Stats) -> Iterator[Step]:
        body = self._body(request)
        index = 0
        with self._open("/v1/chat/completions", body) as answer:
            for choice in _choices(answer):
                ended = choice.get("finish_reason")
                finish = _FINISHES.get(ended or "", ended)
                delta, mark = choice.get("delta") or {}, choice.get("sia")
                text, thought = delta.get("content") or "", next((delta[n] for n in _THOUGHTS if delta.get(n)), "")
                if not text and not thought and mark is None and finish is None:
                    continue
                step = self._step(index, text, thought, mark, finish)
                index += 1
                # The end may come in a chunk of its own, which is no token.
                if finish is None or text:
                    now = time.perf_counter()
                    if stats.steps == 0:
                        stats.prefill_ms = (now - (stats.began or now)) * 1e3
                    stats.add(step)
                    stats.wall_ms = (now - (stats.began or now)) * 1e3
                yield step
                if finish is not None:
                    return

    def _body(self, request: Request) -> dict[str, Any]:
        assert isinstance(request.prompt, Prompt)
        sampling, usual = request.config.sampling, self.config.sampling
        body: dict[str, Any] = {
            "model": str(self.model.path),
            "messages": request.prompt.messages,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "stream": True,
        }
        for name, field in self._takes.items():
            if (value := getattr(sampling, name)) != getattr(usual, name) or name in self.asked:
                body[field] = value
        if self.told:
            body["chat_template_kwargs"] = self.told
        if request.stop:
            body["stop"] = list(request.stop)
        if self.steers:
            steering = {name: getattr(request.config, name) for name in _STEERING}
            body["sia"] = {name: value for name, value in steering.items() if value is not None} | {"why": True}
        elif "k" in self.asked and self._knows_sia:
            body["sia"] = {"k": request.config.k}
        elif "k" in self.asked and self._takes is _LLAMA:
            body["top_k"] = request.config.k
        return body

    def _step(self, index: int, text: str, thought: str, mark: dict[str, Any] | None, finish: str | None) -> Step:
        """What the server tells of a token; NaN where it tells nothing."""
        mark = mark or {}
        known = bool(mark) or self.steers
        unknown = 0.0 if known else math.nan
        cut = mark.get("kl_truncation", math.nan if mark else unknown)
        token, told = int(mark.get("token", -1)), mark.get("candidates")
        self.model.texts[token] = thought + text
        for one in told or ():
            self.model.texts[one["token"]] = one["text"]
        return Step(
            job=0,
            index=index,
            token=token,
            text=text,
            entropy=mark.get("entropy", math.nan),
            steered=mark.get("steered", False),
            kl=mark.get("kl", unknown) + cut,
            kl_truncation=cut,
            logprob=mark.get("logprob", unknown),
            beta=0.0,
            finish=finish,
            candidates=_candidates(told) if told else None,
            kl_steering=mark.get("kl", unknown),
            flipped=mark.get("flipped", False),
            values_asked=len(told or ()),
            reasoning=thought,
            part=REASONING if thought else ANSWER,
        )

    def _json(self, path: str) -> dict[str, Any]:
        with self._open(path, None) as answer:
            try:
                whole = parse_json(answer.read())
            except (ValueError, OSError, http.client.HTTPException):
                whole = None
        if not isinstance(whole, dict):
            raise ConfigError(f"{self.url}{path} is not what an OpenAI-compatible server answers; check --url")
        return whole

    def _open(self, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, headers)
            return open_url(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            elsewhere = (
                f", and sends to {error.headers.get('Location')}; give that as --url" if error.code // 100 == 3 else ""
            )
            said, full = _refusal(error)
            kind = ContextFullError if full else ConfigError
            raise kind(f"{self.url} answers {error.code}: {said}{elsewhere}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise ConfigError(f"{self.url}: no server answers there ({cause}); check --url") from None


def _choices(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The choices of a stream's events. Raises SiaError for an error in it, and where it has no end."""
    try:
        for line in answer:
            data = line.decode("utf-8", "replace").strip()
            if data.startswith("data:") and data.endswith("[DONE]"):
                return
            if not data.startswith("data:"):
                continue
            event = parse_json(data.removeprefix("data:"))
            if "error" in event:
                error = event["error"]
                said = error.get("message", error) if isinstance(error, dict) else error
                raise SiaError(f"the server ended the answer: {said}")
            yield from (choice for choice in event["choices"] if isinstance(choice, dict))
        raise EOFError("no end was sent")
    except (OSError, EOFError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise SiaError(f"the server's answer broke off ({type(error).__name__}: {error}); ask again") from None


def _candidates(told: list[dict[str, Any]]) -> Candidates:
    """Logits up to a constant, which no probability depends on."""

    def column(name: str) -> Any:
        return np.array([math.nan if one[name] is None else one[name] for one in told], np.float64)

    base = column("p_base")
    logits = np.log(np.maximum(base, 1e-300))
    ids = np.array([one["token"] for one in told], np.int32)
    return Candidates(ids, logits, column("value"), base, column("p_steered"))


def _refusal(error: urllib.error.HTTPError) -> tuple[str, bool]:
    """What a server says, and whether it says that the prompt is longer than its context."""
    body = b""
    try:
        body = error.read()
        said = str(parse_json(body)["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        said = str(error.reason)
    return said, any(mark in body for mark in _FULL)
