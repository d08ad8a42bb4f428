"""A server in a thread of this process, and what tests ask of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from openai.types.chat import ChatCompletionUserMessageParam

from sia_local import SIA, Setup, SiaConfig
from sia_local.generation.decode import Job
from sia_local.records import Request, Step
from sia_local.server.app import Server
from sia_local.server.asking import Defaults
from sia_local.server.engine import EngineThread, Order
from sia_local.server.settings import ServerConfig

CHAT: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Tell me of a lost dog."}]
CONFIG = SiaConfig(threshold=0.5, beta=1.0)


class Running:
    def __init__(self, server: Server, port: int):
        self.server, self.url = server, f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.asked: list[Request] = []
        submit = server.engine.submit

        def noted(order: Order) -> None:
            self.asked += [job.request for job in order.jobs]
            submit(order)

        server.engine.submit = noted  # type: ignore[method-assign]
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def chat(self, **fields: Any) -> Any:
        answer = self.http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 12, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, status: int, path: str = "/v1/chat/completions", **body: Any) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]

    def idle(self) -> bool:
        return not any(slot["is_processing"] for slot in self.http.get("/slots").json())

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def running(
    base: Path, value: Path | None, n_ctx: int = 256, config: SiaConfig = CONFIG, **settings: Any
) -> Iterator[Running]:
    served = ServerConfig(**{"port": 0, "grace": 0.2, **settings})
    setup = Setup(slots=served.slots, n_ctx=n_ctx, n_threads=1, prompt_cache=served.prompt_cache)
    load = partial(SIA.load, base, value, setup)
    server = Server(served, load, Defaults(config, served.max_tokens))
    listener = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=3))
    thread = threading.Thread(target=web.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.engine.state != "loading")
        yield Running(server, listener.getsockname()[1])
    finally:
        web.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        assert server.engine.state in ("stopped", "failed")


@contextmanager
def held_at(engine: EngineThread, index: int) -> Iterator[Callable[[], None]]:
    """The engine stands still when it has written token `index` of a text, until the block ends or calls what it is
    given."""
    deliver, go = engine._deliver, threading.Event()

    def held(order: Order, job: Job, step: Step) -> None:
        deliver(order, job, step)
        if step.index == index:
            go.wait(30)

    engine._deliver = held  # type: ignore[method-assign]
    try:
        yield go.set
    finally:
        go.set()
        engine._deliver = deliver  # type: ignore[method-assign]


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "this did not come true in time"
        time.sleep(0.005)
