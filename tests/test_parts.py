"""Reasoning and answer on tiny models: told apart as tokens come, steered apart, kept apart in a chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loading import EXACT

from sia_local import SIA, Request, Setup, SiaConfig
from sia_local.chat.commands import Commands
from sia_local.chat.session import Notice, Session
from sia_local.cli import main
from sia_local.cli.inspection import inspect_file
from sia_local.cli.terminal import Style, Thoughts
from sia_local.config import SamplingConfig
from sia_local.errors import ConfigError
from sia_local.reasoning import ANSWER, REASONING
from sia_local.text import Written
from sia_local.views.trace import token_text

CONTROL, USER_DEFINED = 3, 4
LOAD = Setup.of(EXACT, n_ctx=256)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if think is defined and not think %}<think>\n\n</think>\n\n{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
    "{# <|channel|> #}"
)
MARKS = {
    "control": dict.fromkeys(("<think>", "</think>"), CONTROL),
    "user-defined": dict.fromkeys(("<think>", "</think>"), USER_DEFINED),
    "text": {},
}
# Without the last two, llama.cpp takes <|end|> for the end of a text.
CHANNELS = dict.fromkeys(("<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"), CONTROL)
THINKS = 'root ::= <think> "\\nso ab " </think> "\\n\\n" "cd ef"'
SPELLED = 'root ::= "<think>\\nso ab </think>\\n\\ncd ef"'
SPEAKS = (
    'root ::= <|channel|> "analysis" <|message|> "so ab" <|end|> <|start|> "assistant" <|channel|> "final" <|message|> '
    '"cd ef"'
)

Make = Callable[..., Path]


def forced(grammar: str, **fields: Any) -> SiaConfig:
    return SiaConfig(sampling=SamplingConfig(grammar=grammar), **fields)


@pytest.mark.parametrize("kind", MARKS)
def test_marks_may_be_control_tokens_tokens_or_text(make_gguf: Make, kind: str) -> None:
    base = make_gguf("base", template=TEMPLATE, marks=MARKS[kind])
    grammar = THINKS if MARKS[kind] else SPELLED
    with SIA.load(base, setup=LOAD) as sia:
        made = sia.generate("hi", forced(grammar))
        steps = list(made)
        assert (made.reasoning, made.text, made.finish) == ("so ab", "cd ef", "eog")
        thought = [s for s in steps if s.part == REASONING]
        assert made.stats.thought == len(thought) > 2
        assert all(not s.text for s in thought) and all(not s.reasoning for s in steps if s.part == ANSWER)
        # Of the plain marks' last token a part may be text, so the tokens need not spell the answer.
        assert kind == "text" or b"".join(map(sia.model.piece, made.answer_tokens)) == b"cd ef"
        told = list(sia.generate("hi", forced(grammar), special=True))
        assert "".join(s.text for s in told).startswith("<think>\nso ab </think>\n\ncd ef")
        assert all(s.part == ANSWER for s in told)
        # A stop string ends the answer, not the thought.
        stopped = sia.generate("hi", forced(grammar), stop=("b", "ef"))
        assert list(stopped)[-1].finish == "stop" and (stopped.reasoning, stopped.text) == ("so ab", "cd ")
        # Plain text is what it is, unless the format was named.
        raw = sia.generate("hi", forced('root ::= "<think>a</think>b"'), raw=True)
        assert list(raw) and (raw.reasoning, raw.text) == ("", "<think>a</think>b")


def test_channels_are_told_apart(make_gguf: Make) -> None:
    with SIA.load(make_gguf("base", template=HARMONY, marks=CHANNELS), setup=LOAD) as sia:
        assert sia.reasoning is not None and sia.reasoning.name == "harmony"
        made = sia.generate("hi", forced(SPEAKS))
        parts = [step.part for step in made]
        assert (made.reasoning, made.text) == ("so ab", "cd ef")
        assert {ANSWER, REASONING, ""} == set(parts) and parts[0] == ""
        assert b"".join(map(sia.model.piece, made.answer_tokens)) == b"cd ef"


@pytest.mark.parametrize("steer", [ANSWER, REASONING])
def test_one_part_is_steered_and_the_other_is_the_bases_own(make_gguf: Make, steer: str) -> None:
    over: dict[str, Any] = {"template": TEMPLATE, "marks": MARKS["control"]}
    grammar = "root ::= <think> [a-z ]{20,30} </think> [a-z ]{20,30}"
    with SIA.load(make_gguf("base", **over), make_gguf("merged", seed=1, **over), LOAD) as sia:
        config = forced(grammar, gate="dense", beta=3.0, steer=steer)
        steps = list(sia.generate("hi", config, max_tokens=60, seed=3))
        assert {s.part for s in steps} == {"", REASONING, ANSWER}
        assert all(s.part == steer for s in steps if s.steered)
        # Where the grammar leaves a choice at all, a dense gate steers.
        assert sum(s.steered for s in steps) > 5


def test_counts_are_of_the_steered_part(make_gguf: Make) -> None:
    over: dict[str, Any] = {"template": TEMPLATE, "marks": MARKS["control"]}
    grammar = 'root ::= <think> "so" </think> [a-z ]{20}'
    with SIA.load(make_gguf("base", **over), make_gguf("merged", seed=1, **over), LOAD) as sia:
        config = forced(grammar, gate="first-n", first_n=3, steer=ANSWER)
        steps = [s for s in sia.generate("hi", config, max_tokens=60, seed=3) if s.part == ANSWER]
        assert [s.steered for s in steps] == [True] * 3 + [False] * (len(steps) - 3)


def test_steering_the_reasoning_needs_marks(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=LOAD) as sia:
        assert sia.reasoning is None
        with pytest.raises(ConfigError, match="nothing says how this model marks it"):
            sia.generate("hi", SiaConfig(steer="reasoning"))
        list(sia.generate("hi", SiaConfig(steer="answer"), max_tokens=2))


def test_a_template_and_what_it_is_told_may_be_given(make_gguf: Make, tmp_path: Path) -> None:
    base = make_gguf("base", marks=MARKS["control"])
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATE)
    setup = Setup.of(LOAD, chat_template=str(own), template_arg=("think=false",))
    with SIA.load(base, setup=setup) as sia:
        prompt = sia.prompt("hi")
        assert prompt.told == {"think": False}
        ids = list(prompt.tokens)
        closed = sia.model.spelled("<think>\n\n</think>\n\n")
        assert ids[-len(closed) :] == closed
        # The template ended the reasoning: what comes is the answer.
        steps = list(sia.generate("hi", forced('root ::= "a"')))
        assert [step.part for step in steps[:1]] == [ANSWER]
        assert sia.prompt("hi", extra={"think": True}).tokens == prompt.tokens[: -len(closed)]
    with SIA.load(base, setup=Setup.of(LOAD, chat_template="chatml")) as sia:
        assert sia.reasoning is not None, "found among the tokens"
        plain = sia.model.tokenize("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
        assert list(sia.prompt("hi").tokens) == plain
    with pytest.raises(ConfigError, match="expected NAME=VALUE, such as enable_thinking=false"):
        Setup(template_arg=("think",))


def test_a_chat_keeps_the_answer_and_hands_the_reasoning_to_the_template(make_gguf: Make) -> None:
    with SIA.load(make_gguf("base", template=TEMPLATE, marks=MARKS["control"]), setup=LOAD) as sia:
        session = Session(sia, Request("", forced(THINKS, gate="off")))
        said = Commands(session, token_text(sia.model))
        assert said.run("/reasoning").text == "the last answer has no reasoning"
        shown = "".join(e.text for e in session.ask("hi") if not isinstance(e, Notice))
        assert shown == "cd ef" and said.run("/reasoning").text == "so ab"
        turn = session.turns[-1]
        assert turn == {"role": "assistant", "content": "cd ef", "reasoning_content": "so ab"}
        assert isinstance(turn["content"], Written)
        session.ask("again")
        ids = sia.prompt([*session.messages, {"role": "user", "content": "again"}]).tokens
        spelled = "".join(sia.model.piece(t).decode() or sia.model.token_text(t) for t in ids)
        assert spelled.count("<think>") == 0 and "assistant\ncd ef<|im_end|>" in spelled
        cut = Session(sia, Request("", forced(THINKS, gate="off"), max_tokens=3))
        notices = [e.text for e in cut.ask("hi") if isinstance(e, Notice)]
        assert notices == ["the answer ended while the model was still reasoning; -n allows more"]


@pytest.mark.parametrize(("options", "said"), [((), ""), (("--show-reasoning",), "so ab\n\n")])
def test_generate_keeps_reasoning_out_of_its_output(
    make_gguf: Make, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    base = make_gguf("base", template=TEMPLATE, marks=MARKS["control"])
    (tmp_path / "thinks.gbnf").write_text(THINKS)
    words = ["generate", "-m", str(base), "-p", "hi", "--ctx", "128", "--threads", "1", "--seed", "1"]
    words += ["--grammar-file", str(tmp_path / "thinks.gbnf"), *options]
    result = CliRunner().invoke(main, words)
    assert result.stdout == "cd ef\n" and ("so ab\n\n" in result.stderr) == bool(said)
    whole = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (whole["text"], whole["reasoning"]) == ("cd ef", "so ab") and whole["stats"]["thought"] > 2
    short = CliRunner().invoke(main, [*words, "-n", "3"])
    assert short.stdout == "" and "while the model was still reasoning; -n allows more" in short.stderr


def test_a_grammar_waits_for_the_answer_where_the_prompt_opened_the_reasoning(make_gguf: Make) -> None:
    opened = TEMPLATE + "{% if think %}<think>\n{% endif %}"
    with SIA.load(make_gguf("base", template=opened, marks=MARKS["control"]), setup=LOAD) as sia:
        prompt = sia.prompt("hi", extra={"think": True})
        close = sia.model.spelled("</think>")[0]
        job = sia.job(prompt, forced('root ::= "cd ef"'), max_tokens=40)
        parts, text = [], ""
        assert job.filter is not None
        for drawn in (*sia.model.tokenize("so ab"), close):
            ids, _ = job.filter.candidates(np.zeros(sia.model.n_vocab, np.float32), sia.model.n_vocab)
            assert len(ids) == sia.model.n_vocab
            parts.append(job.sink.part)
            text += job.sink.push(drawn, False).reasoning
            job.filter.accept(drawn)
        assert set(parts) == {REASONING} and text == "so ab" and job.sink.part == ANSWER
        ids, _ = job.filter.candidates(np.zeros(sia.model.n_vocab, np.float32), sia.model.n_vocab)
        assert {sia.model.piece(int(i))[:1] for i in ids} == {b"c"}


def test_inspect_names_the_format_and_the_window(make_gguf: Make) -> None:
    found = inspect_file(make_gguf("base", template=TEMPLATE))
    assert (found.reasoning, found.window) == ("think", 0)
    found = inspect_file(make_gguf("base", "gemma3"))
    assert (found.reasoning, found.window) == (None, 16)


def test_a_terminal_folds_reasoning() -> None:
    out: list[str] = []
    folded, shown, piped = (
        Thoughts(out.append, Style(on), wanted) for on, wanted in ((True, False), (True, True), (False, False))
    )
    for thoughts in (folded, shown, piped):
        thoughts.put("so")
        thoughts.put("")
        thoughts.end()
        thoughts.end()
        out.append("|")
    line = "\r\x1b[2mreasoning, {} tokens\x1b[0m"
    assert "".join(out) == f"{line.format(1)}{line.format(2)}\r\x1b[K|\x1b[2mso\x1b[0m\n\n||"


def test_a_server_tells_reasoning_apart(make_gguf: Make) -> None:
    pytest.importorskip("fastapi")
    from serving import CHAT, running

    over: dict[str, Any] = {"template": TEMPLATE, "marks": MARKS["control"]}
    with running(make_gguf("base", **over), make_gguf("merged", seed=1, **over), slots=1) as server:
        body = {"grammar": THINKS, "max_tokens": 40, "sia": {"gate": "dense", "steer": "reasoning", "why": True}}
        whole = server.chat(**body)
        (choice,) = whole["choices"]
        assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("cd ef", "so ab")
        thought = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert 2 < thought < whole["usage"]["completion_tokens"]
        assert whole["sia"]["config"]["steer"] == "reasoning"
        marks = choice["sia"]["tokens"]
        said = ["".join(mark.get(kind, "") for mark in marks) for kind in ("reasoning", "text")]
        assert said == ["so ab", "cd ef"]
        with server.openai.chat.completions.create(
            model="x", messages=CHAT, stream=True, extra_body={"grammar": THINKS}
        ) as stream:
            deltas = [chunk.choices[0].delta for chunk in stream]
        assert "".join(delta.content or "" for delta in deltas) == "cd ef"
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "so ab"
        refused = server.refused(400, messages=CHAT, sia={"steer": "none"})
        assert "expected one of all, answer, reasoning" in refused["message"]
