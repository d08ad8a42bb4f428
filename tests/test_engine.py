"""Incremental equals fresh: whatever happened in the KV cache, values and logits are those of the plain prefix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading import EXACT, source

from sia_local import SIA
from sia_local.records import Prompt
from sia_local.values.model import ValueModel

TOLERANCE = 1e-4
PLACEMENTS = ("merged", "lean", "adapter", "head", "merged without output layer", "adapter without output layer")


@contextmanager
def load(make_gguf: Callable[..., Path], kind: str, arch: str = "qwen3", slots: int = 1) -> Iterator[SIA]:
    kind, _, without = kind.partition(" ")
    seed = {"merged": 1, "lean": 1, "adapter": 2, "head": 0, "qhead": 0}[kind]
    base, value = make_gguf("base", arch), make_gguf(kind, arch, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setattr("sia_local.values.model.LARGE_OUTPUT_LAYER", 0)
        with SIA.load(base, value, EXACT, n_ctx=96, slots=slots, max_candidates=4) as sia:
            if without:
                assert source(sia, ValueModel).engine.context.hidden_only
            yield sia


def fresh(sia: SIA, slot: int, tokens: list[int], candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Next logits and candidate values of a prefix, encoded from nothing in an empty slot."""
    sia.engine.release(slot)
    for engine in source(sia).engines:
        engine.release(slot)
    prompt = Prompt(tuple(tokens))
    sia.engine.begin(slot, tokens)
    source(sia).begin(slot, prompt)
    logits = sia.engine.logits([slot])[0].copy()
    return logits, source(sia).score([(slot, candidates)], ())[0].copy()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", PLACEMENTS)
def test_every_placement_and_architecture(make_gguf: Callable[..., Path], kind: str, arch: str) -> None:
    with load(make_gguf, kind, arch) as sia:
        run_history(sia, np.random.default_rng(5), steps=14, slots=1)


@pytest.mark.parametrize("kind", PLACEMENTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), slots=st.integers(1, 3))
def test_random_histories(make_gguf: Callable[..., Path], kind: str, seed: int, slots: int) -> None:
    with load(make_gguf, kind, slots=slots + 1) as sia:
        run_history(sia, np.random.default_rng(seed), steps=10, slots=slots)


def run_history(sia: SIA, rng: np.random.Generator, steps: int, slots: int, atol: float = TOLERANCE) -> float:
    """Junctions, commits, unscored tokens, losers and new prompts at random; then every slot against fresh.
    Returns how far the worst number was off."""
    texts = [rng.integers(0, 200, rng.integers(2, 9)).tolist() for _ in range(slots)]

    def start(slot: int) -> None:
        sia.engine.begin(slot, texts[slot])
        source(sia).begin(slot, Prompt(tuple(texts[slot])))

    for slot in range(slots):
        start(slot)
    live = list(range(slots))
    for _ in range(steps):
        rows = dict(zip(live, [r.copy() for r in sia.engine.logits(live)], strict=True))
        junctions = [s for s in live if rng.random() < 0.5]
        plain = [s for s in live if s not in junctions]
        for slot in plain:
            accept(sia, texts, slot, int(rng.integers(0, 200)))
        if junctions:
            asked = [(s, np.argsort(-rows[s])[: rng.integers(2, 5)].astype(np.int32)) for s in junctions]
            source(sia).score(asked, plain)
            for slot, candidates in asked:
                outside = rng.random() < 0.2
                accept(sia, texts, slot, 7 if outside else int(rng.choice(candidates)))
        if rng.random() < 0.15:
            slot = int(rng.choice(live))
            texts[slot] = [*texts[slot][: rng.integers(1, len(texts[slot]) + 1)], 3, 4]
            start(slot)
    last = [r.copy() for r in sia.engine.logits(live)]
    best = [np.argsort(-row)[:4].astype(np.int32) for row in last]
    values = [v.copy() for v in source(sia).score(list(zip(live, best, strict=True)), ())]
    spare, worst = slots if slots < len(sia.engine.slots) else 0, 0.0
    for slot in live:
        logits, expected = fresh(sia, spare, texts[slot], best[slot])
        np.testing.assert_allclose(last[slot], logits, atol=atol)
        np.testing.assert_allclose(values[slot], expected, atol=atol)
        worst = max(worst, float(abs(last[slot] - logits).max()), float(abs(values[slot] - expected).max()))
    return worst


def accept(sia: SIA, texts: list[list[int]], slot: int, token: int) -> None:
    sia.engine.accept(slot, token)
    source(sia).accept(slot, token)
    texts[slot].append(token)


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
