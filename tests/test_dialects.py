"""/v1/responses and /v1/messages: checked by the types of OpenAI's and Anthropic's own clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import TypeAdapter
from serving import Running, running
from tooling import TEMPLATE, TOOLS, written

CALL = 'Well.\n<tool_call>\n{"name": "look", "arguments": {"where": "up"}}\n</tool_call>'
THOUGHT = "<think>\nSo.\n</think>\n\nYes."
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
USES: Any = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in TOOLS]
QUESTION: Any = [{"role": "user", "content": "Where?"}]


@pytest.fixture(scope="module")
def on(make_gguf: Callable[..., Path]) -> Iterator[Running]:
    base = make_gguf("base", ascii=True, template=TEMPLATE + "{# <think></think> #}")
    with running(base, None, slots=2, n_ctx=512) as server:
        yield server


@pytest.fixture(scope="module")
def claude(on: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=on.url, api_key="none", max_retries=0)


def grammar(text: str) -> dict[str, Any]:
    return {"grammar": written(text), "seed": 1}


def test_responses_whole_and_streamed_are_the_same(on: Running) -> None:
    create: Any = on.openai.responses.create
    ask = {"model": "", "input": "Where?", "max_output_tokens": 120, "tools": FLAT, "instructions": "Be brief."}
    for text, kinds in ((CALL, ["message", "function_call"]), (THOUGHT, ["reasoning", "message"])):
        whole = create(**ask, extra_body=grammar(text))
        TypeAdapter(Response).validate_python(whole.model_dump())
        assert whole.status == "completed" and [item.type for item in whole.output] == kinds
        events = list(create(**ask, stream=True, extra_body=grammar(text)))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert (events[0].type, events[1].type, last.type) == (
            "response.created",
            "response.in_progress",
            "response.completed",
        )
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.model_dump(exclude={"id", "call_id"}) for item in done] == [
            item.model_dump(exclude={"id", "call_id"}) for item in whole.output
        ]
        assert last.response.output == done and last.response.usage.output_tokens == whole.usage.output_tokens
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert said == whole.output_text == ("Well." if text == CALL else "Yes.")
        if text == CALL:
            written_out = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
            assert isinstance(done[1], ResponseFunctionToolCall)
            assert json.loads(written_out) == json.loads(done[1].arguments) == {"where": "up"}
        else:
            thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
            assert thought == whole.output[0].content[0].text == "So."


def test_a_conversation_of_items_goes_on(on: Running) -> None:
    create: Any = on.openai.responses.create
    first = create(model="", input=QUESTION, tools=FLAT, extra_body=grammar(CALL))
    call = first.output[1]
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "a star"}
    items = [*QUESTION, *(item.model_dump(exclude_none=True, exclude={"status"}) for item in first.output), answer]
    then = create(model="", input=items, tools=FLAT, max_output_tokens=3)
    assert then.status == "incomplete" and then.incomplete_details.reason == "max_output_tokens"
    assert then.usage.input_tokens > first.usage.input_tokens
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"format": {"type": "json_schema", "name": "it", "schema": schema}}
    assert json.loads(create(model="", input="Is it?", text=form).output_text)["ok"] in (True, False)
    must = create(model="", input="Go.", tools=FLAT, tool_choice={"type": "function", "name": "wait"})
    assert must.output[0].name == "wait"
    told = create(model="", input="Go.", max_output_tokens=2, include=["message.output_text.logprobs"], top_logprobs=2)
    assert len(told.output[0].content[0].logprobs) == 2 and len(told.output[0].content[0].logprobs[0].top_logprobs) == 2


def test_messages_whole_and_streamed_are_the_same(claude: anthropic.Anthropic) -> None:
    create: Any = claude.messages.create
    ask: Any = {"model": "m", "max_tokens": 120, "messages": QUESTION, "tools": USES, "system": "Be brief."}
    for text, kinds, why in (
        (CALL, ["text", "tool_use"], "tool_use"),
        (THOUGHT, ["thinking", "text"], "end_turn"),
    ):
        whole = create(**ask, extra_body=grammar(text))
        TypeAdapter(anthropic.types.Message).validate_python(whole.model_dump())
        assert ([block.type for block in whole.content], whole.stop_reason) == (kinds, why)
        with claude.messages.stream(**ask, extra_body=grammar(text)) as stream:
            kinds_seen = [event.type for event in stream if event.type.startswith(("message", "content"))]
            final = stream.get_final_message()
        assert (kinds_seen[0], kinds_seen[-1]) == ("message_start", "message_stop")
        assert kinds_seen.count("content_block_start") == kinds_seen.count("content_block_stop") == 2
        assert [block.model_dump(exclude={"id"}) for block in final.content] == [
            block.model_dump(exclude={"id"}) for block in whole.content
        ]
        assert (final.stop_reason, final.usage.output_tokens) == (why, whole.usage.output_tokens)
    assert whole.content[0].thinking == "So."


def test_blocks_of_a_conversation_and_limits(claude: anthropic.Anthropic) -> None:
    create: Any = claude.messages.create
    first = create(model="m", max_tokens=120, messages=QUESTION, tools=USES, extra_body=grammar(CALL))
    use = first.content[1]
    assert use.input == {"where": "up"}
    shape: Any = {"format": {"type": "json_schema", "schema": {"enum": ["ab", "cd"]}}}
    shaped = create(model="m", max_tokens=9, messages=QUESTION, extra_body={"output_config": shape})
    assert shaped.content[0].text in ('"ab"', '"cd"')
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "a star"}]}
    talk = [
        *QUESTION,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    then = create(model="m", max_tokens=2, messages=talk, tools=USES)
    assert then.stop_reason == "max_tokens"
    read = then.usage.input_tokens + then.usage.cache_read_input_tokens
    assert claude.messages.count_tokens(model="m", messages=talk, tools=USES).input_tokens == read
    stopped = create(model="m", max_tokens=20, messages=QUESTION, stop_sequences=["b"], extra_body=grammar("abc"))
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "b", "a")
    assert create(model="m", max_tokens=99, messages=QUESTION, tools=USES, tool_choice={"type": "any"}).stop_reason in (
        "tool_use",
        "max_tokens",
    )


def test_what_is_refused_is_named_in_the_form_of_each(on: Running, claude: anthropic.Anthropic) -> None:
    def refused(path: str, **body: Any) -> dict[str, Any]:
        return dict(on.refused(400, path, **body))

    for fields, name in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "content": ["x"]}]}, "input[0].content"),
        ({"text": {"format": "json"}}, "text.format"),
    ):
        assert refused("/v1/responses", **{"input": "a", **fields})["param"] == name
    image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
    error = refused("/v1/messages", max_tokens=1, messages=[{"role": "user", "content": [image]}])
    assert error["type"] == "invalid_request_error" and "messages[0].content[0].type" in error["message"]
    assert "max_tokens" in refused("/v1/messages", messages=QUESTION)["message"]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": ["x"]}]}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"messages": [result]}, "messages[0].content[0] is not text"),
        ({"messages": QUESTION, "output_config": {"format": {"type": "grammar"}}}, "output_config.format is no JSON"),
    ]
    for body, said in wrong:
        assert said in refused("/v1/messages", max_tokens=1, **body)["message"]
    with pytest.raises(anthropic.BadRequestError, match="betta"):
        claude.messages.create(model="m", max_tokens=1, messages=QUESTION, extra_body={"sia": {"betta": 1}})
    with pytest.raises(openai.BadRequestError, match="context holds"):
        on.openai.responses.create(model="", input="word " * 400)
