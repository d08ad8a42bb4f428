"""The example of a balancer: who gets a request, and that none is left without an answer."""

from __future__ import annotations

import asyncio
import runpy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from fake_http import answering

BALANCER = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "balancer.py"))["Balancer"]


class Replica:
    """Says its name to whoever asks. idle: of its four slots; status: 0 breaks off."""

    def __init__(self, name: str, idle: int, status: int = 200):
        self.name, self.idle, self.status = name, idle, status

    def __call__(self, path: str, body: Any) -> tuple[Any, ...]:
        if path == "/slots":
            return 200, [{"is_processing": i >= self.idle} for i in range(4)]
        if body is None:
            return 200, {}
        return self.status, {"name": self.name, "body": body, "path": path}


async def ask(replicas: list[str], times: int) -> list[tuple[int, Any]]:
    balancer = BALANCER(replicas)
    transport = httpx.ASGITransport(balancer.app)
    async with balancer.client, httpx.AsyncClient(transport=transport, base_url="http://balancer") as client:
        await asyncio.gather(*map(balancer.look, replicas))
        answers = [await client.post("/v1/completions?x=1", json={"n": i}) for i in range(times)]
        return [(answer.status_code, answer.json()) for answer in answers]


def test_the_idlest_replica_answers_and_a_lost_one_is_passed_over() -> None:
    a, b = Replica("a", 2), Replica("b", 4)
    with ExitStack() as stack:
        urls = [stack.enter_context(answering(one)) for one in (a, b)]
        answers = asyncio.run(ask(urls, 4))
        assert [answer["name"] for _, answer in answers] == ["b", "b", "a", "b"]
        assert answers[3][1]["body"] == {"n": 3} and answers[3][1]["path"] == "/v1/completions?x=1"
        for status in (0, 503):
            b.status = status
            assert [answer["name"] for _, answer in asyncio.run(ask(urls, 3))] == ["a"] * 3
        a.status = 0
        assert asyncio.run(ask(urls, 1))[0][0] == 503  # what b said
        b.status = 0
        ((status, told),) = asyncio.run(ask(urls, 1))
        assert status == 503 and told["error"]["message"].startswith("no replica answers")
        a.status = 400
        assert asyncio.run(ask(urls, 1))[0][0] == 400


def test_slots_behind_a_key_are_seen_and_requests_go_on_with_none_but_their_own() -> None:
    def replica(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/health" and request.headers.get("Authorization") != "Bearer sesame":
            return httpx.Response(401, json={})
        return httpx.Response(200, json=[{"is_processing": False}] if request.url.path == "/slots" else {})

    async def statuses() -> list[int]:
        balancer = BALANCER(["http://a"], key="sesame")
        balancer.client = httpx.AsyncClient(transport=httpx.MockTransport(replica))
        transport = httpx.ASGITransport(balancer.app)
        async with balancer.client, httpx.AsyncClient(transport=transport, base_url="http://balancer") as client:
            await balancer.look("http://a")
            keys: list[dict[str, str]] = [{}, {"Authorization": "Bearer sesame"}]
            return [(await client.get("/v1/models", headers=key)).status_code for key in keys]

    assert asyncio.run(statuses()) == [401, 200]
