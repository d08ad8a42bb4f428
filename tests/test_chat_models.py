"""Chat sessions on tiny GGUFs: what is encoded, whose ids stay, steering by words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from loading import EXACT, source, traced
from scripted import commands, read

from sia_local import SIA, Setup, SiaConfig
from sia_local.chat.session import Session
from sia_local.llama.context import Context
from sia_local.records import Request
from sia_local.text import Written
from sia_local.values.guides import GuidePair
from sia_local.values.model import ValueModel

LOAD = Setup.of(EXACT, n_ctx=256)


def decoded(sia: SIA) -> tuple[int, int]:
    return sia.engine.decoded_tokens, source(sia, ValueModel).engine.decoded_tokens


def holds(tokens: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(tokens[i : i + len(part)]) == list(part) for i in range(len(tokens)))


def test_a_second_turn_encodes_only_what_is_new_in_both_models(base_gguf: Path, value_gguf: Path) -> None:
    config = SiaConfig(gate="dense")
    with SIA.load(base_gguf, value_gguf, setup=LOAD) as sia:
        session = Session(sia, Request("", config, max_tokens=20, seed=3), "be kind")
        read(session.ask("hello there"))
        engines = (sia.engine, source(sia, ValueModel).engine)
        held = [len(engine.slots[0].tokens) for engine in engines]
        ids = [s.token for s in session.steps]
        past = [engine.slots[0].n_past for engine in engines]
        before = decoded(sia)
        session.request = replace(session.request, max_tokens=1)
        read(session.ask("and then"))
        prompt = sia.prompt(session.messages[:-1]).tokens
        base, value = (after - b for after, b in zip(decoded(sia), before, strict=True))
    # The answer's ids are the ones that were sampled, in both models' prompts.
    start = next(i for i in range(len(prompt)) if list(prompt[i : i + len(ids)]) == ids)
    assert past[0] == held[0] == start + len(ids) - 1
    assert base == len(prompt) - past[0]
    assert value == len(prompt) - past[1] + len(traced(session.steps[0]).ids)


def test_what_a_model_wrote_keeps_its_ids_and_the_text_its_bytes(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=LOAD) as sia:
        word = next(
            text for i in range(sia.model.n_vocab) if len(text := sia.model.piece(i).decode("utf-8", "replace")) > 1
        )
        letters = [i for c in word for i in sia.model.tokenize(c)]

        def chat(content: str) -> tuple[int, ...]:
            turns = [("user", "hi"), ("assistant", content), ("user", "more")]
            return sia.prompt([{"role": r, "content": c} for r, c in turns]).tokens

        plain, exact = chat(word), chat(Written(word, letters))
        assert exact != plain and b"".join(map(sia.model.piece, exact)) == b"".join(map(sia.model.piece, plain))
        assert holds(exact, letters) and not holds(plain, letters)
        # Ids that do not spell the text, as after a stop string, are not used.
        assert chat(Written(word, [*letters, letters[0]])) == plain


def test_a_typed_control_token_is_text_and_ends_no_turn(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=LOAD) as sia:
        word, end = "<|im_end|>", sia.model.eos

        def chat(*contents: str) -> list[int]:
            roles = ("user", "assistant", "user")
            return list(sia.prompt([{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]).tokens)

        literal = sia.model.tokenize(f"a{word}b")
        assert end not in literal and end in sia.model.tokenize(word, parse_special=True)
        assert holds(chat(f"a{word}b"), literal) and chat(f"a{word}b").count(end) == 1
        # Beside an answer with ids of its own, both stand; ordinary text is tokenized with its surroundings.
        letters = [i for c in "ab" for i in sia.model.tokenize(c)]
        mixed = chat(f"a{word}b", Written("ab", letters), "more")
        assert holds(mixed, literal) and holds(mixed, letters) and mixed.count(end) == 3
        rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert chat("hello") == sia.model.tokenize(rendered, parse_special=True)


def test_a_steered_chat_on_tiny_models_is_reproducible(base_gguf: Path, make_gguf: Callable[..., Path]) -> None:
    def run() -> list[str]:
        with SIA.load(base_gguf, make_gguf("lean", seed=1), setup=LOAD) as sia:
            session = Session(sia, Request("", SiaConfig(threshold=0.5, beta=2.0), max_tokens=12, seed=5))
            return [read(session.ask(word)) for word in ("one", "two", "three")]

    assert run() == run()


def test_steering_by_words_and_back(base_gguf: Path, value_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Context] = []
    close = Context.close

    def closing(self: Context) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(Context, "close", closing)
    with SIA.load(base_gguf, value_gguf, setup=LOAD) as sia:
        session = Session(sia, Request("", SiaConfig(beta=1.5), max_tokens=6))
        said = commands(session)
        before = sia.value
        assert said.run('/steer "in very simple words"').text.startswith(
            "steering by: In very simple words.\nsteering on"
        )
        read(session.ask("hello"))
        assert sia.value is not before and session.steps and session.answered.rate == 0.3
        guide = source(sia, GuidePair).plus
        assert guide.model is sia.model and not closed
        said.run("/steer kindly")
        assert guide.engine.context in closed and source(sia, GuidePair).plus.engine.context not in closed
        # Half a unit of reward a spread, as the value file before.
        assert "beta 0.75 spreads" in said.run(f"/use {value_gguf}").text
        said.run("/steer kindly")
        assert "beta 1.5" in said.run("/steer off").text
        assert sia.value is before and session.config == SiaConfig(beta=1.5)
