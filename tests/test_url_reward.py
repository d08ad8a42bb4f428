"""Rewards behind an address, by the forms that vLLM and text-embeddings-inference answer in."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from fake_http import answering

from sia_local.endpoint import Endpoint, EndpointError
from sia_local.errors import ConfigError, DataError, NumericError
from sia_local.rewards.load import Reward, load_reward
from sia_local.rewards.url import load_url

PROMPTS = ["p0", "p1", "p2", "p3", "p4"]
RESPONSES = ["a", "bb", "ccc", "", "eeeee"]
LENGTHS = [1.0, 2.0, 3.0, 0.0, 5.0]

quick = partial(Endpoint, "", tries=3, wait=lambda _: None)


class Served:
    """Says how long the response is, in the form of `kind`."""

    def __init__(self, kind: str):
        self.kind = kind
        self.bodies: list[Any] = []

    def __call__(self, path: str, body: Any) -> tuple[Any, ...]:
        assert path == f"/v1x/{self.kind.partition('-')[0]}"
        self.bodies.append(body)
        if len(self.bodies) == 2:
            return 503, {"error": {"message": "busy"}}
        if self.kind.startswith("predict"):
            return 200, [
                [{"score": -len(texts[-1]), "label": "bad"}, {"score": len(texts[-1]), "label": "good"}]
                for texts in body["inputs"]
            ]
        texts = body["input"] if "input" in body else [body["messages"][-1]["content"]]
        if self.kind == "classify":
            rows = [{"label": "x", "probs": [float(len(t))], "num_classes": 1} for t in texts]
        elif self.kind == "pooling":
            rows = [{"object": "pooling", "data": [float(len(t))]} for t in texts]
        else:  # of every token
            rows = [{"object": "pooling", "data": [[9.0, 7.0], [9.0, float(len(t))]]} for t in texts]
        numbered = [{"index": i, **row} for i, row in enumerate(rows)]
        return 200, {"object": "list", "data": numbered[::-1]}


@pytest.mark.parametrize(
    ("kind", "settings", "requests"),
    [
        ("classify", "", 6),
        ("classify", "#read=response&batch=2&model=m", 4),
        ("pooling", "#concurrency=2", 6),
        ("pooling-tokens", "#output=1", 6),
        ("predict", "#output=good&batch=2", 4),
        ("predict-one", "#output=good&read=response", 1),
    ],
)
def test_a_text_gets_its_own_score_in_any_order(kind: str, settings: str, requests: int) -> None:
    server = Served(kind)
    with answering(server) as url:
        reward = load_url(f"{url}/v1x/{kind.partition('-')[0]}{settings}", quick())
        assert reward(PROMPTS, RESPONSES) == LENGTHS
        assert reward.name == f"url:{url}/v1x/{kind.partition('-')[0]}" and isinstance(reward, Reward)
    assert len(server.bodies) == requests
    one = server.bodies[0]
    if kind.startswith("predict"):
        assert one["raw_scores"] is True and len(one["inputs"][0]) == (2 if "batch" in settings else 1)
    else:
        assert one["use_activation"] is False and one.get("model") == ("m" if "model" in settings else None)
        if "messages" in one:
            assert [m["role"] for m in one["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("answer", "settings", "error", "message"),
    [
        (
            {"data": [{"index": 0, "probs": [0.1, 0.9]}]},
            "",
            ConfigError,
            "the outputs 0, 1, none was named: add #output=",
        ),
        ({"data": [{"index": 0, "probs": [0.1]}]}, "#output=x", ConfigError, "the outputs 0, output=x was: add"),
        ({"data": []}, "", DataError, r"answers in another form .*0 results for 1 texts"),
        ({"scores": [1]}, "", DataError, r"answers in another form than expected .*data"),
        ({"data": [{"index": 0, "probs": [float("nan")]}]}, "", NumericError, "returned nan"),
    ],
)
def test_what_is_no_single_score_is_said(answer: Any, settings: str, error: type[Exception], message: str) -> None:
    with answering(lambda *_: (200, answer)) as url, pytest.raises(error, match=message):
        load_url(f"{url}/classify{settings}", quick())(["p"], ["r"])


def test_a_wrong_address_is_refused_before_anything_is_asked() -> None:
    for address, message in (
        ("http://h/score", r"ends in /classify, /pooling, /predict"),
        ("file:///classify", "expected an address"),
        ("http://h/classify#x=1", "has no setting x; expected read, output"),
        ("http://h/classify#batch=two", "expected a whole number"),
        ("http://h/classify#batch=0", "must be at least 1"),
        ("http://h/classify#read=all", "read=all: expected one of chat, pair, response"),
        ("http://h/classify#read=pair", "takes a chat or the response"),
        ("http://h/predict#read=chat", "takes a pair or the response"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_reward(f"url:{address}")
    with pytest.raises(EndpointError, match="does not answer"):
        load_url("http://127.0.0.1:9/classify", quick())(["p"], ["r"])
