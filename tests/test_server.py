"""The server over real sockets: what OpenAI's client and plain HTTP see of it."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionStreamOptionsParam
from serving import CHAT, Running, held_at, running, wait_until

from sia_local import SIA
from sia_local.errors import ConfigError
from sia_local.server.engine import Item
from sia_local.server.settings import ServerConfig
from sia_local.server.stream import Mailbox, Presence, ReaderGoneError
from sia_local.steering.entropy import log_partition

STEERED = {"beta": 3.0, "gate": "dense"}


@pytest.fixture(scope="module")
def on(make_gguf: Callable[..., Path], value_gguf: Path) -> Iterator[Running]:
    with running(make_gguf("base", ascii=True), value_gguf, alias="tiny", slots=4) as server:
        yield server


def test_openais_client_reads_whole_and_streamed_answers(on: Running) -> None:
    create = on.openai.chat.completions.create
    whole = create(model="any", messages=CHAT, max_tokens=12, seed=5)
    assert (whole.model, whole.object, whole.choices[0].message.role) == ("tiny", "chat.completion", "assistant")
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    usage: ChatCompletionStreamOptionsParam = {"include_usage": True}
    chunks = list(create(model="any", messages=CHAT, max_tokens=12, seed=5, stream=True, stream_options=usage))
    texts = [chunk.choices[0].delta.content for chunk in chunks[:-1]]
    assert texts[0] is None and chunks[0].choices[0].delta.role == "assistant"
    assert "".join(filter(None, texts)) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in create(model="any", messages=CHAT, max_tokens=12, stream=True))
    assert [model.id for model in on.openai.models.list()] == ["tiny"]


def test_a_seed_gives_the_same_text_alone_and_among_seven_others(on: Running) -> None:
    fields = [{"seed": 7, "sia": {"beta": 0.05 * i, "gate": "dense"}} for i in range(8)]
    alone = [on.chat(**one)["choices"][0]["message"]["content"] for one in fields]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: on.chat(**one)["choices"][0]["message"]["content"], fields))
    assert together == alone
    assert len(set(alone)) > 4
    several = on.chat(n=3, seed=7, sia=fields[2]["sia"])["choices"]
    assert [choice["index"] for choice in several] == [0, 1, 2]
    assert several[0]["message"]["content"] == alone[2] != several[1]["message"]["content"]


def test_beta_zero_is_off_and_the_answer_says_what_steering_did(on: Running) -> None:
    off, zero, strong = (on.chat(seed=3, sia=sia) for sia in ({"gate": "off"}, {"beta": 0}, {**STEERED, "why": True}))
    assert off["choices"][0]["message"] == zero["choices"][0]["message"] != strong["choices"][0]["message"]
    assert (zero["sia"]["junctions"], zero["sia"]["kl_steering"], zero["sia"]["values_asked"]) == (0, 0.0, 0)
    told, sums = strong["choices"][0]["sia"]["tokens"], strong["sia"]
    assert sums["junctions"] == 12 and sums["steered_share"] == 1.0 and sums["config"]["beta_unit"] == "spread"
    assert sums["kl_steering"] == pytest.approx(sum(token["kl"] for token in told)) and sums["kl_steering"] > 0
    assert all(len(token["candidates"]) == 10 for token in told)
    assert sum(c["p_steered"] for c in told[0]["candidates"]) == pytest.approx(1)
    bounded = on.chat(seed=3, sia={**STEERED, "kl_total": 0.5})["sia"]
    assert bounded["kl_steering"] <= 0.5 < sums["kl_steering"]


def test_ids_of_what_was_read_and_written_are_named_as_vllm_names_them(on: Running) -> None:
    told = on.chat(seed=3, n=2, return_token_ids=True)["choices"]
    for i, choice in enumerate(told):
        again = on.chat(seed=3 + i, sia={"why": True})["choices"][0]
        assert choice["token_ids"] == [token["token"] for token in again["sia"]["tokens"]]
        assert (
            on.http.post("/detokenize", json={"tokens": choice["token_ids"]}).json()["content"]
            == (choice["message"]["content"])
        )
    body = {"prompt": told[0]["prompt_token_ids"], "seed": 3, "max_tokens": 12, "return_token_ids": True}
    plain = on.http.post("/v1/completions", json=body).json()["choices"][0]
    assert (plain["token_ids"], plain["prompt_token_ids"]) == (told[0]["token_ids"], body["prompt"])
    events = on.http.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
    chunks = [json.loads(event[6:])["choices"][0] for event in events if event.startswith("data: {")]
    assert [token for chunk in chunks for token in chunk.get("token_ids", [])] == plain["token_ids"]


def test_log_probabilities_are_those_of_what_was_sampled_from(on: Running) -> None:
    answer = on.chat(seed=3, logprobs=True, top_logprobs=3, sia={**STEERED, "why": True})["choices"][0]
    for entry, token in zip(answer["logprobs"]["content"], answer["sia"]["tokens"], strict=True):
        steered = {c["token"]: c["p_steered"] for c in token["candidates"]}
        assert math.exp(entry["logprob"]) == pytest.approx(steered[entry["id"]], rel=1e-6)
        assert [top["id"] for top in entry["top_logprobs"]] == sorted(steered, key=lambda i: -steered[i])[:3]
    greedy = on.chat(temperature=0, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in greedy] == [0] * 12


def test_echo_gives_the_log_likelihood_of_a_prompt(on: Running, make_gguf: Callable[..., Path]) -> None:
    text = "Once there was a dog"
    whole = on.openai.completions.create(
        model="", prompt=[text, "a cat"], max_tokens=2, temperature=0, logprobs=2, echo=True
    )
    first, second = whole.choices
    assert first.text.startswith(text) and second.text.startswith("a cat") and first.logprobs is not None
    tokens, given, offsets = first.logprobs.tokens, first.logprobs.token_logprobs, first.logprobs.text_offset
    assert tokens is not None and given is not None and offsets is not None
    assert "".join(tokens) == first.text and given[0] is None and offsets[:2] == [0, len(tokens[0])]
    with SIA.load(make_gguf("base", ascii=True), n_ctx=256, n_threads=1) as sia:
        ids = list(sia.prompt(text, raw=True).tokens)
        sia.engine.begin(0, ids[:-1])
        (row,) = sia.engine.logits([0])
        expected = row[ids[-1]] - log_partition(row)
    assert given[len(ids) - 1] == pytest.approx(expected, abs=1e-4)
    read = on.http.post("/v1/completions", json={"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}).json()
    assert read["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(given[1 : len(ids)], abs=1e-4)
    lines = on.http.post("/v1/completions", json={"prompt": ids, "max_tokens": 2, "echo": True, "stream": True}).text
    assert text in lines and lines.endswith("data: [DONE]\n\n")
    never = on.http.post("/v1/completions", content='{"prompt": "a", "max_tokens": 1, "sia": {"threshold": 1e999}}')
    assert never.json()["sia"]["config"]["threshold"] is None
    none = on.http.post("/v1/completions", json={"prompt": ids, "max_tokens": 0, "echo": True, "stream": True}).text
    shown, *_, last = [json.loads(line[6:]) for line in none.splitlines() if line.startswith("data: {")]
    assert shown["choices"][0]["text"] == text and last["choices"][0]["finish_reason"] == "length"
    assert none.endswith("data: [DONE]\n\n")


def test_log_probabilities_of_parts_of_characters_are_told_apart(on: Running) -> None:
    text = "<|im_start|>ñ 日 b"
    body = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 10}
    told = on.http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    parts = [r"bytes:\xc3", r"bytes:\xb1", " ", r"bytes:\xe6", r"bytes:\x97", r"bytes:\xa5", " ", "b"]
    assert told["tokens"] == ["<|im_start|>", *parts]
    assert told["text_offset"] == [0, *(text.index(c) for c in "ññ"), 13, 14, 14, 14, 15, 16]
    assert [len(top) for top in told["top_logprobs"][1:]] == [10] * 8


def test_stop_bias_and_schema_shape_the_text(on: Running) -> None:
    plain = on.chat(seed=1)["choices"][0]["message"]["content"]
    stopped = on.chat(seed=1, stop=[plain[4:6]])["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (plain[:4], "stop")
    (token,) = on.http.post("/tokenize", json={"content": "x"}).json()["tokens"]
    forced = on.chat(temperature=0, max_tokens=3, logit_bias={str(token): 100}, sia={"beta": 0})
    assert forced["choices"][0]["message"]["content"] == "xxx"
    banned = on.chat(temperature=0, max_tokens=3, logit_bias=[["x", 100], ["x", False]], sia={"beta": 0})
    assert "x" not in banned["choices"][0]["message"]["content"]
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
    }
    shape = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    made = json.loads(on.chat(seed=2, max_tokens=60, response_format=shape)["choices"][0]["message"]["content"])
    assert set(made) == {"n", "ok"} and made["n"] in (1, 2)


def test_a_follow_up_reads_only_what_is_new_though_another_talked_in_between(on: Running) -> None:
    def turn(turns: list[dict[str, str]]) -> tuple[int, int]:
        answer = on.chat(messages=turns, seed=1, sia={"beta": 0})
        turns += [answer["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        usage = answer["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    one = [{"role": "user", "content": "A story of seven geese, please."}]
    two = [{"role": "user", "content": "What is the largest of all numbers?"}]
    first, _ = turn(one)
    turn(two)
    turn(two)
    again, cached = turn(one)
    assert cached >= first - 1 and again - cached < again / 2


def test_what_cannot_be_done_is_refused_by_name(on: Running) -> None:
    assert on.refused(400, messages=CHAT, mirostat=2)["param"] == "mirostat"
    assert on.refused(400, messages=CHAT, sia={"betta": 1})["param"] == "sia.betta"
    assert on.refused(400, messages=CHAT, n="many")["param"] == "n"
    assert on.refused(400, messages=CHAT, tools=[{"type": "function"}])["param"] == "tools[0].type"
    assert on.refused(400, prompt="x", suffix="y", path="/v1/completions")["param"] == "suffix"
    assert "temperature is -1" in on.refused(400, messages=CHAT, temperature=-1)["message"]
    assert "GBNF" in on.refused(400, messages=CHAT, grammar="root ::= (")["message"]
    assert "logit bias of token 5 is 1e+39" in on.refused(400, messages=CHAT, logit_bias={"5": 1e39})["message"]
    assert on.refused(400, messages=[{"role": "user", "content": "long " * 400}])["code"] == "context_length_exceeded"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "image_url" in on.refused(400, messages=image)["message"]
    fetched = {"type": "json_schema", "json_schema": {"schema": {"$ref": "https://localhost/x"}}}
    assert "$ref" in on.refused(400, messages=CHAT, response_format=fetched)["message"]
    assert (
        on.http.post("/v1/chat/completions", content=b'{"messages": [').json()["error"]["type"]
        == "invalid_request_error"
    )
    assert on.http.post("/v1/embeddings", json={}).status_code == 404
    assert on.http.get("/v1/completions").headers["Allow"] == "POST"
    assert on.http.get("/health", headers={"Origin": "http://elsewhere.example"}).status_code == 403
    with pytest.raises(openai.BadRequestError, match="unknown gate"):
        on.openai.chat.completions.create(model="", messages=CHAT, extra_body={"sia": {"gate": "x"}})


def test_a_conversation_that_lost_its_slot_reads_only_what_is_new(
    make_gguf: Callable[..., Path], value_gguf: Path
) -> None:
    talks = [[{"role": "user", "content": text}] for text in ("Tell me of a lost dog.", "A cat in the rain, please.")]
    answers, read = [], []
    for room in (1 << 24, 0):
        with running(make_gguf("base", ascii=True), value_gguf, slots=1, prompt_cache=room) as server:
            said = [list(talk) for talk in talks]
            for turn in range(3):
                for talk in said:
                    whole = server.chat(messages=talk, seed=turn, max_tokens=6, logit_bias={"<|im_end|>": False})
                    answers.append(whole["choices"][0]["message"]["content"])
                    usage = whole["usage"]
                    read.append((usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
                    talk += [{"role": "assistant", "content": answers[-1]}, {"role": "user", "content": "And then?"}]
            assert (server.metric("sia_prompt_cache_bytes") > 0) == (room > 0)
    kept, anew = read[:6], read[6:]
    assert answers[:6] == answers[6:]
    # Of a follow-up turn everything was there that its conversation had read before: its last prompt, and most of what
    # was written since, unless a tokenizer reads that otherwise than it was written.
    assert all(kept[i][1] >= kept[i - 2][0] for i in range(2, 6))
    assert all(cached < 40 < prompt for prompt, cached in anew[2:])


def test_a_reader_is_gone_that_disconnects_or_takes_nothing_not_one_that_is_told_nothing() -> None:
    async def forever() -> Any:
        await asyncio.sleep(3600)

    async def disconnects() -> Any:
        return {"type": "http.disconnect"}

    async def meet(receive: Any, sends: Any) -> str:
        try:
            async with Presence(receive, 0.01) as reader:
                await (reader.sent(sends) if sends is not None else asyncio.sleep(0.05))
        except ReaderGoneError:
            return "gone"
        return "there"

    assert asyncio.run(meet(forever, forever())) == "gone"
    assert asyncio.run(meet(disconnects, None)) == "gone"
    assert asyncio.run(meet(forever, None)) == "there"
    assert asyncio.run(meet(forever, asyncio.sleep(0))) == "there"


def test_a_stream_that_is_told_nothing_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sia_local.server.stream.KEEP_ALIVE", 0.001)

    async def waits() -> list[Item]:
        mailbox = Mailbox()
        async with Presence(asyncio.Event().wait, 30.0, mailbox.wake):  # type: ignore[arg-type]
            return await mailbox.take()

    assert asyncio.run(waits()) == []


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_leaves_frees_its_slot_before_the_next_token(on: Running, stream: bool) -> None:
    engine = on.server.engine
    written, cancelled = engine.totals.steps, engine.totals.cancelled
    body = {"messages": CHAT, "max_tokens": 200, "sia": STEERED, "stream": stream}
    body["logit_bias"] = {"<|im_end|>": False, "<|endoftext|>": False}
    data = json.dumps(body).encode()
    with held_at(engine, 2):
        with socket.create_connection(("127.0.0.1", int(on.url.rpartition(":")[2]))) as reader:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            reader.sendall(head.encode() + data)
            wait_until(lambda: engine.totals.steps == written + 3)
        wait_until(lambda: engine.totals.cancelled == cancelled + 1)
    wait_until(lambda: on.idle() and not engine.orders)
    assert engine.totals.steps == written + 3


def test_utilities_and_metrics(on: Running) -> None:
    assert [on.http.head(path).status_code for path in ("/", "/health", "/v1/models")] == [200] * 3
    assert on.http.get("/health").json() == {"status": "ok"}
    pieces = on.http.post("/tokenize", json={"content": "a dog", "with_pieces": True}).json()["tokens"]
    ids = [piece["id"] for piece in pieces]
    assert on.http.post("/detokenize", json={"tokens": ids}).json() == {"content": "a dog"}
    rendered = on.http.post("/apply-template", json={"messages": CHAT}).json()["prompt"]
    assert rendered.endswith("<|im_start|>assistant\n") and CHAT[0]["content"] in rendered
    props = on.http.get("/props").json()
    assert props["total_slots"] == 4 and props["sia"]["spread"] == 0.5
    before = on.metric("sia_junctions_total")
    on.chat(sia=STEERED)
    assert on.metric("sia_junctions_total") == before + 12
    for name in (
        "llamacpp:prompt_tokens_total",
        "llamacpp:requests_processing",
        "sia_kl_nats_total",
        "sia_value_rows_total",
    ):
        assert on.metric(name) >= 0


def test_limits_and_keys(base_gguf: Path) -> None:
    settings: dict[str, Any] = {"slots": 1, "queue": 1, "per_client": 3, "api_key": ("one", "two"), "max_body": 5000}
    with running(base_gguf, None, **settings, cors=("http://page.example",)) as server:
        url, http = "/v1/chat/completions", server.http
        assert http.get("/health").status_code == 200
        for key in ({}, {"Authorization": "Bearer three"}):
            answer = http.post(url, json={"messages": CHAT}, headers=key)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        assert http.get("/v1/models", headers={"X-Api-Key": "two"}).status_code == 200
        http.headers["Authorization"] = "Bearer one"
        assert server.refused(413, messages=[{"role": "user", "content": "x" * 6000}])["code"] == "request_too_large"
        chunks = (b"x" * 1000 for _ in range(10))
        assert http.post(url, content=chunks).status_code == 413
        preflight = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
        assert http.options(url, headers=preflight).headers["access-control-allow-origin"] == "http://page.example"
        body = {"messages": CHAT, "max_tokens": 2}
        engine = server.server.engine
        assert engine.sia is not None
        with ThreadPoolExecutor(2) as pool:
            # The engine waits for the desk, so that what was taken stays unwritten.
            with engine.sia.desk.lock:
                waiting = [pool.submit(http.post, url, json=body) for _ in range(2)]
                wait_until(lambda: engine.totals.requests == 2)
                full = http.post(url, json=body)
                engine.per_client = 2
                enough = http.post(url, json=body)
            assert full.status_code == 503 and int(full.headers["Retry-After"]) >= 1
            assert (enough.status_code, enough.json()["error"]["type"]) == (429, "rate_limit_error")
            assert [answer.result().status_code for answer in waiting] == [200, 200]


def test_stopping_cuts_streams_after_the_grace_period(base_gguf: Path) -> None:
    with running(base_gguf, None, slots=1, grace=0.1) as server:
        engine = server.server.engine
        body = {"messages": CHAT, "max_tokens": 200, "logit_bias": {"<|im_end|>": False, "<|endoftext|>": False}}
        with (
            held_at(engine, 2) as go,
            server.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as a,
        ):
            lines = a.iter_lines()
            next(lines)
            engine.stop(0.0)
            waiting = server.refused(503, messages=CHAT)
            go()
            rest = "".join(lines)
        assert "the server is stopping" in rest and '"finish_reason":"' not in rest
        assert waiting["type"] == "unavailable_error"
        assert server.http.get("/health").status_code == 503


def test_models_are_freed_once_nobody_uses_them(base_gguf: Path) -> None:
    """A prompt that is rendered while the server stops reads the model's metadata in a thread of its own."""
    with running(base_gguf, None, slots=1) as server:
        engine = server.server.engine
        sia = engine.sia
        assert sia is not None
        with engine.in_use():
            engine.stop(0.0)
            wait_until(lambda: engine.sia is None)
            assert sia.model.chat_template and engine.state == "stopping"
            assert server.refused(503, messages=CHAT)["type"] == "unavailable_error"
        engine.join()
        assert engine.state == "stopped"


def test_a_model_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with running(tmp_path / "gone.gguf", None) as server:
        assert server.server.engine.state == "failed" and "gone.gguf" in str(server.server.engine.error)
        assert server.http.get("/health").status_code == 503


def test_settings_are_checked() -> None:
    refused: list[tuple[str, Any, str]] = [
        ("port", 70_000, "port is 70000"),
        ("slots", 0, "slots is 0"),
        ("api_key", ("",), "an API key is empty"),
        ("send_timeout", 0, "send_timeout is 0"),
    ]
    for name, value, sentence in refused:
        with pytest.raises(ConfigError, match=sentence):
            ServerConfig(**{name: value})
