"""Chat templates render as llama-cpp-python renders them, under bounds that no template can leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import ChatCompletionRequestMessage
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from sia_local.errors import ConfigError
from sia_local.llama.chat import render_chat
from sia_local.llama.templates import TemplateError, Worker, builtin_names, find_template

CHAT = [{"role": "system", "content": "Be brief. é \udc80"}, {"role": "user", "content": "Hi <b>"}]
TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n{%- if m.role == 'system' %}({{ m.content }}){% continue %}{% endif %}\n"
    "    {% set x = m.content | trim %}\n<{{ m['role'] }}>{{ x }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m | tojson(indent=2) }}"
    "{% endfor %}{{ ns.n }}{% generation %}{{ tools }}{% if tools is not none %}!{% endif %}{% endgeneration %}",
    "{{ tools | tojson }}{{ thinking is defined }}{% if thinking %}think{% endif %}",
]
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10 ** (10 ** 9) }}",
    # A list of itself twice, sixty times over: small to hold, endless to write.
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
]
BOUNDED = {
    "{{ 'a' * 10 ** 10 }}": "needs more than 256 MiB",
    "{{ 'a' * 1001 }}": "writes more than 1000 characters",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "calls itself without end",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ raise_exception('no system turn') }}": "no system turn",
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(60.0, 1000, 256 << 20)
    yield made
    made.close()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("opens", [True, False])
def test_a_template_renders_as_llama_cpp_python_renders_it(template: str, opens: bool) -> None:
    extra: dict[str, Any] = {"thinking": True, "tools": [{"name": "add <é>"}]}
    messages: list[ChatCompletionRequestMessage] = [
        {"role": "system", "content": CHAT[0]["content"]},
        {"role": "user", "content": CHAT[1]["content"]},
    ]
    theirs = Jinja2ChatFormatter(template, "</s>", "<s>", add_generation_prompt=opens)(messages=messages, **extra)
    assert render_chat(template, CHAT, "<s>", "</s>", {**extra, "add_generation_prompt": opens}) == theirs.prompt


@pytest.mark.parametrize("over", ["{{ raise_exception('System role not supported') }}", "{% continue %}"])
def test_a_system_turn_without_a_place_begins_the_users(over: str) -> None:
    turns = "{% for m in messages %}{% if m.role == 'system' %}OVER{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template = turns.replace("OVER", over)
    assert render_chat(template, CHAT[:1] + CHAT[1:] * 2) == "<user>Be brief. é \udc80\nHi <b><user>Hi <b>"
    assert render_chat(turns.replace("OVER", ""), CHAT) == "<system>Be brief. é \udc80<user>Hi <b>"
    with pytest.raises(ConfigError, match="cannot render this conversation"):
        render_chat("{{ raise_exception('never') }}", CHAT)


@pytest.mark.parametrize("template", BOUNDED)
def test_a_template_is_bounded(worker: Worker, template: str) -> None:
    with pytest.raises(TemplateError, match=BOUNDED[template]):
        worker.render(template, "", "", True, {})


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_without_end_is_ended_and_harms_no_other(worker: Worker, template: str) -> None:
    assert worker.render("{{ x }}", "", "", True, {"x": "é"}) == "é"
    worker.seconds = 0.1
    with pytest.raises(TemplateError, match=r"does not end within 0\.1 s"):
        worker.render(template, "", "", True, {})
    worker.seconds = 60.0
    with pytest.raises(TypeError):
        worker.render("{{ x }}", "", "", True, {"x": object()})
    assert worker.render("{{ x }}", "", "", True, {"x": "é"}) == "é"


def test_a_process_that_ends_or_cannot_be_started_is_said(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.seconds = 60.0
    worker.start()
    assert worker._process is not None
    monkeypatch.setattr(worker, "_running", lambda process=worker._process: process)
    worker._process.kill()
    with pytest.raises(TemplateError, match="the process that rendered it was ended"):
        worker.render("a", "", "", True, {})
    monkeypatch.undo()
    monkeypatch.setattr("sys.executable", "/no/python")
    with pytest.raises(TemplateError, match="no process can be started to render it"):
        worker.render("a", "", "", True, {})
    monkeypatch.undo()
    assert worker.render("a", "", "", True, {}) == "a"


def test_a_template_of_llama_cpp_by_its_name(tmp_path: Path) -> None:
    assert "chatml" in builtin_names()
    assert (
        render_chat(find_template("chatml"), CHAT[1:]) == "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(ConfigError, match="is told nothing; enable_thinking is"):
        render_chat("chatml", CHAT[1:], extra={"enable_thinking": False})
    with pytest.raises(ConfigError, match=r"'chatmi' is no file and no template of llama.cpp; expected .* chatml, "):
        find_template("chatmi")
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    assert render_chat(find_template(str(tmp_path / "own.jinja")), CHAT[1:]) == "Hi <b>"


@pytest.mark.parametrize(
    ("template", "shown"),
    [("{{ messages[0].thinking }}", "hm"), ("{{ messages[0].thinking }}{{ messages[0].reasoning_content }}", "hm")],
)
def test_reasoning_has_the_name_that_the_template_knows(template: str, shown: str) -> None:
    assert render_chat(template, [{"role": "assistant", "content": "", "reasoning_content": "hm"}]) == shown
