"""Texts that lost their slot and come back: nothing that was kept is read again, and every number is that of a fresh
encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from afresh import PLACEMENTS, fresh, load, tolerance
from architectures import ARCHITECTURES, RECURRENT, WINDOWED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading import EXACT, source

from sia_local import SIA
from sia_local.llama.store import StateStore
from sia_local.records import Prompt

Make = Callable[..., Path]
EXACT_ONLY = (*RECURRENT, *WINDOWED)


def keep(sia: SIA, limit: int = 1 << 26) -> StateStore:
    store = sia.engine.store = StateStore(limit)
    if sia.value is not None:
        for engine in source(sia).engines:
            engine.store = store
    return store


def begin(sia: SIA, slot: int, tokens: list[int]) -> int:
    cached = sia.engine.begin(slot, tokens)
    source(sia).begin(slot, Prompt(tuple(tokens)))
    return cached


def agrees(sia: SIA, slot: int, oracle: SIA, tokens: list[int], atol: float) -> None:
    """Logits and values of a slot are those of its text alone."""
    row = sia.engine.logits([slot])[0].copy()
    ids = np.argsort(-row)[:4].astype(np.int32)
    values = source(sia).score([(slot, ids)], ())[0].copy()
    expected, expected_values = fresh(oracle, 0, tokens, ids)
    np.testing.assert_allclose(row, expected, atol=atol)
    np.testing.assert_allclose(values, expected_values, atol=atol)


@pytest.mark.parametrize("arch", ["qwen3", *ARCHITECTURES])
@pytest.mark.parametrize("kind", ["merged", "head"])
def test_a_text_that_comes_back_is_read_from_where_it_was(make_gguf: Make, kind: str, arch: str) -> None:
    rng = np.random.default_rng(4)
    first, second = (rng.integers(0, 200, n).tolist() for n in (40, 30))
    atol = tolerance(arch)
    with load(make_gguf, kind, arch, slots=2) as sia, load(make_gguf, kind, arch) as oracle:
        store = keep(sia)
        for text in (first, second):
            assert begin(sia, 0, text) == 0
            agrees(sia, 0, oracle, text, atol)
        engines = (sia.engine, *source(sia).engines)
        before = [engine.decoded_tokens for engine in engines]
        first += [5, 6, 7]
        assert begin(sia, 0, first) == 40
        agrees(sia, 0, oracle, first, atol)
        after = [engine.decoded_tokens for engine in engines]
        assert max(b - a for a, b in zip(before, after, strict=True)) <= 3 + 4
        # The first is in the slot now, the second in the store, of which an edited turn keeps what it can.
        edited = [*second[:25], 8, 9]
        assert begin(sia, 0, edited) == (0 if arch in EXACT_ONLY else 25)
        agrees(sia, 0, oracle, edited, atol)
        # Back to where the state that was taken out begins, and before it.
        first.append(9)
        assert begin(sia, 0, first) == 43
        agrees(sia, 0, oracle, first, atol)
        # Who borrows from it can go back no further than it can.
        assert begin(sia, 1, [*first, 5]) == 44
        agrees(sia, 1, oracle, [*first, 5], atol)
        for slot in (1, 0):
            begin(sia, slot, first[:35])
            agrees(sia, slot, oracle, first[:35], atol)
        assert 0 < store.used <= store.limit


@pytest.mark.parametrize("slots", [1, 4])
def test_a_prompt_rounds_alike_however_it_is_read(make_gguf: Make, slots: int) -> None:
    """Bit for bit, whatever of it is there, was lent, or shares its decodes, in batches that are too short for it."""
    rng = np.random.default_rng(6)
    text = rng.integers(0, 200, 45).tolist()
    with SIA.load(make_gguf("base"), setup=EXACT, slots=slots, n_ctx=96) as sia:
        engine = sia.engine
        keep(sia)
        engine.reads_alike = True
        for slot in range(slots):
            engine.begin(slot, text)
        # As many rows as below: llama.cpp multiplies weights that are not quantized otherwise for a single one.
        expected = engine.logits(range(slots))[0].copy()
        for engine.context.batch.capacity in (32, 43):
            for there in range(len(text)):
                for slot in range(slots):
                    engine.release(slot)
                    engine.begin(slot, [*text[:there], *rng.integers(0, 200, 3).tolist()])
                if rng.integers(2):
                    engine.logits(range(slots))
                at = int(rng.integers(slots))
                for slot in range(slots):
                    engine.begin(at, text) if slot == at else engine.accept(slot, 7)
                while engine.read_piece(at):
                    pass
                row = engine.logits(range(slots))[at]
                np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "mamba2", "lfm2"])
@pytest.mark.parametrize("kind", PLACEMENTS[:4])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), slots=st.integers(1, 2), room=st.sampled_from([4 << 10, 60 << 10, 1 << 26]))
def test_conversations_in_turns(make_gguf: Make, kind: str, arch: str, seed: int, slots: int, room: int) -> None:
    """More conversations than slots, that go on, are cut, or begin like another, in any order; little room, too."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 200, 24).tolist() for _ in range(3)]
    texts.append([*texts[0][:20], 3, 4, 5])
    with load(make_gguf, kind, arch, slots=slots) as sia, load(make_gguf, kind, arch) as oracle:
        store, free = keep(sia, room), list(range(slots))
        for _ in range(7):
            text = texts[rng.integers(len(texts))]
            if rng.random() < 0.3:
                del text[rng.integers(18, len(text)) :]
            text += rng.integers(0, 200, rng.integers(1, 4)).tolist()
            slot = sia.engine.best_slot(free, text)
            free = [*(s for s in free if s != slot), slot]
            begin(sia, slot, text)
            agrees(sia, slot, oracle, text, tolerance(arch))
            for token in rng.integers(0, 200, rng.integers(0, 3)).tolist():
                sia.engine.accept(slot, token)
                source(sia).accept(slot, token)
                text.append(token)
            assert store.used <= room
        agrees(sia, slot, oracle, text, tolerance(arch))


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "mamba2"])
def test_states_beside_beginnings_that_were_lent_and_not_read_yet(make_gguf: Make, arch: str) -> None:
    """llama.cpp makes a copy between streams at the next decode: a state that is written or read before it must be that
    of afterwards."""
    rng = np.random.default_rng(5)
    first, second, third = (rng.integers(0, 200, 40).tolist() for _ in range(3))
    with load(make_gguf, "merged", arch, slots=2) as sia, load(make_gguf, "merged", arch) as oracle:
        keep(sia)
        for text in (first, second):
            begin(sia, 0, text)
            agrees(sia, 0, oracle, text, tolerance(arch))
        # The lender's place is taken by a text that comes back, before the borrower has read anything.
        lent = [*second[:39], 7, 8]
        begin(sia, 1, lent)
        assert begin(sia, 0, [*first, 9]) == 40
        for slot, text in ((1, lent), (0, [*first, 9])):
            agrees(sia, slot, oracle, text, tolerance(arch))
        # A borrower is put aside before it has read anything, and comes back.
        begin(sia, 0, [*lent, 5])
        begin(sia, 0, third)
        agrees(sia, 0, oracle, third, tolerance(arch))
        begin(sia, 1, third)
        begin(sia, 1, [*lent, 6])
        agrees(sia, 1, oracle, [*lent, 6], tolerance(arch))


@pytest.mark.parametrize("arch", RECURRENT)
def test_the_end_of_a_prompt_is_kept_beside_that_of_its_answer(make_gguf: Make, arch: str) -> None:
    rng = np.random.default_rng(7)
    first, second = (rng.integers(0, 200, 40).tolist() for _ in range(2))
    with load(make_gguf, "merged", arch) as sia, load(make_gguf, "merged", arch) as oracle:
        keep(sia)
        begin(sia, 0, first)
        agrees(sia, 0, oracle, first, tolerance(arch))
        for token in (3, 1, 4):
            sia.engine.accept(0, token)
            source(sia).accept(0, token)
        agrees(sia, 0, oracle, [*first, 3, 1, 4], tolerance(arch))
        begin(sia, 0, second)
        agrees(sia, 0, oracle, second, tolerance(arch))
        assert begin(sia, 0, first) == 39
        agrees(sia, 0, oracle, first, tolerance(arch))


class Table:
    """A context and its memory: ten bytes a token, from which one may go back, or may not."""

    def __init__(self, back: bool):
        self.back = back

    def goes_back(self, n: int) -> bool:
        return self.back

    def state_size(self, seq: int) -> int:
        return 10 * seq

    def state(self, seq: int, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)


@pytest.mark.parametrize("back", [True, False])
def test_what_a_store_keeps(back: bool) -> None:
    table: Any = Table(back)
    store = StateStore(100)

    def put(text: str) -> None:
        store.put(table, table, len(text), np.array([*map(ord, text)], np.int32))

    def found(text: str) -> int:
        kept, n = store.find(table, table, np.array([*map(ord, text)], np.int32))
        assert kept is None or len(kept.tokens) >= n
        return n

    put("abc")
    put("xyz")
    assert (found("abcd"), found("ab"), found("xyzabc"), found("b"), store.used) == (3, 2 * back, 3, 0, 60)
    # A longer one makes its beginning superfluous, and a beginning adds nothing, where one can go back.
    put("abcde")
    put("ab")
    assert store.used == (80 if back else 100) and found("abq") == 2
    # The one unused for longest goes; what does not fit at all drives nothing out.
    put("abcde")
    put("xyz")
    put("1234")
    put("12345678901")
    assert [found(text) for text in ("abcde", "xyz", "1234")] == [0, 3, 4]
    kept, n = store.find(table, table, np.array([*map(ord, "xyz")], np.int32))
    assert kept is not None
    store.take(kept, n)
    assert found("xyz") == 0
