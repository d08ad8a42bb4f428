"""A model pair in any placement, and what a prefix of it says when it is encoded afresh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from loading import EXACT, source

from sia_local import SIA, Guides
from sia_local.records import Floats, IntArray, Prompt
from sia_local.values.guides import GuidePair
from sia_local.values.model import ValueModel

Make = Callable[..., Path]
N_CTX, CANDIDATES = 96, 4
PLACEMENTS = ("merged", "lean", "adapter", "head", "merged without output layer", "adapter without output layer")
SEEDS = {"merged": 1, "lean": 1, "adapter": 2, "head": 0, "qhead": 0, "guides": 4, "pair": 4}
# One guide, and one model as both, of which the second reads a token before the text.
PAIRS = {"guides": Guides, "pair": lambda value: Guides(value, value)}


def tolerance(arch: str) -> float:
    # Behind a window llama.cpp itself is 1.4e-3 from float64; a wrong window is off by more than one.
    return 1.5e-3 if arch == "gemma3" else 1e-4


@contextmanager
def load(make_gguf: Make, kind: str, arch: str = "qwen3", slots: int = 1) -> Iterator[SIA]:
    kind, _, without = kind.partition(" ")
    base, value = make_gguf("base", arch), make_gguf("base" if kind in PAIRS else kind, arch, seed=SEEDS[kind])
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setattr("sia_local.values.model.LARGE_OUTPUT_LAYER", 0)
        spec = PAIRS[kind](value) if kind in PAIRS else value
        with SIA.load(base, spec, EXACT, n_ctx=N_CTX, slots=slots, max_candidates=CANDIDATES) as sia:
            if without:
                assert source(sia, ValueModel).engine.context.hidden_only
            if kind == "pair":
                minus = source(sia, GuidePair).minus
                assert minus is not None
                patch.setattr(minus, "tokens", lambda prompt: (9, *prompt.tokens))
            yield sia


def fresh(sia: SIA, slot: int, tokens: Sequence[int], candidates: IntArray) -> tuple[Floats, Floats]:
    """Next logits and candidate values of a prefix, encoded from nothing in an empty slot."""
    begin_fresh(sia, slot, tokens)
    logits = sia.engine.logits([slot])[0].copy()
    return logits, source(sia).score([(slot, candidates)], ())[0].copy()


def fresh_values(sia: SIA, slot: int, tokens: Sequence[int], candidates: IntArray, piece: int | None = None) -> Floats:
    """The values alone; the base reads the prefix only where they come from its reading. piece: see begin_fresh."""
    begin_fresh(sia, slot, tokens, piece)
    if not source(sia).engines:
        sia.engine.logits([slot])
    return source(sia).score([(slot, candidates)], ())[0].copy()


def begin_fresh(sia: SIA, slot: int, tokens: Sequence[int], piece: int | None = None) -> None:
    """The prefix in a slot without a past. piece: how many of its tokens are read before the rest, all if None."""
    engines = [sia.engine, *source(sia).engines]
    for engine in engines:
        engine.release(slot)
    first, rest = tokens[:piece], tokens[len(tokens[:piece]) :]
    sia.engine.begin(slot, first)
    source(sia).begin(slot, Prompt(tuple(first)))
    if piece is None:
        return
    for engine in engines:
        engine.read_ahead(slot)
    for token in rest:
        sia.engine.accept(slot, token)
        source(sia).accept(slot, token)
        if piece == 1:  # token by token
            for engine in engines:
                engine.read_ahead(slot)
