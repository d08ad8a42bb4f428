"""How each server is asked for a text and its token ids, and what its answer says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from sia_local.endpoint import Endpoint, EndpointError
from sia_local.errors import ConfigError, DataError

from .rollouts import RolloutConfig, Wanted


@dataclass(frozen=True)
class Question:
    """A text that is wanted. ids, text: the prompt as the base reads it, the text without the token that every
    text begins with there; measured: log-probabilities are wanted, too."""

    one: Wanted
    ids: tuple[int, ...]
    text: str
    measured: bool


@dataclass(frozen=True)
class Answer:
    """A text as a server gives it. ids: its tokens, the one that ended it among them; None where the server does not
    tell. finish: `stop` or `length`. logprobs: of the tokens under the server's whole distribution, nats, where known.
    count: tokens that it says it wrote."""

    text: str
    ids: tuple[int, ...] | None
    finish: str
    logprobs: tuple[float, ...] | None = None
    count: int | None = None


class Dialect(Protocol):
    @property
    def model(self) -> str: ...

    def ask(self, endpoint: Endpoint, question: Question) -> Answer:
        """Raises EndpointError, and DataError for an answer of another form."""
        ...


def dialect_of(endpoint: Endpoint, config: RolloutConfig, chat: bool, model: str | None) -> Dialect:
    """What the server at `endpoint` understands. Raises EndpointError, ConfigError for a model it does not have."""
    listed = endpoint.ask("/v1/models")
    try:
        models = {str(one["id"]): str(one.get("owned_by", "")) for one in listed["data"]}
    except (TypeError, KeyError):
        models = {}
    if not models:
        raise ConfigError(f"{endpoint.url}/v1/models lists no model: expected an OpenAI-compatible server")
    name = model or next(iter(models))
    if name not in models:
        raise ConfigError(f"{endpoint.url} has no model {name!r}; it has {', '.join(models)}")
    if models[name] == "sia_local":
        return OpenAI(name, config, chat, ours=True)
    if models[name] == "llamacpp" and not chat:
        return LlamaServer(name, config)
    return OpenAI(name, config, chat, takes_ids=not chat and _takes_ids(endpoint, name))


def _takes_ids(endpoint: Endpoint, model: str) -> bool:
    """Whether prompts may be token ids: llama-cpp-python's server answers 500 to them."""
    try:
        replace(endpoint, tries=1).ask("/v1/completions", {"model": model, "prompt": [1, 2], "max_tokens": 1})
    except EndpointError as error:
        if error.status in (400, 422, 500):
            return False
        raise
    return True


@dataclass(frozen=True)
class OpenAI:
    """/v1/completions with the prompt as ids, or as text where a server takes no ids; or /v1/chat/completions.

    Everything that shapes the distribution is named, since servers have defaults of their own: vLLM those of the
    model's generation_config.json, others a repetition penalty.
    """

    model: str
    config: RolloutConfig
    chat: bool = False
    ours: bool = False
    takes_ids: bool = True

    def ask(self, endpoint: Endpoint, question: Question) -> Answer:
        body = self._body(question)
        if self.chat:
            body |= {"messages": [{"role": "user", "content": question.one.prompt}]}
            return self._read(endpoint, "/v1/chat/completions", body, question)
        prompt = list(question.ids) if self.takes_ids else question.text
        return self._read(endpoint, "/v1/completions", body | {"prompt": prompt}, question)

    def _body(self, question: Question) -> dict[str, Any]:
        c = self.config
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": c.max_tokens,
            "temperature": c.temperature,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": question.one.seed(c.seed),
            "return_token_ids": True,
        }
        if self.ours:
            return body | {"sia": {"gate": "off", "k": c.k, "why": question.measured}}
        if question.measured:
            body["logprobs"] = True if self.chat else 1
        return body | {"top_k": c.k, "repeat_penalty": 1.0, "repetition_penalty": 1.0}

    def _read(self, endpoint: Endpoint, path: str, body: dict[str, Any], question: Question) -> Answer:
        whole = endpoint.ask(path, body)
        try:
            choice = whole["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
            finish, ids = choice["finish_reason"], choice.get("token_ids")
            read = choice.get("prompt_token_ids", whole.get("prompt_token_ids"))
            count = (whole.get("usage") or {}).get("completion_tokens")
            if not isinstance(text or "", str):
                raise TypeError(f"text {text!r}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(f"{endpoint.url}{path} does not answer as OpenAI's API does ({error!r})") from None
        if read is not None and tuple(read) != question.ids:
            raise DataError(
                f"{endpoint.url} reads the prompt as {len(read)} tokens, not as the base GGUF's {len(question.ids)}: "
                "its template or vocabulary differs; use --api completions, or serve the same model"
            )
        return Answer(
            text or "",
            None if ids is None else tuple(ids),
            "stop" if finish == "stop" else "length",
            self._logprobs(choice) if question.measured else None,
            count,
        )

    def _logprobs(self, choice: dict[str, Any]) -> tuple[float, ...] | None:
        if self.ours:
            return tuple(token["logprob"] for token in choice["sia"]["tokens"])
        told = choice.get("logprobs") or {}
        found = [entry["logprob"] for entry in told.get("content") or ()] or told.get("token_logprobs")
        return None if not found or None in found else tuple(found)


@dataclass(frozen=True)
class LlamaServer:
    """llama-server's own /completion, which names the tokens that it wrote."""

    model: str
    config: RolloutConfig

    def ask(self, endpoint: Endpoint, question: Question) -> Answer:
        c = self.config
        body: dict[str, Any] = {
            "prompt": list(question.ids),
            "n_predict": c.max_tokens,
            "temperature": c.temperature,
            "top_k": c.k,
            "top_p": 1.0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "samplers": ["top_k", "temperature"],
            "seed": question.one.seed(c.seed),
            "return_tokens": True,
        }
        whole = endpoint.ask("/completion", body | ({"n_probs": 1} if question.measured else {}))
        try:
            told = [entry["logprob"] for entry in whole.get("completion_probabilities") or ()]
            finish = "length" if whole["stop_type"] == "limit" else "stop"
            return Answer(whole["content"], tuple(whole["tokens"]), finish, tuple(told) or None)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{endpoint.url}/completion does not answer as llama-server does ({error!r})") from None
