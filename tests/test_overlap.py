"""Prompts read side by side: the same texts, read earlier, on divided cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loading import EXACT, source

from sia_local import SIA, SiaConfig
from sia_local.errors import SiaError
from sia_local.generation.overlap import SideBySide
from sia_local.values.guides import Guides
from sia_local.values.model import ValueModel
from sia_local.values.sources import Specs

PROMPTS = ["the sad king walked to the old river and he found", "a dog ran", "once upon a time there was a young queen"]


def specs(kind: str, make_gguf: Callable[..., Path]) -> Specs:
    if kind == "guides":
        return Guides(make_gguf("base", seed=4), make_gguf("base", seed=5))
    if kind == "mixture":
        return [(make_gguf("merged", seed=1), 0.7), (make_gguf("adapter", seed=2), 0.3)]
    return make_gguf(kind, seed=2 if kind == "adapter" else 1)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", ["merged", "lean", "adapter", "guides", "mixture", "head"])
def test_the_texts_stay_the_same(kind: str, slots: int, base_gguf: Path, make_gguf: Callable[..., Path]) -> None:
    config = SiaConfig(gate="entropy", threshold=1.0, k=4, beta=2.0)
    texts = []
    for overlap in (False, True):
        with SIA.load(
            base_gguf, specs(kind, make_gguf), slots=slots, max_candidates=4, overlap_prompts=overlap, setup=EXACT
        ) as sia:
            jobs = [sia.job(p, config, max_tokens=12, seed=i, id=i) for i, p in enumerate([*PROMPTS, PROMPTS[0]])]
            texts.append([(c.job, c.tokens, c.junctions) for c in sia.complete(jobs)])
    assert texts[0] == texts[1]
    assert any(junctions for _, _, junctions in texts[0])


def test_the_value_model_has_read_the_prompt_before_any_junction(
    base_gguf: Path, make_gguf: Callable[..., Path]
) -> None:
    never = SiaConfig(threshold=99.0)
    read = []
    for overlap in (False, True):
        with SIA.load(base_gguf, make_gguf("merged", seed=1), overlap_prompts=overlap, setup=EXACT) as sia:
            prompt, engine = sia.prompt(PROMPTS[0]), source(sia, ValueModel).engine
            list(sia.generate(prompt, never, max_tokens=4))
            read.append(engine.decoded_tokens)
            list(sia.generate(prompt, SiaConfig(gate="off"), max_tokens=4))
            assert engine.decoded_tokens - read[-1] <= 4  # an unsteered job reads no prompt with it
    assert read == [0, len(prompt.tokens) - 1]


def test_what_fails_beside_is_raised_and_the_cores_come_back(
    base_gguf: Path, make_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SIA.load(base_gguf, make_gguf("merged", seed=1), overlap_prompts=True, setup=EXACT) as sia:
        asked: list[int] = []
        monkeypatch.setattr(sia.engine.context, "set_threads", asked.append)

        def fail() -> None:
            raise SiaError("no")

        with monkeypatch.context() as failing:
            failing.setattr(source(sia, ValueModel).engine.context, "decode", fail)
            with pytest.raises(SiaError, match="no"):
                list(sia.generate(PROMPTS[0], SiaConfig(gate="dense"), max_tokens=4))
        assert asked == [1, 1]
        assert len(list(sia.generate(PROMPTS[0], SiaConfig(gate="dense"), max_tokens=4))) == 4


@pytest.mark.parametrize(
    ("threads", "sizes", "expected"),
    [(8, (600, 600), (4, 4)), (8, (600, 150), (6, 2)), (2, (600, 150), (1, 1)), (2, (600, 600), (1, 1)),
     (1, (600, 150), (1, 1)), (16, (8000, 600), (15, 1)), (12, (600, 300, 300), (6, 6))],
)  # fmt: skip
def test_cores_are_divided_by_the_size_of_the_models(
    threads: int, sizes: tuple[int, ...], expected: tuple[int, int]
) -> None:
    asked: list[list[int]] = [[] for _ in sizes]

    def engine(i: int) -> Any:
        context = SimpleNamespace(
            model=SimpleNamespace(size_bytes=sizes[i]),
            options=SimpleNamespace(n_threads=threads),
            set_threads=asked[i].append,
        )
        return SimpleNamespace(
            context=context,
            begin=lambda *_: 0,
            logits=lambda _: ["row"],
            behind=lambda slot: False,
            read_ahead=lambda _: None,
        )

    base, *others = (engine(i) for i in range(len(sizes)))
    both = SideBySide(base, others)
    both.begin(0, [1, 2, 3])
    assert both.logits([0]) == ["row"] and both.logits([0]) == ["row"]
    assert asked == [[expected[0], threads], *([expected[1], threads] for _ in others)]
