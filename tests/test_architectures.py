"""Incremental equals fresh for every class of memory, in every placement; what branches, retries and samples cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from afresh import PLACEMENTS, fresh, load, tolerance
from architectures import ARCHITECTURES, RECURRENT, WINDOW, WINDOWED
from histories import opened
from loading import EXACT, source
from sia_convert.formats.quantize import quantize_gguf

from sia_local import SIA, Guides, SiaConfig, best_of
from sia_local.llama.context import Context, options_for
from sia_local.llama.engine import Engine
from sia_local.llama.gguf import GgufMetadata
from sia_local.llama.memory import CopyState
from sia_local.llama.model import Model
from sia_local.records import Prompt
from sia_local.values.model import ValueModel
from sia_local.values.sources import Specs

Make = Callable[..., Path]
TOLERANCE = 1e-4
# Behind a window llama.cpp itself is this far from float64; a wrong window is off by more than one.
WINDOW_TOLERANCE = 1.5e-3
DENSE = SiaConfig(gate="dense", k=4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", [*PLACEMENTS[:4], "qhead"])
def test_incremental_equals_fresh(make_gguf: Make, kind: str, arch: str) -> None:
    with opened(make_gguf, arch, kind, slots=3, seed=[6]) as history:
        history.run(40)
        history.check()


# Not the adapter: the last bit of a LoRA's product depends on how many rows a decode has, and where it is in the way of
# the rounding of activations to eight bits, one value in ten thousand moves.
@pytest.mark.parametrize("kind", ["merged", "lean", "head", "qhead"])
def test_incremental_equals_fresh_over_mxfp4_experts(make_gguf: Make, kind: str, tmp_path: Path) -> None:
    def make(kind: str, arch: str, seed: int = 0) -> Path:
        path = make_gguf(kind, arch, seed=seed)
        if kind == "head" or kind == "qhead":
            return path
        made = tmp_path / path.name
        return made if made.exists() else quantize_gguf(path, made, "MXFP4_MOE", n_threads=1)

    with GgufMetadata(make("base", "gpt-oss")) as meta:
        assert meta.tensor_span("blk.0.ffn_up_exps.weight")[0] == gguf.GGMLQuantizationType.MXFP4
    with opened(make, "gpt-oss", kind, slots=3, seed=[6]) as history:
        history.run(30)
        history.check()


@contextmanager
def plain(path: Path, n_seq_max: int = 1) -> Iterator[Context]:
    with Model(path) as model:
        options = replace(options_for(model, EXACT, branches=0), n_seq_max=n_seq_max)
        with Context(model, options) as context:
            yield context


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_beside_hidden_states_are_those_without(make_gguf: Make, arch: str) -> None:
    """And those of a whole text in one decode."""
    tokens = np.random.default_rng(3).integers(0, 200, 40).tolist()
    with plain(make_gguf("base", arch)) as context:
        *_, rows = Engine(context, 1).trail(0, [], tokens)
        expected = rows[-1].copy()
    with load(make_gguf, "qhead", arch) as sia:
        sia.engine.begin(0, tokens[:20])
        for token in tokens[20:]:
            sia.engine.logits([0])
            sia.engine.accept(0, token)
        np.testing.assert_allclose(sia.engine.logits([0])[0], expected, atol=tolerance(arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lean_and_merged_agree(make_gguf: Make, arch: str) -> None:
    """Vectors that are fed in count as the ids they stand for do."""
    values = []
    for kind in ("merged", "lean"):
        with load(make_gguf, kind, arch) as sia:
            source(sia).begin(0, Prompt((5, 6, 7)))
            values.append(source(sia).score([(0, np.array([1, 2, 3, 4], np.int32))], ())[0])
    np.testing.assert_allclose(values[0], values[1], atol=TOLERANCE)


@pytest.mark.parametrize("arch", RECURRENT)
class TestRecurrent:
    def test_a_junction_is_two_decodes_behind_a_queue_and_one_without(self, make_gguf: Make, arch: str) -> None:
        with load(make_gguf, "merged", arch) as sia:
            value, ids = source(sia, ValueModel), np.array([1, 2, 3, 4], np.int32)
            value.begin(0, Prompt((5, 6, 7, 8, 9)))
            value.score([(0, ids)])
            value.accept(0, 2)
            before = value.engine.decodes
            value.score([(0, ids)])
            assert value.engine.decodes == before + 1
            for token in (100, 8, 9):
                value.accept(0, token)
            value.score([(0, ids)])
            assert value.engine.decodes == before + 3

    def test_a_retry_reads_nothing_again_and_a_longer_chat_its_new_turn(self, make_gguf: Make, arch: str) -> None:
        prompt = list(range(30))
        with load(make_gguf, "merged", arch, slots=2) as sia:
            engine = sia.engine
            assert isinstance(engine.memory, CopyState)

            def write(prompt: list[int]) -> tuple[int, np.ndarray]:
                cached = engine.begin(0, prompt)
                first = engine.logits([0])[0].copy()
                for token in (3, 1, 4):
                    engine.accept(0, token)
                    engine.logits([0])
                return cached, first

            assert write(prompt)[0] == 0
            cached, again = write(prompt)
            assert cached == 29
            engine.release(1)
            engine.begin(1, prompt)
            np.testing.assert_allclose(again, engine.logits([1])[0], atol=TOLERANCE)
            longer = [*prompt, 3, 1, 4, 7, 8]
            cached, row = write(longer)
            assert cached == 33
            np.testing.assert_allclose(row, fresh(sia, 1, longer, np.array([1], np.int32))[0], atol=TOLERANCE)

    def test_values_of_a_retry_read_nothing_but_the_last_token_again(self, make_gguf: Make, arch: str) -> None:
        with load(make_gguf, "merged", arch) as sia:
            value, ids = source(sia, ValueModel), np.array([1, 2, 3, 4], np.int32)
            seen = []
            for _ in range(2):
                before = value.engine.decoded_tokens
                value.begin(0, Prompt(tuple(range(30))))
                values = value.score([(0, ids)])[0].copy()
                seen.append((value.engine.decoded_tokens - before, values))
                value.accept(0, 3)
                value.score([(0, ids)])
            assert [tokens for tokens, _ in seen] == [30 + 4, 1 + 4]
            np.testing.assert_allclose(seen[1][1], seen[0][1], atol=TOLERANCE)

    def test_samples_of_one_prompt_read_it_once(self, make_gguf: Make, arch: str) -> None:
        with load(make_gguf, "merged", arch, slots=3) as sia:
            for slot in range(3):
                sia.engine.begin(slot, list(range(30)))
            rows = sia.engine.logits([0, 1, 2])
            np.testing.assert_allclose(rows[0], rows[2], atol=TOLERANCE)
            assert sia.engine.decoded_tokens == 29 + 3
            sia.engine.accept(0, 5)
            sia.engine.logits([0])
            before = sia.engine.decoded_tokens
            assert sia.engine.begin(0, list(range(30))) == 29
            sia.engine.begin(1, [9, 9, 9, 9, 9])
            assert sia.engine.begin(1, list(range(30))) == 29
            sia.engine.logits([0, 1])
            assert sia.engine.decoded_tokens == before + 2

    def test_a_decode_that_fails_or_an_accept_that_is_interrupted_leaves_the_slots_usable(
        self, make_gguf: Make, arch: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = np.array([1, 2, 3], np.int32)

        def interrupt(*_: int) -> None:
            raise KeyboardInterrupt

        for calls in range(7):
            with load(make_gguf, "head", arch, slots=2) as sia:
                sia.engine.begin(0, [5, 6, 7])
                expected = sia.engine.logits([0])[0].copy()
                with monkeypatch.context() as patched:
                    patched.setattr(sia.engine.context, "decode", interrupt)
                    with pytest.raises(KeyboardInterrupt):
                        source(sia).score([(0, ids)], ())
                np.testing.assert_allclose(sia.engine.logits([0])[0], expected, atol=TOLERANCE)
                source(sia).score([(0, ids)], ())
                seq_cp, left = sia.engine.context.seq_cp, [calls]

                def few(*given: int, seq_cp: Callable[..., None] = seq_cp, left: list[int] = left) -> None:
                    if not left[0]:
                        raise KeyboardInterrupt
                    left[0] -= 1
                    seq_cp(*given)

                with monkeypatch.context() as patched:
                    patched.setattr(sia.engine.context, "seq_cp", few)
                    try:
                        sia.engine.accept(0, 2)
                        tokens = [5, 6, 7, 2, 9, 8]
                    except KeyboardInterrupt:
                        tokens = [5, 6, 7, 9, 8]
                sia.engine.begin(0, tokens)
                row, values = sia.engine.logits([0])[0].copy(), source(sia).score([(0, ids)], ())[0].copy()
                logits, scores = fresh(sia, 1, tokens, ids)
                np.testing.assert_allclose(row, logits, atol=TOLERANCE)
                np.testing.assert_allclose(values, scores, atol=TOLERANCE)

    def test_a_trajectory_is_the_values_on_the_way(self, make_gguf: Make, arch: str) -> None:
        tokens = [3, 1, 4, 1, 5]
        with load(make_gguf, "merged", arch) as sia:
            value = source(sia, ValueModel)
            whole = value.trajectory(0, Prompt((5, 6, 7)), tokens)
            assert value.engine.begin(0, [5, 6, 7, *tokens, 9]) == 8
            for n, token in enumerate(tokens):
                value.begin(0, Prompt((5, 6, 7, *tokens[:n])))
                one = value.score([(0, np.array([token], np.int32))])[0]
                np.testing.assert_allclose(one, whole[n : n + 1], atol=TOLERANCE)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["merged", "lean", "adapter", "head", "qhead", "guides"])
def test_texts_of_several_slots_are_those_of_each_alone(make_gguf: Make, arch: str, kind: str) -> None:
    value: Specs = make_gguf(kind, arch, seed=1) if kind != "guides" else Guides(make_gguf("base", arch, seed=4))
    prompts = ["hello", "hello", "hello there", "bye"]

    def texts(slots: int, prompts: list[str]) -> list[list[int]]:
        with SIA.load(make_gguf("base", arch), value, EXACT, n_ctx=96, slots=slots) as sia:
            jobs = [sia.job(p, DENSE, max_tokens=6, seed=9, id=i) for i, p in enumerate(prompts)]
            return [c.tokens for c in sorted(sia.complete(jobs), key=lambda c: c.job)]

    alone = [texts(1, [prompt])[0] for prompt in prompts]
    assert texts(1, prompts) == texts(3, prompts) == alone
    assert alone[0] == alone[1] != alone[2]


@pytest.mark.parametrize("arch", RECURRENT)
def test_best_of_n_on_a_recurrent_base(make_gguf: Make, arch: str) -> None:
    value = make_gguf("merged", arch, seed=1)
    with SIA.load(make_gguf("base", arch), value, EXACT, n_ctx=96, slots=2) as sia:
        result = best_of(sia, "hello", n=5, config=DENSE, max_tokens=6, seed=2)
        for one in result.contenders:
            again = list(sia.generate("hello", DENSE, max_tokens=6, seed=one.seed))
            assert [step.token for step in again] == [step.token for step in one.steps]
            tokens = one.completion.all_tokens
            for slot in (0, 1):
                source(sia, ValueModel).engine.release(slot)
            assert one.score == pytest.approx(sia.value_of(sia.prompt("hello"), tokens), abs=TOLERANCE)


@pytest.mark.parametrize("arch", WINDOWED)
def test_a_window_slides_over_histories_prefixes_branches_and_retries(make_gguf: Make, arch: str) -> None:
    for kind in (*PLACEMENTS[:4], "qhead"):
        with load(make_gguf, kind, arch, slots=3) as sia:
            rng = np.random.default_rng(8)
            prompt = rng.integers(0, 200, 3 * WINDOW).tolist()
            for slot in (0, 1):
                sia.engine.begin(slot, prompt)
                source(sia).begin(slot, Prompt(tuple(prompt)))
            texts = [list(prompt), list(prompt)]
            for _ in range(WINDOW):
                rows = [row.copy() for row in sia.engine.logits([0, 1])]
                ids = [np.argsort(-row)[:4].astype(np.int32) for row in rows]
                values = [v.copy() for v in source(sia).score([(0, ids[0]), (1, ids[1])], ())]
                for slot in (0, 1):
                    token = int(rng.choice(ids[slot])) if rng.random() < 0.7 else 11
                    sia.engine.accept(slot, token)
                    source(sia).accept(slot, token)
                    texts[slot].append(token)
            for slot in (0, 1):
                row, expected = fresh(sia, 2, texts[slot][:-1], ids[slot])
                np.testing.assert_allclose(rows[slot], row, atol=WINDOW_TOLERANCE)
                np.testing.assert_allclose(values[slot], expected, atol=WINDOW_TOLERANCE)
            again = fresh(sia, 2, prompt, ids[0])[0]
            assert sia.engine.begin(0, prompt) == len(prompt) - 1
            np.testing.assert_allclose(sia.engine.logits([0])[0], again, atol=WINDOW_TOLERANCE)


@pytest.mark.parametrize("arch", ["mamba", "lfm2", "qwen35"])
def test_prompts_read_side_by_side_change_nothing(make_gguf: Make, arch: str) -> None:
    texts = []
    for overlap in (False, True):
        value = make_gguf("merged", arch, seed=1)
        with SIA.load(make_gguf("base", arch), value, EXACT, n_threads=2, overlap_prompts=overlap) as sia:
            texts.append([s.token for s in sia.generate("hello there " * 6, DENSE, max_tokens=6, seed=1)])
    assert texts[0] == texts[1]


def test_a_recurrent_base_reads_each_text_anew(make_gguf: Make, value_gguf: Path) -> None:
    mamba = make_gguf("base", "mamba")

    def texts(slots: int, prompts: list[str]) -> list[list[int]]:
        with SIA.load(mamba, value_gguf, n_ctx=96, slots=slots, n_threads=1) as sia:
            jobs = [sia.job(p, SiaConfig(gate="dense"), max_tokens=5, seed=9, id=i) for i, p in enumerate(prompts)]
            return [c.tokens for c in sorted(sia.complete(jobs), key=lambda c: c.job)]

    prompts = ["hello", "hello", "hello there", "bye"]
    alone = [texts(1, [prompt])[0] for prompt in prompts]
    assert texts(1, prompts) == texts(2, prompts) == alone
    assert alone[0] != alone[2]
