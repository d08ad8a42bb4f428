"""Rollouts that servers sample: ours in earnest, others by the form of their answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_http import answering
from serving import running

from models import TEMPLATE
from sia_local import SIA
from sia_local.endpoint import EndpointError
from sia_local.errors import ConfigError, DataError
from sia_local.llama.model import Model

pytest.importorskip("torch")

from sia_convert.data.gap import Heard, gap
from sia_convert.data.rollouts import RolloutConfig, sample
from sia_convert.data.served import ServerConfig, sample_served
from sia_convert.data.trajectories import Trajectory, read_trajectories
from sia_convert.settings import Machine

PROMPTS = [f"the {word} king" for word in ("sad", "old", "bad", "kind", "big")]
CONFIG = RolloutConfig(samples=2, max_tokens=8, slots=3, n_ctx=64)
MACHINE = Machine(threads=1)


def by_id(path: Path) -> dict[str, Trajectory]:
    return {t.id: t for t in read_trajectories([path])}


def served(url: str | tuple[str, ...], out: Path, base: Path, said: list[str] | None = None, **settings: Any) -> int:
    servers = ServerConfig(**{"url": (url,) if isinstance(url, str) else url, "tries": 2, **settings})
    echo = (lambda _: None) if said is None else said.append
    return sample_served(PROMPTS, out, base, CONFIG, servers, machine=MACHINE, echo=echo)


@pytest.fixture(scope="module")
def local(base_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trajectory]:
    out = tmp_path_factory.mktemp("local") / "out.jsonl"
    sample(PROMPTS, out, base_gguf, CONFIG, MACHINE)
    return by_id(out)


def test_our_server_samples_what_this_machine_would(
    base_gguf: Path, local: dict[str, Trajectory], tmp_path: Path
) -> None:
    said: list[str] = []
    with (
        running(base_gguf, None, alias="base", api_key=("k",)) as server,
        running(base_gguf, None, alias="base") as other,
    ):
        urls = (f"{server.url}/v1", other.url)
        with pytest.raises(EndpointError, match="answers 401"):
            served(server.url, tmp_path / "none.jsonl", base_gguf)
        servers = ServerConfig(url=urls, concurrency=3)
        out = tmp_path / "both.jsonl"
        assert sample_served(PROMPTS, out, base_gguf, CONFIG, servers, "k", MACHINE, echo=said.append) == 10
        assert by_id(out) == local
        assert sample_served(PROMPTS, out, base_gguf, CONFIG, servers, "k", MACHINE, echo=said.append) == 0
        lines = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:4]) + lines[4][:9])
        chat = dataclasses.replace(servers, url=(other.url,), api="chat")
        with pytest.raises(DataError, match="made with api completions, not chat"):
            sample_served(PROMPTS, out, base_gguf, CONFIG, chat, None, MACHINE)
        assert sample_served(PROMPTS, out, base_gguf, CONFIG, servers, "k", MACHINE, echo=said.append) == 6
        sample_served(PROMPTS, tmp_path / "chat.jsonl", base_gguf, CONFIG, chat, None, MACHINE, echo=said.append)
        assert by_id(out) == by_id(tmp_path / "chat.jsonl") == local
    assert "serve that very quantization" in said[0]
    assert said[1].startswith("10 texts, 80 tokens: likelier to the server than to the base GGUF by 0.0000 ± 0.0000")
    with (
        answering(Engine(base_gguf, local, owner="vllm", model="llama")) as url,
        pytest.raises(DataError, match="made with served base, not llama"),
    ):
        served(url, out, base_gguf)
    # What a server renders is no plain text, as it would have been noted.
    raw = dataclasses.replace(CONFIG, raw=True)
    with pytest.raises(ConfigError, match=r"--raw was given, so prompts are plain text .*; use --api completions"):
        sample_served(PROMPTS, tmp_path / "raw.jsonl", base_gguf, raw, chat, None, MACHINE)


class Engine:
    """What other engines answer for the texts of `local`, as their owners `vllm`, `llamacpp` or anyone else do."""

    def __init__(self, base: Path, local: dict[str, Trajectory], owner: str, model: str = "m", **changes: Any):
        self.by_seed = {t.prompt_id * 8191 + int(t.id[-1]): t for t in local.values()}
        self.owner, self.model, self.changes = owner, model, changes
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, path: str, body: Any) -> tuple[Any, ...]:
        if path == "/v1/models":
            return 200, {"data": [{"id": self.model, "owned_by": self.owner}]}
        if "seed" not in body:  # may prompts be ids?
            return (200, {}) if self.owner == "vllm" else (500, {"detail": "no ids"})
        self.asked.append((path, body))
        text = self.by_seed[body["seed"]]
        ids = [*text.tokens, *([] if text.stop is None else [text.stop])]
        if self.owner == "llamacpp":
            stop = "limit" if text.finish == "length" else "eos"
            return 200, {"content": text.response, "tokens": ids, "stop_type": stop}
        choice: dict[str, Any] = {"text": text.response, "finish_reason": text.finish}
        if self.owner == "vllm":
            choice |= {"token_ids": ids, "prompt_token_ids": body["prompt"]}
        usage = {"completion_tokens": len(text.tokens)}
        return 200, {"choices": [choice | self.changes], "usage": usage}


@pytest.mark.parametrize(("owner", "path"), [("vllm", "/v1/completions"), ("llamacpp", "/completion")])
def test_ids_that_a_server_names_are_taken(
    owner: str, path: str, base_gguf: Path, local: dict[str, Trajectory], tmp_path: Path
) -> None:
    engine = Engine(base_gguf, local, owner)
    with answering(engine) as url:
        assert served(url, tmp_path / "out.jsonl", base_gguf, compare=0) == 10
    assert by_id(tmp_path / "out.jsonl") == local
    with Model(base_gguf, vocab_only=True) as model:
        ids = model.tokenize(local["0-0"].rendered, add_special=True, parse_special=True)
    asked, body = next((asked, body) for asked, body in engine.asked if body["seed"] == 0)
    assert asked == path and body["prompt"] == ids and body["top_k"] == 10
    assert (body["top_p"], body["min_p"], body["repeat_penalty"], body["temperature"]) == (1, 0, 1, 1)


def test_where_no_ids_are_named_texts_that_are_read_otherwise_are_left_out(
    base_gguf: Path, local: dict[str, Trajectory], tmp_path: Path
) -> None:
    with Model(base_gguf, vocab_only=True) as model:
        plain = model.tokenize("the king and the old dog")
        apart = 4 * model.tokenize("b")  # which is read as twice "bb"

        def text(one: Trajectory, ids: list[int]) -> Trajectory:
            spelled = b"".join(map(model.piece, ids)).decode()
            return dataclasses.replace(one, tokens=ids, response=spelled, finish="stop", stop=None)

        texts = {name: text(t, apart if name == "3-1" else plain[: 2 + t.prompt_id]) for name, t in local.items()}
    said: list[str] = []
    with answering(Engine(base_gguf, texts, "someone")) as url:
        assert served(url, tmp_path / "out.jsonl", base_gguf, said) == 9
    del texts["3-1"]
    assert by_id(tmp_path / "out.jsonl") == texts
    assert said[1] == "left out 1 of 10 texts: 1 sampled as other tokens than the text is read as"
    assert "less likely to the base GGUF than texts of its own" in said[2]


@pytest.mark.parametrize("adds", [True, False])
def test_a_server_that_takes_text_reads_the_token_that_begins_it_once(
    adds: bool, make_gguf: Callable[..., Path], local: dict[str, Trajectory], tmp_path: Path
) -> None:
    """It adds the token where the tokenizer does; SmolLM2's leaves that to the template."""
    base = make_gguf("base", add_bos=adds, template="{{ bos_token }}" + TEMPLATE)
    with Model(base, vocab_only=True) as model:
        begins, plain = model.token_text(model.bos), model.tokenize("the king")
    texts = {
        name: dataclasses.replace(t, tokens=plain, response="the king", finish="stop") for name, t in local.items()
    }
    engine = Engine(base, texts, "someone")
    with answering(engine) as url:
        assert served(url, tmp_path / "out.jsonl", base, compare=0) == 10
    read = by_id(tmp_path / "out.jsonl")["0-0"].rendered
    assert read == begins + local["0-0"].rendered
    asked = next(body["prompt"] for _, body in engine.asked if body["seed"] == 0)
    assert asked == (read.removeprefix(begins) if adds else read)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "something else"}, "9 of 9 texts are unusable: 9 whose ids do not spell the text"),
        ({"token_ids": [10_000]}, "9 with ids beyond the base's vocabulary"),
        ({"prompt_token_ids": [1, 2]}, "reads the prompt as 2 tokens, not as the base GGUF's"),
        ({"text": 3}, "does not answer as OpenAI's API does"),
    ],
)
def test_another_tokenizer_is_refused(
    changes: dict[str, Any], message: str, base_gguf: Path, local: dict[str, Trajectory], tmp_path: Path
) -> None:
    with answering(Engine(base_gguf, local, "vllm", **changes)) as url, pytest.raises(Exception, match=message):
        served(url, tmp_path / "out.jsonl", base_gguf)


@pytest.mark.parametrize(("status", "said"), [(0, "does not answer"), (429, "answers 429")])
def test_a_server_that_is_lost_leaves_its_work_to_the_others(
    status: int,
    said: str,
    base_gguf: Path,
    local: dict[str, Trajectory],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, fails = Engine(base_gguf, local, "vllm"), Engine(base_gguf, local, "vllm")

    def broken(path: str, body: Any) -> tuple[Any, ...]:
        answer = fails(path, body)
        return answer if body is None or "seed" not in body else (status, None)

    with answering(good) as url, answering(broken) as other:
        out = tmp_path / "out.jsonl"
        served((url, other), out, base_gguf, concurrency=2, compare=0, tries=1)
        assert by_id(out) == local
        assert capsys.readouterr().err.count(f"given up: {other}/v1/completions {said}") == 1
        with pytest.raises(EndpointError, match=rf"no server is left; the last one: .* {said}"):
            served(other, tmp_path / "none.jsonl", base_gguf, tries=1)
    with pytest.raises(ConfigError, match="has no model 'x'; it has m"), answering(good) as url:
        served(url, tmp_path / "none.jsonl", base_gguf, served_model="x")


def test_the_gap_is_that_of_log_probabilities(make_gguf: Callable[..., Path], base_gguf: Path) -> None:
    """Against whole prefixes read afresh; texts of another model are told apart."""
    prompt, rng = (5, 6, 7), np.random.default_rng(0)
    texts = [tuple(int(t) for t in rng.integers(0, 200, size)) for size in (3, 5)]
    with SIA.load(base_gguf, n_ctx=32, n_threads=1) as sia:

        def log_p(text: tuple[int, ...]) -> list[tuple[float, bool]]:
            out = []
            for i, token in enumerate(text):
                sia.engine.begin(0, (*prompt, *text[:i]))
                row = np.array(sia.engine.logits([0])[0], np.float64)
                ranked = (row > row[token]).sum() < CONFIG.k
                out.append((float(row[token] - np.log(np.exp(row).sum())), bool(ranked)))
            return out

        known = [log_p(text) for text in texts]
    heard = [
        Heard(prompt, text, tuple(p + 0.5 * (i + 1) for p, _ in row))
        for i, (text, row) in enumerate(zip(texts, known, strict=True))
    ]
    found = gap(heard, base_gguf, CONFIG, MACHINE)
    within = [ok for row in known for _, ok in row]
    assert found.nats == pytest.approx((3 * 0.5 + 5 * 1.0) / 8, abs=1e-5)
    # sqrt(2/1 * sum (s - r n)^2) / tokens, r = 0.8125: residuals 3 (0.5 - r) and 5 (1 - r).
    assert found.error == pytest.approx((2 * (0.9375**2 + 0.9375**2)) ** 0.5 / 8, abs=1e-5)
    assert (found.texts, found.tokens, found.told) == (2, 8, True)
    assert found.outside == pytest.approx(1 - np.mean(within)) and found.outside > 0


def test_without_the_servers_log_probabilities_texts_of_its_own_show_no_gap(
    make_gguf: Callable[..., Path], base_gguf: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, samples=8)
    found = []
    with Model(base_gguf, vocab_only=True) as model:
        for name, base in (("own", base_gguf), ("other", make_gguf("base", seed=3))):
            sample(PROMPTS, tmp_path / name, base, config, MACHINE)
            texts = [t for t in by_id(tmp_path / name).values() if t.tokens]
            prompts = [model.tokenize(t.rendered, add_special=True, parse_special=True) for t in texts]
            heard = [Heard(tuple(p), tuple(t.tokens)) for p, t in zip(prompts, texts, strict=True)]
            found.append(gap(heard, base_gguf, config, MACHINE))
    own, other = found
    assert abs(own.nats) < 3 * own.error and own.outside == 0
    assert other.nats > 10 * other.error and other.outside > 0.5


PLAN = """
work = "work"
threads = 1
[base]
gguf = "{base}"
[rollouts]
prompts = "prompts.txt"
samples = 3
max_tokens = 10
n_ctx = 128
servers = {{ url = ["{url}"], compare = 4 }}
[reward]
source = "url:{judge}/classify"
[value]
backbone = "{hf}"
loss = "per-token"
epochs = 1
lr = 1e-3
bf16 = false
[export]
out = "value.gguf"
layout = "merged"
[verify]
limit = 4
per_trajectory = 4
"""


def test_texts_of_a_server_and_scores_of_another_end_in_a_verified_gguf(
    tiny_base: Path, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    from sia_convert.make import make

    def judge(path: str, body: Any) -> tuple[Any, ...]:
        response = body["messages"][-1]["content"]
        return 200, {"data": [{"index": 0, "probs": [len(set(response)) + 0.1 * response.count("a")]}]}

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    said: list[str] = []
    with running(tiny_base, None, slots=4) as server, answering(judge) as scores:
        plan = PLAN.format(base=tiny_base, hf=make_hf(), url=server.url, judge=scores)
        (tmp_path / "plan.toml").write_text(plan)
        make(tmp_path / "plan.toml", echo=said.append)
        assert server.metric("llamacpp:tokens_predicted_total") > 100
    report = json.loads((tmp_path / "work/verify.json").read_text())
    assert [row["failures"] for row in report["rows"]] == [[]] and report["rows"][0]["max_abs"] < 1e-3
    assert sum("likelier to the server than to the base GGUF by 0.00" in line for line in said) == 2
    scored = list(read_trajectories([tmp_path / "work/scored.jsonl"]))
    assert len(scored) == 15 and all(t.reward == len(set(t.response)) + 0.1 * t.response.count("a") for t in scored)
