"""`sia-local chat --url`: with a server that steers, and with one that only speaks OpenAI's protocol."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from serving import running

from sia_local.cli import main
from sia_local.config import SiaConfig
from sia_local.server.fields import SiaFields


class Plain(BaseHTTPRequestHandler):
    """An OpenAI server that says the same thing to everyone, and nothing of tokens."""

    asked: dict[str, Any]
    says: tuple[tuple[dict[str, str], str | None], ...] = (
        ({"role": "assistant"}, None), ({"content": "Hel"}, None), ({"content": "lo."}, None), ({}, "stop"),
    )  # fmt: skip

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "plain-model"}]}).encode()
        self._answer(200 if self.path == "/v1/models" else 404, body)

    def do_POST(self) -> None:
        type(self).asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in self.says]
        self._answer(200, b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def plain() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Plain)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def talk(*arguments: str, says: str) -> tuple[str, str]:
    done = CliRunner().invoke(main, ["chat", *arguments], input=says)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.stdout, done.stderr


def test_a_steering_server_tells_why(make_gguf: Callable[..., Path], value_gguf: Path) -> None:
    with running(make_gguf("base", ascii=True), value_gguf, slots=1, api_key=("k",)) as server:
        arguments = ("--url", server.url, "--api-key", "k", "-n", "12", "--seed", "3", "--gate", "dense")
        out, err = talk(*arguments, says="A dog.\n/why 1\n/sia off\n/retry\n/stats\n")
        assert "steered by" in err
        answer, _, rest = out.partition("\n")
        assert "12 junctions in 12 tokens" not in rest and "truncation 0.00" not in rest and "nan" not in rest
        assert len(answer) > 4 and "value" in rest and rest.count("%") > 15
        local = server.http.get("/metrics", headers={"Authorization": "Bearer k"}).text
        assert "sia_junctions_total 12\n" in local
        _, err = talk("--url", server.url, "--api-key", "wrong", says="x\n")
        assert "401" in err


def test_a_steering_server_is_told_every_setting(make_gguf: Callable[..., Path], value_gguf: Path) -> None:
    with running(make_gguf("base", ascii=True), value_gguf, slots=1) as server:
        asked = {
            "--gate": "first-n", "--first-n": "3", "--beta": "2", "--beta-unit": "spread", "--kl-per-token": "0.25",
            "-k": "7", "--temp": "0.5", "--min-p": "0.125", "--repeat-penalty": "1.25", "--penalty-last-n": "9",
            "--seed": "4", "--stop": "zz", "-n": "6", "--threads": "1",
        }  # fmt: skip
        _, err = talk("--url", server.url, *(word for pair in asked.items() for word in pair), says="A dog.\n")
        assert "not sent, as the server takes none or has its own: --threads\n" in err
        request = server.asked[-1]
        got, sampling = request.config, request.config.sampling
        assert (got.gate, got.first_n, got.beta, got.beta_unit, got.kl_per_token, got.k) == (
            ("first-n", 3, 2.0, "spread", 0.25, 7)
        )
        assert (sampling.temperature, sampling.min_p, sampling.repeat_penalty, sampling.penalty_last_n) == (
            (0.5, 0.125, 1.25, 9)
        )
        assert (request.seed, request.stop, request.max_tokens) == (4, ("zz",), 6)
    names = {f.name for f in fields(SiaConfig)} - {"sampling"}
    assert set(SiaFields.model_fields) == names | {"why"}


def test_a_server_whose_settings_have_no_bound_is_understood(make_gguf: Callable[..., Path], value_gguf: Path) -> None:
    endless = SiaConfig(threshold=math.inf, clip=(-math.inf, 0.5), kl_total=math.inf)
    with running(make_gguf("base", ascii=True), value_gguf, slots=1, config=endless) as server:
        out, err = talk("--url", server.url, "-n", "4", says="A dog.\n/stats\n")
        assert server.asked[-1].config == endless and "Error" not in err and ", 0.0 % junctions" in out
        server.chat(repeat_last_n=-1)
        assert server.asked[-1].config.sampling.penalty_last_n == -1


def test_any_openai_server_answers_unsteered(plain: str) -> None:
    out, err = talk("--url", f"{plain}/v1", "--temp", "0.5", "--stop", "X", says="Hi\nAgain\n/stats\n/report x.html\n")
    assert "Error: there is nothing to report: the server tells nothing of its tokens" in err
    assert "plain-model, unsteered\nno value model: the server has none\n" in err and out.startswith("Hello.\nHello.\n")
    assert [m["role"] for m in Plain.asked["messages"]] == ["user", "assistant", "user"]
    assert (Plain.asked["temperature"], Plain.asked["stop"], "sia" in Plain.asked) == (0.5, ["X"], False)
    _, err = talk("--url", plain, "--temp", "1", "--min-p", "0.1", "--beta", "2", "--best-of", "2", says="Hi\n")
    assert "has its own: --beta, --min-p, --best-of\n" in err
    assert Plain.asked["temperature"] == 1.0 and "min_p" not in Plain.asked


def test_the_oldest_turns_go_when_the_context_of_a_server_is_full(make_gguf: Callable[..., Path]) -> None:
    with running(make_gguf("base", ascii=True), None, slots=1, n_ctx=64) as server:
        _, err = talk("--url", server.url, "-n", "6", "--seed", "3", says="one two\n" * 4 + "x " * 60 + "\n")
        assert "[the context is full: the 2 oldest turns are forgotten, the system prompt stays]" in err
        assert err.count("Error") == 1 and "answers 400: the prompt is" in err.splitlines()[-1]
        assert len(server.asked) == 4


def test_what_is_no_server_is_said() -> None:
    _, err = talk("--url", "http://127.0.0.1:9", says="x\n")
    assert "no server answers there" in err and "Traceback" not in err
    _, err = talk("--url", "http://local host:8080", says="x\n")
    assert "no server answers there" in err
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            other.accept()[0].sendall(b"SSH-2.0\r\n")

        threading.Thread(target=greet, daemon=True).start()
        _, err = talk("--url", f"http://127.0.0.1:{other.getsockname()[1]}", says="x\n")
    assert "no server answers there (SSH-2.0" in err
    _, err = talk("--url", "http://127.0.0.1:9", "-m", "base.gguf", says="")
    assert "leave -m and -v out" in err


class Thinking(Plain):
    """A server that tells reasoning apart, as `sia-local serve`, vLLM and llama-server do."""

    says = (({"reasoning_content": "so "}, None), ({"reasoning": "ab"}, None), ({"content": "cd"}, None), ({}, "stop"))


@pytest.mark.parametrize(
    ("sends", "says"),
    [
        (
            b'{"choices": [{"delta": {"content": "Hello."}}]}',
            "the server's answer broke off (EOFError: no end was sent)",
        ),
        (b'{"choices": [{"delta": {"content": "Hello."}}]}\n\ndata: [DONE]', None),
        (b'{"choices": [{"delta": {"content": "Hello."}, "finish_reason": "stop"}]}', None),
        (b'{"choices": [{"index": 0, "delta": null, "finish_reason": "stop"}]}', None),
        (b'{"error": "Request failed"}', "the server ended the answer: Request failed"),
        (b'{"choices": 3}', "the server's answer broke off"),
        (b"[1]", "the server's answer broke off"),
    ],
)
def test_what_servers_send_instead_is_no_traceback(
    plain: str, monkeypatch: pytest.MonkeyPatch, sends: bytes, says: str | None
) -> None:
    def post(self: Plain) -> None:
        self._answer(200, b"data: " + sends + b"\n\n")

    monkeypatch.setattr(Plain, "do_POST", post)
    out, err = talk("--url", plain, says="Hi\n/stats\n")
    assert (says or "") in err and ("Error" in err) == bool(says) and "there is no value model" in out
    assert ("Hello." in out) == (b"Hello." in sends)


def test_a_servers_reasoning_is_folded_and_its_template_told() -> None:
    server = HTTPServer(("127.0.0.1", 0), Thinking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    out, _ = talk("--url", url, "--template-arg", "enable_thinking=true", says="Hi.\n/reasoning\nAgain.\n")
    assert out == "cd\nso ab\ncd\n"
    assert Thinking.asked["chat_template_kwargs"] == {"enable_thinking": True}
    assert Thinking.asked["messages"][1] == {"role": "assistant", "content": "cd"}
    _, err = talk("--url", url, "--reasoning", "think", says="Hi.\n")
    assert "--chat-template or --reasoning; the server has its own" in err
    server.shutdown()
    server.server_close()
