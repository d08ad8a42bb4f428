"""Incremental equals fresh: whatever happened in the KV cache, values and logits are those of the plain prefix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from afresh import PLACEMENTS, fresh, load
from histories import opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading import source

from sia_local.records import Prompt
from sia_local.values.model import ValueModel

TOLERANCE = 1e-4


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", [*PLACEMENTS, "qhead", "guides"])
def test_every_placement_and_architecture(make_gguf: Callable[..., Path], kind: str, arch: str) -> None:
    with opened(make_gguf, arch, kind, slots=1, seed=[5]) as history:
        history.run(40)
        history.check()


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", [*PLACEMENTS, "qhead", "guides", "pair"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_random_histories(make_gguf: Callable[..., Path], kind: str, slots: int, seed: int) -> None:
    with opened(make_gguf, "qwen3", kind, slots, [seed]) as history:
        history.run(40)
        history.check()


@pytest.mark.parametrize("arch", ["qwen3", "lfm2"])
@pytest.mark.parametrize("calls", range(9))
def test_an_interrupt_anywhere_in_a_change_of_a_slot_leaves_it_usable(
    make_gguf: Callable[..., Path], arch: str, calls: int
) -> None:
    """Trimmed, shared and released, with Ctrl-C before and after the n-th thing asked of llama.cpp."""
    texts = [list(range(5, 25)), [*range(5, 20), 9, 9]]
    with opened(make_gguf, arch, "head", slots=2, seed=[1]) as history:
        engine = history.sia.engine
        changes: list[Callable[[], object]] = [
            lambda: engine.begin(0, texts[0][:8]),
            lambda: engine.begin(0, texts[1]),
            lambda: engine.release(0),
            lambda: list(engine.trail(0, [], [1, 2, 3])),
        ]
        for change, history.fuse.after in product(changes, (False, True)):
            for slot in (0, 1):
                engine.release(slot)
                engine.begin(slot, texts[slot])
            engine.logits([0, 1])
            history.fuse.left = calls
            with contextlib.suppress(KeyboardInterrupt):
                change()
            history.fuse.left = None
            engine.begin(0, texts[0])
            rows = [row.copy() for row in engine.logits([0, 1])]
            for row, text in zip(rows, texts, strict=True):
                np.testing.assert_allclose(row, fresh(history.mirror, 0, text, np.array([1]))[0], atol=TOLERANCE)


def test_a_long_queue_is_flushed_in_full_batches(make_gguf: Callable[..., Path]) -> None:
    with load(make_gguf, "lean", slots=2) as sia:
        value = source(sia, ValueModel)
        value.engine.context.batch.capacity = 16
        tokens = np.random.default_rng(1).integers(0, 200, 60).tolist()
        sia.engine.begin(0, tokens[:5])
        value.begin(0, Prompt(tuple(tokens[:5])))
        for token in tokens[5:]:
            value.accept(0, token)
        candidates = np.array([1, 2, 3, 4], np.int32)
        incremental = value.score([(0, candidates)])[0].copy()
        value.engine.context.batch.capacity = 512
        np.testing.assert_allclose(incremental, fresh(sia, 1, tokens, candidates)[1], atol=TOLERANCE)


def test_lean_and_merged_agree(make_gguf: Callable[..., Path]) -> None:
    values = []
    for kind in ("merged", "lean", "merged without output layer"):
        with load(make_gguf, kind) as sia:
            source(sia).begin(0, Prompt((5, 6, 7)))
            values.append(source(sia).score([(0, np.array([1, 2, 3, 4], np.int32))], ())[0])
    np.testing.assert_allclose(values[0], values[1], atol=TOLERANCE)
    assert np.array_equal(values[0], values[2])


def test_a_junction_costs_one_decode_and_the_head_placement_keeps_the_winners_logits(
    make_gguf: Callable[..., Path],
) -> None:
    with load(make_gguf, "head") as sia:
        sia.engine.begin(0, [5, 6, 7])
        best = np.argsort(-sia.engine.logits([0])[0])[:4].astype(np.int32)
        before = sia.engine.decodes
        source(sia).score([(0, best)], ())
        sia.engine.accept(0, int(best[2]))
        sia.engine.logits([0])
        assert sia.engine.decodes == before + 1


@pytest.mark.parametrize("arch", ["qwen3", "lfm2"])
def test_reading_the_last_token_again_forgets_the_candidates_behind_it(
    make_gguf: Callable[..., Path], arch: str
) -> None:
    candidates = np.array([7, 8, 9], np.int32)
    with load(make_gguf, "head", arch) as sia, load(make_gguf, "head", arch) as mirror:
        sia.engine.begin(0, [5, 6, 7, 3])
        source(sia).begin(0, Prompt((5, 6, 7, 3)))
        source(sia).score([(0, candidates)], ())
        sia.engine.logits([0])
        sia.engine.accept(0, 8)  # no candidate any more
        sia.engine.accept(0, 4)
        text = [5, 6, 7, 3, 8, 4]
        np.testing.assert_allclose(sia.engine.logits([0])[0], fresh(mirror, 0, text, candidates)[0], atol=TOLERANCE)


def test_a_longer_prompt_reencodes_only_its_new_part(make_gguf: Callable[..., Path]) -> None:
    with load(make_gguf, "merged") as sia:
        sia.engine.begin(0, list(range(20)))
        sia.engine.logits([0])
        before = sia.engine.decoded_tokens
        assert sia.engine.begin(0, list(range(25))) == 20
        sia.engine.logits([0])
        assert sia.engine.decoded_tokens == before + 5


def test_samples_of_one_prompt_encode_it_once(make_gguf: Callable[..., Path]) -> None:
    with load(make_gguf, "merged", slots=3) as sia:
        for slot in range(3):
            sia.engine.begin(slot, list(range(30)))
        rows = sia.engine.logits([0, 1, 2])
        np.testing.assert_allclose(rows[0], rows[2], atol=TOLERANCE)
        assert sia.engine.decoded_tokens == 29 + 3


@pytest.mark.parametrize("shared", [1, 3, 4, 5, 8])
def test_a_prefix_shared_with_a_slot_that_has_not_read_it_is_read(make_gguf: Callable[..., Path], shared: int) -> None:
    texts = [[*range(40, 40 + shared), *range(100 + 10 * i, 106 + 10 * i)] for i in range(3)]
    with load(make_gguf, "merged", slots=3) as sia:
        for slot, text in enumerate(texts):
            sia.engine.begin(slot, text)
        together = [row.copy() for row in sia.engine.logits([0, 1, 2])]
    with load(make_gguf, "merged") as sia:
        for row, text in zip(together, texts, strict=True):
            sia.engine.release(0)
            sia.engine.begin(0, text)
            np.testing.assert_allclose(row, sia.engine.logits([0])[0], atol=TOLERANCE)


def test_a_decode_that_fails_leaves_every_slot_usable(
    make_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(make_gguf, "head", slots=2) as sia:
        sia.engine.begin(0, [5, 6, 7])
        expected = sia.engine.logits([0])[0].copy()
        candidates = np.array([1, 2, 3], np.int32)
        with monkeypatch.context() as patched:
            patched.setattr(sia.engine.context, "decode", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                source(sia).score([(0, candidates)], ())
        np.testing.assert_allclose(sia.engine.logits([0])[0], expected, atol=TOLERANCE)
        values = source(sia).score([(0, candidates)], ())[0].copy()
        np.testing.assert_allclose(values, fresh(sia, 1, [5, 6, 7], candidates)[1], atol=TOLERANCE)


@pytest.mark.parametrize("calls", range(5))
def test_an_accept_that_is_interrupted_leaves_the_slot_usable(
    make_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    with load(make_gguf, "head", slots=2) as sia:
        sia.engine.begin(0, [5, 6, 7])
        source(sia).score([(0, np.array([1, 2, 3], np.int32))], ())
        seq_cp, made = sia.engine.context.seq_cp, 0

        def interrupted(source: int, target: int, start: int, stop: int) -> None:
            nonlocal made
            if made == calls:
                raise KeyboardInterrupt
            made += 1
            seq_cp(source, target, start, stop)

        with monkeypatch.context() as patched:
            patched.setattr(sia.engine.context, "seq_cp", interrupted)
            with contextlib.suppress(KeyboardInterrupt):
                sia.engine.accept(0, 2)
        sia.engine.begin(0, [5, 6, 7, 9, 8])
        expected, _ = fresh(sia, 1, [5, 6, 7, 9, 8], np.array([1, 2], np.int32))
        np.testing.assert_allclose(sia.engine.logits([0])[0], expected, atol=TOLERANCE)
