"""A reward model behind an address: vLLM's `/classify` and `/pooling`, text-embeddings-inference's `/predict`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urldefrag, urlsplit

from ..endpoint import Endpoint
from ..errors import ConfigError, DataError
from .load import FunctionReward

READS = ("chat", "pair", "response")


@dataclass(frozen=True)
class UrlConfig:
    """read: what the model reads of prompt and response: a chat that the server renders, a pair of texts, or the
    response alone. output: which of several outputs is the reward, by number or, with /predict, by label. batch: texts
    a request, where one may hold several. concurrency: requests open at once. model: its name, where the server has
    several."""

    read: str
    output: str | None = None
    batch: int = 32
    concurrency: int = 8
    model: str | None = None

    def __post_init__(self) -> None:
        if self.read not in READS:
            raise ConfigError(f"read={self.read}: expected one of {', '.join(READS)}")
        if min(self.batch, self.concurrency) < 1:
            raise ConfigError("batch and concurrency of a reward behind an address must be at least 1")


def load_url(address: str, endpoint: Endpoint | None = None) -> FunctionReward:
    """The reward at `address`, whose last part tells the form, and whose fragment the settings:

    `http://host:8000/classify#read=response&output=1`. Outputs are taken raw, before softmax or sigmoid. The key is
    SIA_API_KEY. endpoint: how the server is asked, for those who ask otherwise. Raises ConfigError for what is no such
    address; the reward raises EndpointError where the server does not answer, DataError for an answer of another form.
    """
    plain, fragment = urldefrag(address)
    base, _, form = plain.rstrip("/").rpartition("/")
    if urlsplit(plain).scheme not in ("http", "https") or form not in _FORMS:
        raise ConfigError(f"reward 'url:{address}': expected an address that ends in /{', /'.join(_FORMS)}")
    ask, read = _FORMS[form]
    config = _config(fragment, UrlConfig(read), address)
    if config.read == "pair" and form != "predict":
        raise ConfigError(f"reward 'url:{address}': /{form} takes a chat or the response, not a pair")
    if config.read == "chat" and form == "predict":
        raise ConfigError(f"reward 'url:{address}': /predict takes a pair or the response, not a chat")
    server = replace(endpoint or Endpoint(base, os.environ.get("SIA_API_KEY")), url=base)
    size = 1 if config.read == "chat" else config.batch  # a request holds one chat

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        texts = list(zip(prompts, responses, strict=True))
        parts = [texts[at : at + size] for at in range(0, len(texts), size)]
        with ThreadPoolExecutor(config.concurrency) as pool:
            return [
                value for part in pool.map(lambda part: _ask(ask, server, form, part, config), parts) for value in part
            ]

    return FunctionReward(f"url:{plain}", score)


Texts = Sequence[tuple[str, str]]  # of prompt and response


def _ask(
    ask: Callable[[Endpoint, str, Texts, UrlConfig], list[Any]],
    server: Endpoint,
    form: str,
    part: Texts,
    config: UrlConfig,
) -> list[float]:
    try:
        outputs = ask(server, f"/{form}", part, config)
        if len(outputs) != len(part):
            raise ValueError(f"{len(outputs)} results for {len(part)} texts")
        return [_pick(output, config.output) for output in outputs]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(f"{server.url}/{form} answers in another form than expected ({error!r})") from None


def _vllm(server: Endpoint, path: str, part: Texts, config: UrlConfig) -> list[Any]:
    # The switch that keeps outputs raw has had two names; servers leave out what they do not know.
    body: dict[str, Any] = {"use_activation": False, "activation": False}
    if config.model is not None:
        body["model"] = config.model
    if config.read == "chat":
        (prompt, response), *_ = part
        body["messages"] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    else:
        body["input"] = [response for _, response in part]
    rows = sorted(server.ask(path, body)["data"], key=lambda row: int(row["index"]))
    return [row["probs"] if "probs" in row else _last(row["data"]) for row in rows]


def _last(data: Any) -> Any:
    """The outputs at the last token, where there are some at each."""
    return data[-1] if isinstance(data[-1], list) else data


def _predict(server: Endpoint, path: str, part: Texts, config: UrlConfig) -> list[Any]:
    inputs = [[prompt, response] if config.read == "pair" else [response] for prompt, response in part]
    rows = server.ask(path, {"inputs": inputs, "raw_scores": True, "truncate": True})
    return [{str(one["label"]): one["score"] for one in row} for row in rows]


def _pick(outputs: Any, wanted: str | None) -> float:
    """One number of a model's outputs, a list or by label."""
    named = outputs if isinstance(outputs, dict) else {str(i): value for i, value in enumerate(outputs)}
    if wanted is None and len(named) == 1:
        return float(next(iter(named.values())))
    if wanted not in named:
        asked = "none was named" if wanted is None else f"output={wanted} was"
        raise ConfigError(f"the model has the outputs {', '.join(named)}, {asked}: add #output=… to the address")
    return float(named[wanted])


_FORMS = {"classify": (_vllm, "chat"), "pooling": (_vllm, "chat"), "predict": (_predict, "pair")}


def _config(fragment: str, config: UrlConfig, address: str) -> UrlConfig:
    given: dict[str, Any] = dict(parse_qsl(fragment, keep_blank_values=True))
    if unknown := set(given) - set(vars(config)):
        expected = ", ".join(vars(config))
        raise ConfigError(f"reward 'url:{address}' has no setting {', '.join(sorted(unknown))}; expected {expected}")
    try:
        numbers: dict[str, Any] = {name: int(given.pop(name)) for name in ("batch", "concurrency") if name in given}
    except ValueError as error:
        raise ConfigError(f"reward 'url:{address}': {error}; expected a whole number") from None
    return replace(config, **given, **numbers)
