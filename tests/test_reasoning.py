"""Reasoning and answer told apart, however the text is cut; and the formats found in templates and vocabularies."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sia_local.errors import ConfigError
from sia_local.reasoning import ANSWER, CHANNEL_MARKS, FORMATS, REASONING, UNDECIDED, Format, Splitter, find_format

THINK, HARMONY = FORMATS["think"], FORMATS["harmony"]


def split(splitter: Splitter, parts: Iterable[str]) -> tuple[str, str]:
    out = [splitter.push(part) for part in parts] + [splitter.push("", True)]
    return "".join(one[0] for one in out), "".join(one[1] for one in out)


@pytest.mark.parametrize(
    ("opening", "text", "reasoning", "answer"),
    [
        ("", "<think>\nso, 4\n</think>\n\nIt is 4.\n", "so, 4", "It is 4.\n"),
        ("", "  It is 4. <think>", "", "  It is 4. <think>"),
        ("…assistant\n<think>\n", "so, 4</think>It is 4.", "so, 4", "It is 4."),
        ("…assistant\n<think>\n", "<think>\nso, 4</think>It is 4.", "so, 4", "It is 4."),
        ("<think>\n\n</think>\n\n", "<think>It is 4.", "", "<think>It is 4."),
        ("", "<think>so 3 < 4 </th", "so 3 < 4 </th", ""),
        ("", "<think></think>", "", ""),
        ("", "\n", "", "\n"),
    ],
)
def test_a_pair_of_marks(opening: str, text: str, reasoning: str, answer: str) -> None:
    assert split(THINK.splitter(opening), [text]) == (reasoning, answer)


@pytest.mark.parametrize(
    ("opening", "text", "reasoning", "answer"),
    [
        (
            "<|start|>assistant",
            "<|channel|>analysis<|message|>so, 4<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
            "so, 4",
            "It is 4.",
        ),
        ("<|start|>assistant<|channel|>final<|message|>", "It is 4.<|return|>", "", "It is 4."),
        ("<|start|>assistant", "It is 4.", "", "It is 4."),
        ("<|start|>assistant", "<|message|>It is 4.", "", "It is 4."),
        (
            "<|start|>assistant",
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
            "<|start|>assistant<|channel|>analysis<|message|>b<|channel|>final<|message|>4<",
            "a\n\nb",
            "Wait.\n\n4<",
        ),
        ("<|start|>assistant", " to=functions.add<|channel|>commentary json<|message|>{}<|call|>", "", "{}"),
    ],
)
def test_channels(opening: str, text: str, reasoning: str, answer: str) -> None:
    assert split(HARMONY.splitter(opening), [text]) == (reasoning, answer)


def texts(form: Format) -> st.SearchStrategy[list[str]]:
    pieces = [*form.marks, *(mark[:3] for mark in form.marks), " ", "\n", "a", "<", "analysis", "final", "to="]
    return st.lists(st.sampled_from(pieces), max_size=12)


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(FORMATS.values())), st.sampled_from(["", "open", "close"]))
def test_any_cutting_gives_the_same_split(data: st.DataObject, form: Format, before: str) -> None:
    whole = "".join(data.draw(texts(form)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    opening = {"": "", "open": form.marks[0], "close": form.marks[1]}[before]
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    once = form.splitter(opening).push(whole, True)
    assert split(form.splitter(opening), parts) == once
    assert split(form.splitter(opening), whole) == once


@settings(deadline=None)
@given(st.data())
def test_a_pair_is_what_a_pattern_says(data: st.DataObject) -> None:
    whole = "".join(data.draw(texts(THINK)))
    found = re.fullmatch(r"\s*(?:<think>\s*)+(.*?)\s*(?:</think>\s*(.*)|)", whole, re.DOTALL)
    expected = (found[1], found[2] or "") if found else ("", whole)
    assert THINK.splitter().push(whole, True) == expected


def test_no_mark_hides_in_another() -> None:
    for form in FORMATS.values():
        for one in form.marks:
            assert one and not any(one in other for other in form.marks if other != one)


def test_what_the_next_token_belongs_to() -> None:
    think, seen = THINK.splitter(), []
    for text in ("<thi", "nk>", "a", "</think", ">", "\n", "b"):
        think.push(text)
        seen.append(think.part)
    assert seen == [UNDECIDED, REASONING, REASONING, REASONING, ANSWER, ANSWER, ANSWER]
    channels, seen = HARMONY.splitter("<|start|>assistant"), []
    for text in (
        "<|channel|>",
        "analysis",
        "<|message|>",
        "a",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "f",
    ):
        channels.push(text)
        seen.append(channels.part)
    assert seen == [UNDECIDED] * 2 + [REASONING] * 2 + [UNDECIDED] * 5
    channels.push("inal<|message|>")
    assert channels.part == ANSWER


@pytest.mark.parametrize(
    ("given_name", "template", "tokens", "name"),
    [
        ("auto", "{{ content.split('</think>')[-1] }}", (), "think"),
        ("auto", "{{ '<|start|>assistant<|channel|>final<|message|>' }}", (), "harmony"),
        ("auto", "{{ '<|im_start|>' }}", (), None),
        ("auto", "chatml", ("<think>", "</think>"), "think"),
        ("auto", None, CHANNEL_MARKS, "harmony"),
        ("auto", "{{ '<|channel>thought\n<channel|>' }}", (), "gemma"),
        ("none", "{{ '</think>' }}", (), None),
        ("mistral", "", (), "mistral"),
        ("<a>,</a>", "", (), "own"),
    ],
)
def test_the_format_is_found(given_name: str, template: str | None, tokens: tuple[str, ...], name: str | None) -> None:
    found = find_format(given_name, template, tokens.__contains__)
    assert (found.name if found else None) == name


@pytest.mark.parametrize("name", ["thinks", "<a>,", "<a>,<a>"])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, none, harmony, think"):
        find_format(name, None, lambda _: False)
