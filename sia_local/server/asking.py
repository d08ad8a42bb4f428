"""What a request asks for, in the library's terms: configurations, prompts and jobs. Runs in the handlers' threads."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..config import SiaConfig
from ..errors import ConfigError, ContextFullError
from ..files import parse_json
from ..generation.decode import Job
from ..generation.sia import SIA
from ..llama.grammar import schema_grammar
from ..records import Prompt, Request
from .errors import RefusedError
from .fields import ChatBody, CompletionBody, LogitBias, Message, SiaFields, TextFields
from .tools import NO_OFFER, Offer, offer

if TYPE_CHECKING:
    from ..evaluation.profile import Profile

MOST_TEXTS, MOST_STOPS, LONGEST_STOP, MOST_BIASES = 128, 16, 512, 1024
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "penalty_last_n",
}


@dataclass(frozen=True)
class Defaults:
    """What a request gets that says nothing: steering and sampling, length (0: as the context allows)."""

    config: SiaConfig
    max_tokens: int = 0
    profile: Profile | None = None


@dataclass(frozen=True)
class Asked:
    """Jobs in the order of the choices; prompts: how many they are of; top: log-probabilities wanted a token, None for
    none; echo: the prompts are part of the answer, with theirs; ids: the answer names the tokens it read and wrote;
    offer: the functions that may be called."""

    jobs: list[Job]
    prompts: list[Prompt]
    config: SiaConfig
    seed: int
    why: bool
    top: int | None = None
    echo: bool = False
    ids: bool = False
    offer: Offer = NO_OFFER


def chat(sia: SIA, defaults: Defaults, body: ChatBody) -> Asked:
    """Raises ConfigError, ContextFullError and RefusedError for what cannot be done."""
    offered = offer(sia, body)
    grammar = body.grammar
    if (shape := body.response_format) is not None and shape.type != "text":
        if shape.type == "json_schema" and "schema" not in (shape.json_schema or {}):
            raise RefusedError(400, "response_format has no json_schema.schema", param="response_format")
        schema = shape.schema_ if shape.type == "json_object" else (shape.json_schema or {})["schema"]
        grammar = _one_grammar(grammar, schema or {}, "response_format")
    if offered.must and grammar is not None:
        raise RefusedError(400, "tool_choice wants a call, and a grammar a text; give one of them", param="tool_choice")
    config = _config(sia, defaults, body, grammar or offered.grammar)
    prompt = chat_prompt(sia, body.messages, offered, body.chat_template_kwargs)
    top = body.top_logprobs if body.logprobs else None
    if body.top_logprobs and not body.logprobs:
        raise RefusedError(400, "top_logprobs was given without logprobs; set it to true", param="top_logprobs")
    return _asked(sia, defaults, body, [prompt], config, body.max_completion_tokens, top, offered)


def prompt_of(sia: SIA, body: ChatBody) -> Prompt:
    """The prompt of a chat() alone."""
    return chat_prompt(sia, body.messages, offer(sia, body), body.chat_template_kwargs)


def completion(sia: SIA, defaults: Defaults, body: CompletionBody) -> Asked:
    """Like chat()."""
    prompts = [_plain_prompt(sia, prompt) for prompt in _each_prompt(body.prompt)]
    config = _config(sia, defaults, body, body.grammar)
    only_reads = body.max_tokens == 0 and body.echo
    asked = _asked(sia, defaults, body, prompts, config, 1 if only_reads else None, body.logprobs)
    return replace(asked, echo=body.echo, jobs=[] if only_reads else asked.jobs)


def chat_prompt(sia: SIA, messages: Sequence[Message], offered: Offer, extra: dict[str, Any]) -> Prompt:
    """A conversation as the template renders it, tools among it."""
    talk = list(map(message, messages))
    if offered.shown:
        extra = {**extra, "tools": offered.shown}
    if offered.told:
        # In a message of the user's: not every template has a system's.
        first = next((one for one in talk if one["role"] == "user"), talk[0])
        first["content"] = offered.told + first["content"]
    return sia.prompt(talk, extra=extra)


def message(message: Message) -> dict[str, Any]:
    content = message.content
    if not isinstance(content, str):
        texts = [part.get("text") for part in content]
        if any(part.get("type") not in ("text", "input_text", "output_text") for part in content) or None in texts:
            kinds = ", ".join(sorted({str(part.get("type")) for part in content}))
            raise RefusedError(400, f"messages has content of type {kinds}; only text is read", param="messages")
        content = "\n".join(map(str, texts))
    out: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": content}
    if message.tool_calls:
        out["tool_calls"] = [_with_arguments(call) for call in message.tool_calls]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            out[name] = value
    return out


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are data, as templates want them, not JSON text, as clients send them."""
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            return {**call, "function": {**function, "arguments": parse_json(function["arguments"] or "{}")}}
        except ValueError:
            raise RefusedError(400, "messages has a tool call whose arguments are not JSON", param="messages") from None
    return call


def _each_prompt(prompt: str | list[Any]) -> list[str | list[int]]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise RefusedError(400, "prompt is empty; give text or token ids", param="prompt")
    return prompt


def _plain_prompt(sia: SIA, prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return sia.prompt(prompt, raw=True)
    if not prompt or not all(0 <= token < sia.model.n_vocab for token in prompt):
        raise RefusedError(400, f"prompt: expected token ids of 0 to {sia.model.n_vocab - 1}", param="prompt")
    if len(prompt) >= sia.n_ctx:
        message = f"the prompt is {len(prompt)} tokens, the context holds {sia.n_ctx}; shorten it"
        raise ContextFullError(message, len(prompt), sia.n_ctx)
    return Prompt(tuple(prompt), None, b"".join(map(sia.model.piece, prompt)).decode("utf-8", "replace"))


def _asked(
    sia: SIA,
    defaults: Defaults,
    body: TextFields,
    prompts: list[Prompt],
    config: SiaConfig,
    max_tokens: int | None,
    top: int | None,
    offered: Offer = NO_OFFER,
) -> Asked:
    if len(prompts) * body.n > MOST_TEXTS:
        raise RefusedError(400, f"{len(prompts) * body.n} texts were asked for; expected at most {MOST_TEXTS}")
    for named in (body.max_tokens, body.n_predict):
        max_tokens = named if max_tokens is None else max_tokens
    if max_tokens is not None and max_tokens < -1:
        raise RefusedError(400, f"max_tokens is {max_tokens}; expected 1 or more", param="max_tokens")
    if max_tokens is None or max_tokens == -1:
        max_tokens = defaults.max_tokens or sia.n_ctx
    stops = [body.stop] if isinstance(body.stop, str) else body.stop
    if len(stops) > MOST_STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in stops):
        message = f"stop: expected at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters"
        raise RefusedError(400, message, param="stop")
    seed = secrets.randbelow(1 << 31) if body.seed is None or body.seed < 0 else body.seed
    more: dict[str, Any] = {"stop": stops, "trace": body.sia.why or top is not None, "marks": offered.marks}
    jobs = [
        sia.job(Request(prompt, config, max_tokens, seed + i, **more), id=j * body.n + i)
        for j, prompt in enumerate(prompts)
        for i in range(body.n)
    ]
    return Asked(jobs, prompts, config, seed, body.sia.why, top, ids=body.return_token_ids, offer=offered)


def _config(sia: SIA, defaults: Defaults, body: TextFields, grammar: str | None) -> SiaConfig:
    """The server's configuration with what the request changes."""
    if body.json_schema is not None:
        grammar = _one_grammar(grammar, body.json_schema, "json_schema")
    changes = {ours: value for name, ours in _SAMPLING.items() if (value := getattr(body, name)) is not None}
    if grammar is not None:
        changes["grammar"] = grammar
    if body.logit_bias:
        changes["logit_bias"] = tuple(dict(_biases(sia, body.logit_bias)).items())
    config = _steered(sia, defaults, body.sia).with_sampling(**changes)
    if body.top_k is not None and 0 < body.top_k < config.k:
        config = replace(config, k=body.top_k)
    return config


def _steered(sia: SIA, defaults: Defaults, fields: SiaFields) -> SiaConfig:
    """The steering of one request. A rate alone means that gate, a threshold alone the entropy gate."""
    given = {name: value for name, value in fields.model_dump(exclude={"why"}).items() if value is not None}
    if "rate" in given and "threshold" in given and "gate" not in given:
        raise RefusedError(400, "sia.rate and sia.threshold were given; give one, or a gate", param="sia")
    if "gate" not in given and ("rate" in given or "threshold" in given):
        given["gate"] = "rate" if "rate" in given else "entropy"
    if "rate" in given and "threshold" not in given and defaults.profile is not None:
        given["threshold"] = defaults.profile.threshold_for(given["rate"]) or defaults.config.threshold
    if "beta" in given and "beta_unit" not in given and sia.value is not None and sia.value.spread:
        # Only counted in spreads does a strength mean the same with every value model.
        given["beta_unit"] = "spread"
    elif "beta_unit" in given and "beta" not in given:
        raise RefusedError(400, "sia.beta_unit was given without sia.beta; give both", param="sia.beta_unit")
    config = replace(defaults.config, **given)
    if config.beta == 0 or sia.value is None:
        config = replace(config, gate="off")
    return config


def _one_grammar(grammar: str | None, schema: dict[str, Any], name: str) -> str:
    if grammar is not None:
        raise RefusedError(400, f"grammar and {name} were given; give one of them", param=name)
    if not isinstance(schema, dict):
        raise RefusedError(400, f"{name}: the schema is not an object", param=name)
    return schema_grammar(schema)


def _biases(sia: SIA, given: LogitBias) -> Iterator[tuple[int, float]]:
    """Token ids, or texts for each of their tokens; false means never, and so does what OpenAI calls a ban."""
    pairs = given.items() if isinstance(given, dict) else given
    if len(given) > MOST_BIASES:
        raise RefusedError(400, f"logit_bias has {len(given)} entries; expected at most {MOST_BIASES}")
    for token, bias in pairs:
        value = -math.inf if bias is False or bias <= -100 else float(bias)
        try:
            ids = [int(token)]
        except ValueError:
            ids = sia.model.tokenize(str(token))
        if any(not 0 <= one < sia.model.n_vocab for one in ids):
            raise ConfigError(f"logit_bias names token {token}; expected 0 to {sia.model.n_vocab - 1}")
        yield from ((one, value) for one in ids)
