"""Requests, generations and the desk: errors at the call, texts read in turns, slots that come back."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
from loading import EXACT

from sia_local import SIA, BestOf, Nudged, Request, SamplingConfig, Setup, SiaConfig
from sia_local.errors import ConfigError, SiaError

DENSE = SiaConfig(gate="dense", k=4)


def test_all_writers_refuse_at_the_call(base_gguf: Path, make_gguf: Callable[..., Path]) -> None:
    small = make_gguf("base", seed=3)
    with SIA.load(base_gguf, slots=2, setup=EXACT) as sia, Nudged.load(base_gguf, small, setup=EXACT) as nudged:
        for writer in (sia, BestOf(sia, 2), nudged):
            with pytest.raises(ConfigError, match="the seed is -1; expected a whole number of 0 or more"):
                writer.generate("hello", seed=-1)
            with pytest.raises(ConfigError, match="max_tokens is 0"):
                writer.generate("hello", max_tokens=0)
            with pytest.raises(ConfigError, match="no field 'max_token'; expected one of prompt, config, max_tokens"):
                writer.generate("hello", max_token=3)
            with pytest.raises(ConfigError, match="the prompt is empty"):
                writer.generate("", raw=True)
            with pytest.raises(ConfigError, match="a stop string is empty"):
                writer.generate("hello", stop="")


def test_one_stop_string_counts_as_one(base_gguf: Path) -> None:
    assert Request("x", stop="\n\n").stop == ("\n\n",)
    assert Request("x", stop=["a", "b"]).stop == ("a", "b")
    with SIA.load(base_gguf, setup=EXACT) as sia:
        whole = "".join(s.text for s in sia.generate("hello", max_tokens=30, seed=1))
        at = next(i for i in range(1, len(whole)) if whole[i] != whole[i - 1] and whole.find(whole[i - 1 : i + 1]) > 0)
        pair = whole[at - 1 : at + 1]
        stopped = sia.generate("hello", max_tokens=30, seed=1, stop=pair)
        assert "".join(s.text for s in stopped) == whole[: whole.find(pair)] == stopped.text
        assert stopped.finish == "stop"
        # The last token that there is room for ends it, too.
        last = sia.generate("hello", max_tokens=stopped.stats.steps, seed=1, stop=pair)
        assert ("".join(s.text for s in last), last.finish) == (stopped.text, "stop")


def test_what_is_closed_says_so(base_gguf: Path, value_gguf: Path) -> None:
    with SIA.load(base_gguf, value_gguf, setup=EXACT) as sia:
        begun = sia.generate("hello", SiaConfig(gate="dense"), max_tokens=9)
        next(begun)
    for later in (lambda: next(begun), lambda: sia.generate("hello"), lambda: sia.prompt("hello")):
        with pytest.raises(SiaError, match="is closed: load it again"):
            later()
    sia.close()


def test_an_endless_window_of_penalties_costs_no_memory(base_gguf: Path) -> None:
    window = SamplingConfig(repeat_penalty=1.5, penalty_last_n=1 << 40)
    with SIA.load(base_gguf, setup=EXACT) as sia:
        texts = [
            "".join(step.text for step in sia.generate("hello", SiaConfig(sampling=sampling), max_tokens=9, seed=1))
            for sampling in (window, *(replace(window, penalty_last_n=n) for n in (200, -1, 0)))
        ]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    with pytest.raises(ConfigError, match="penalty_last_n is -2; expected 0 or more, or -1 for the whole context"):
        SamplingConfig(penalty_last_n=-2)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", ["merged", "head"])
def test_two_texts_read_in_turns_are_both_right(make_gguf: Callable[..., Path], slots: int, kind: str) -> None:
    with SIA.load(make_gguf("base"), make_gguf(kind, seed=0), slots=slots, setup=EXACT) as sia:
        alone = [[s.token for s in sia.generate(p, DENSE, max_tokens=12, seed=3)] for p in ("hello", "a dog")]
        pair = zip_longest(*(sia.generate(p, DENSE, max_tokens=12, seed=3) for p in ("hello", "a dog")))
        assert [[s.token for s in text if s] for text in zip(*pair, strict=True)] == alone


def test_two_threads_are_both_right(base_gguf: Path, value_gguf: Path) -> None:
    with SIA.load(base_gguf, value_gguf, slots=2, setup=EXACT) as sia:
        prompts = [f"text {i}" for i in range(4)]
        alone = [[s.token for s in sia.generate(p, DENSE, max_tokens=20, seed=5)] for p in prompts]
        together: dict[str, list[int]] = {}

        def write(prompt: str) -> None:
            together[prompt] = [s.token for s in sia.generate(prompt, DENSE, max_tokens=20, seed=5)]

        threads = [threading.Thread(target=write, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [together[prompt] for prompt in prompts] == alone


def test_what_is_not_read_on_blocks_nobody(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=EXACT) as sia:
        expected = [s.token for s in sia.generate("b", max_tokens=8, seed=1)]
        kept, dropped, closed = (sia.generate("a", max_tokens=30) for _ in range(3))
        begun = next(kept).token
        for unread in (dropped, closed):
            assert next(unread) is not None
        closed.close()
        del dropped, unread
        assert [s.token for s in sia.generate("b", max_tokens=8, seed=1)] == expected
        assert [begun, *(s.token for s in kept)] == [s.token for s in sia.generate("a", max_tokens=30)]
        assert len(sia.desk.loop.free) == 1 and not sia.desk.loop.live


def test_slots_lent_at_once_come_back_in_any_order(base_gguf: Path) -> None:
    """As two scored prompts of a server do; a text that is dropped afterwards still frees its slot at once."""
    with SIA.load(base_gguf, n_ctx=128, n_threads=1, slots=2) as sia:
        first, second = sia.desk.slot(), sia.desk.slot()
        assert {first.__enter__(), second.__enter__()} == {0, 1}
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        text = iter(sia.write(Request("a cat", max_tokens=9)))
        next(text)
        assert len(sia.desk.loop.free) == 1
        del text
        gc.collect()
        assert len(sia.desk.loop.free) == 2


def test_an_error_of_one_prompt_reaches_its_reader_alone(base_gguf: Path, make_gguf: Callable[..., Path]) -> None:
    wordy = make_gguf("merged", seed=1, template="{{ 'a long preamble ' * 20 }}{{ messages[-1].content }}")
    with SIA.load(base_gguf, wordy, slots=2, setup=EXACT) as sia:
        good = sia.generate("x", SiaConfig(gate="off"), max_tokens=6)
        assert next(good)
        with pytest.raises(SiaError, match=r"the prompt is \d+ tokens for merged|shorten it or raise --ctx"):
            next(sia.generate("x", DENSE, max_tokens=6))
        assert len(list(good)) == 5


def test_a_sia_that_is_dropped_frees_what_it_loaded(base_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sia_local.llama import context, model

    freed: list[str] = []
    for module, name in ((context, "llama_free"), (model, "llama_model_free")):
        real = getattr(module.C, name)

        def free(pointer: object, real: Callable[[object], None] = real, name: str = name) -> None:
            freed.append(name)
            real(pointer)

        monkeypatch.setattr(module.C, name, free)
    sia = SIA.load(base_gguf, setup=EXACT)
    text = sia.generate("hello", max_tokens=5)
    del sia
    gc.collect()
    # Whoever still reads keeps the models.
    assert len(list(text)) == 5 and not freed
    del text
    gc.collect()
    assert freed == ["llama_free", "llama_model_free"]


def test_a_nudge_does_not_claim_a_kl(make_gguf: Callable[..., Path]) -> None:
    base, small = make_gguf("base", ascii=True), make_gguf("base", seed=3, n_vocab=330, ascii=True)
    with Nudged.load(base, small, 0.15, setup=EXACT) as nudged:
        made = nudged.generate("hello", max_tokens=30, seed=1)
        with pytest.raises(SiaError, match="another text is being nudged"):
            nudged.generate("hello")
        steps = list(made)
        assert any(s.steered for s in steps) and all(math.isnan(s.kl) == s.steered for s in steps)
        assert math.isnan(made.stats.kl)


def test_a_set_up_is_checked_and_stated_once(base_gguf: Path) -> None:
    with pytest.raises(ConfigError, match="slots is 0; expected at least 1 sequence"):
        SIA.load(base_gguf, slots=0)
    with pytest.raises(ConfigError, match=r"no field 'n_gpu'; expected one of chat_template, .*n_ctx, slots"):
        SIA.load(base_gguf, n_gpu=3)
    setup = Setup(n_ctx=64, n_threads=1)
    with SIA.load(base_gguf, None, setup, slots=2) as sia, SIA.load(sia.model, None, setup) as other:
        assert (sia.n_ctx, sia.slots, other.slots) == (64, 2, 1)
        greedy = SiaConfig(sampling=SamplingConfig(temperature=0.0))
        texts = [[s.token for s in one.generate("hi", greedy, max_tokens=5)] for one in (sia, other)]
        other.close()
        assert texts[0] == texts[1] == [s.token for s in sia.generate("hi", greedy, max_tokens=5)]
