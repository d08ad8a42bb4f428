"""Tool calls: told apart from text however it comes, demanded by a grammar, and as OpenAI's client sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, Running, running
from tooling import TEMPLATE, TOOLS, tool, written

from sia_local.server.calls import GRANITE, HERMES, LLAMA, MISTRAL, Calls, Form, Piece, find_form

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}, "s": {"type": "string"}}}
KNOWN = {"f": SCHEMA, "g": {}}
F, G = ("call", "f"), ("call", "g")
X, NONE = ("arguments", '{"x": 1}'), ("arguments", "{}")
CASES: list[tuple[Form, str, list[tuple[str, str]]]] = [
    (
        HERMES,
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"s": "a}\\"b"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        [("text", "Let me see."), F, ("arguments", '{"s": "a}\\"b"}'), G, NONE],
    ),
    (
        HERMES,
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n<parameter=s>\n4\nq\n</parameter>\n</function>\n"
        "</tool_call> done",
        [F, ("arguments", '{"x": 1, "s": "4\\nq"}'), ("text", "done")],
    ),
    (HERMES, '<function=f>{"x": 1}</function>', [F, X]),
    (HERMES, '<tool_call>{"arguments": "{\\"x\\": 1}", "name": "f"}</tool_call>', [F, X]),
    (
        HERMES,
        '<tool_call>{"name": "h", "arguments": {}}</tool_call> and <tool_call>{"name":"g","arguments":{}}</tool_call>',
        [("text", '<tool_call>{"name": "h", "arguments": {}}</tool_call> and'), G, NONE],
    ),
    (HERMES, "a < b, <tool or <tool_call>x</tool_call> \n", [("text", "a < b, <tool or <tool_call>x</tool_call> \n")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"x": 1', [F, ("arguments", '{"x": 1')]),
    (HERMES, "plain text \n\n with gaps  ", [("text", "plain text \n\n with gaps  ")]),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "abc"}, {"name":"g","arguments":{}}]',
        [F, X, G, NONE],
    ),
    (MISTRAL, 'hi [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}', [("text", "hi"), F, X, G, NONE]),
    (LLAMA, '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', [F, X, G, NONE]),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "f", "parameters": {"x": 1}}', [F, X]),
    (LLAMA, '{"weather": 3}', [("text", '{"weather": 3}')]),
    (LLAMA, 'So {"name": "f", "parameters": {}} it is', [("text", 'So {"name": "f", "parameters": {}} it is')]),
    (GRANITE, '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]', [F, X]),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 120), max_size=60))
def test_calls_and_text_are_told_apart_however_the_text_comes(
    form: Form, text: str, expected: list[tuple[str, str]], cuts: list[int]
) -> None:
    at = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    splitter = Calls(form, KNOWN)
    found: list[tuple[str, str]] = []
    for start, end in pairwise(at):
        for piece in splitter.push(text[start:end], end == len(text)):
            if found and found[-1][0] == piece.kind != "call":
                found[-1] = (piece.kind, found[-1][1] + piece.text)
            else:
                found.append((piece.kind, piece.text))
    assert found == expected


def test_a_call_shows_before_it_is_whole() -> None:
    splitter = Calls(HERMES, KNOWN)
    assert splitter.push('Yes.\n<tool_call>{"name": "f", "arg') == [Piece("text", "Yes.")]
    (call, part) = splitter.push('uments": {"s": "a b')
    assert (call.text, part.text) == ("f", '{"s": "a b')


@pytest.mark.parametrize(
    ("template", "form"),
    [("{{ '<tool_call>' }}", HERMES), ("[TOOL_CALLS]", MISTRAL), ("role == 'ipython'", LLAMA), ("plain", None)],
)
def test_the_template_says_how_calls_are_written(template: str, form: Form | None) -> None:
    assert find_form(template) == form


@pytest.fixture(scope="module")
def on(make_gguf: Callable[..., Path]) -> Iterator[Running]:
    with running(make_gguf("base", ascii=True, template=TEMPLATE), None, slots=2, n_ctx=512) as server:
        yield server


def test_openais_client_is_told_of_calls(on: Running) -> None:
    text = 'Well.\n<tool_call>\n{"name": "look", "arguments": {"where": "up"}}\n</tool_call>\n<tool_call>\n'
    text += '{"name": "wait", "arguments": {"long": true}}\n</tool_call>'
    ask: Any = {"model": "", "messages": CHAT, "tools": TOOLS, "extra_body": {"grammar": written(text)}}
    choice = on.openai.chat.completions.create(**ask).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Well."
    calls = choice.message.tool_calls or []
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        ("look", {"where": "up"}),
        ("wait", {"long": True}),
    ]
    assert len({call.id for call in calls}) == 2 and all(call.type == "function" for call in calls)
    arguments, names, content, parts = ["", ""], ["", ""], "", 0
    for chunk in on.openai.chat.completions.create(stream=True, **ask):
        content += chunk.choices[0].delta.content or ""
        for call in chunk.choices[0].delta.tool_calls or []:
            names[call.index] += call.function.name or ""
            arguments[call.index] += call.function.arguments or ""
            parts += 1
    assert (names, content) == (["look", "wait"], "Well.")
    assert arguments == [call.function.arguments for call in calls] and parts > 4
    assert chunk.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_call_that_is_required_is_made(on: Running, seed: int) -> None:
    def calls(**fields: Any) -> list[dict[str, Any]]:
        choice = on.chat(tools=TOOLS, max_tokens=160, seed=seed, **fields)["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        made: list[dict[str, Any]] = [call["function"] for call in choice["message"]["tool_calls"]]
        return made

    for call in calls(tool_choice="required", parallel_tool_calls=False):
        ((name, value),) = json.loads(call["arguments"]).items()
        assert (call["name"], name) in (("look", "where"), ("wait", "long")) and value in ("up", "down", True, False)
    named = {"type": "function", "function": {"name": "wait"}}
    (only,) = calls(tool_choice=named)
    assert only["name"] == "wait" and json.loads(only["arguments"])["long"] in (True, False)


def test_a_tool_whose_parameters_have_definitions_of_their_own_is_called(on: Running) -> None:
    """As pydantic writes nested models; two tools may name theirs alike."""

    def defined(name: str, *values: str) -> dict[str, Any]:
        schema = {**tool(name, where={"$ref": "#/$defs/Place"})["function"]["parameters"]}
        schema["$defs"] = {"Place": {"enum": list(values)}}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    tools = [defined("look", "up"), defined("go", "left")]
    for seed in range(3):
        asked = on.chat(tools=tools, max_tokens=160, seed=seed, tool_choice="required", parallel_tool_calls=False)
        (call,) = asked["choices"][0]["message"]["tool_calls"]
        function = call["function"]
        assert (function["name"], json.loads(function["arguments"])["where"]) in (("look", "up"), ("go", "left"))


def test_tools_reach_the_template_and_what_cannot_be_is_refused_by_its_name(on: Running) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"where": "up"}'}}
    talk = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]}]
    talk.append({"role": "tool", "tool_call_id": "c1", "content": "a star"})
    with_tools = on.chat(messages=talk, tools=TOOLS, max_tokens=1)["usage"]["prompt_tokens"]
    assert with_tools > on.chat(messages=talk, tools=TOOLS, tool_choice="none", max_tokens=1)["usage"]["prompt_tokens"]
    rendered = on.http.post("/apply-template", json={"messages": talk, "tools": TOOLS}).json()["prompt"]
    assert '<tool_call>{"name": "look", "arguments": {"where": "up"}}</tool_call>' in rendered and "a star" in rendered

    def refused(**fields: Any) -> str:
        return str(on.refused(400, messages=CHAT, **fields)["param"])

    assert refused(tools=[{"type": "web_search"}]) == "tools[0].type"
    assert refused(tools=[{"type": "function", "function": {"name": "a b"}}]) == "tools.0.function.name"
    assert refused(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "h"}}) == "tool_choice"
    assert refused(tool_choice="required") == "tool_choice"
    assert refused(tools=TOOLS, tool_choice="required", grammar=written("a")) == "tool_choice"
    assert refused(tools=TOOLS, tool_choice="sometimes") == "tool_choice"


def test_a_template_without_tools_writes_text_and_says_so_and_a_demanded_call_is_described(base_gguf: Path) -> None:
    with running(base_gguf, None, slots=1, n_ctx=512) as server:
        read = server.chat(max_tokens=1)["usage"]["prompt_tokens"]
        offered = server.chat(tools=TOOLS, max_tokens=4)
        assert (offered["sia"]["left_out"], offered["usage"]["prompt_tokens"]) == (["tools"], read)
        assert offered["choices"][0]["message"]["content"] and "tool_calls" not in offered["choices"][0]["message"]
        named = {"type": "function", "function": {"name": "wait"}}
        called = server.chat(tools=TOOLS, tool_choice=named, max_tokens=160, return_token_ids=True)
        ((call,),) = (choice["message"]["tool_calls"] for choice in called["choices"])
        assert call["function"]["name"] == "wait" and json.loads(call["function"]["arguments"])["long"] in (True, False)
        prompt = server.http.post("/detokenize", json={"tokens": called["choices"][0]["prompt_token_ids"]}).text
        assert "wait" in prompt and "look" not in prompt and "Tell me of a lost dog." in prompt
