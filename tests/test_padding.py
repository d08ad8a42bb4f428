"""One tokenizer, several numbers of rows: what fits, what a padding id among the candidates counts, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loading import EXACT, source

from models import N_VOCAB
from sia_local import SIA, Guides, Setup, SiaConfig
from sia_local.errors import IncompatibleError
from sia_local.llama.vocabulary import Vocabulary
from sia_local.records import Prompt
from sia_local.values.model import ValueModel

Make = Callable[..., Path]
DENSE = SiaConfig(gate="dense", k=6)
LOAD = Setup.of(EXACT, n_ctx=96)
KINDS = ("merged", "lean", "adapter", "head", "qhead")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("base", "value"), [(0, 12), (12, 0), (12, 64), (64, 12)])
def test_rows_differ_and_they_steer(make_gguf: Make, kind: str, base: int, value: int) -> None:
    with SIA.load(make_gguf("base", padding=base), make_gguf(kind, padding=value), setup=LOAD) as sia:
        steps = list(sia.generate("hello", DENSE, max_tokens=8, seed=3))
        assert steps and any(step.steered for step in steps)


@pytest.mark.parametrize("kind", ["merged", "lean"])
def test_a_padding_id_counts_as_unasked(make_gguf: Make, kind: str) -> None:
    with SIA.load(make_gguf("base", padding=12), make_gguf(kind), setup=LOAD) as sia:
        value = source(sia, ValueModel)
        value.begin(0, Prompt((5, 6, 7)))
        known, padding = np.array([1, 2, 3], np.int32), np.array([N_VOCAB + 4], np.int32)
        expected = value.score([(0, known)])[0]
        values = value.score([(0, np.concatenate([padding, known]))])[0]
        np.testing.assert_allclose(values, [expected.mean(), *expected], atol=1e-4)
        assert value.score([(0, padding)])[0].tolist() == [0.0]
        value.accept(0, int(padding[0]))
        assert np.isfinite(value.score([(0, known)])[0]).all()


def test_guides_of_other_sizes(make_gguf: Make) -> None:
    for base, guide in ((0, 12), (12, 0)):
        spec = Guides(make_gguf("base", seed=4, padding=guide))
        with SIA.load(make_gguf("base", padding=base), spec, setup=LOAD) as sia:
            assert any(step.steered for step in sia.generate("hello", DENSE, max_tokens=8, seed=3))


RENAMED = {N_VOCAB - 3: "<|reserved_1|>"}


@pytest.mark.parametrize("kind", KINDS)
def test_renamed_control_tokens_are_named_and_may_pass(make_gguf: Make, kind: str) -> None:
    base, value = make_gguf("base", renamed=RENAMED), make_gguf(kind)
    with pytest.raises(IncompatibleError, match="--same-vocabulary") as refused:
        SIA.load(base, value, setup=LOAD)
    if kind == "merged":
        assert f"1 control tokens differently ({N_VOCAB - 3} <|endoftext|> for <|reserved_1|>)" in str(refused.value)
    with SIA.load(base, value, same_vocabulary=True, setup=LOAD) as sia:
        assert any(step.steered for step in sia.generate("hello", DENSE, max_tokens=8, seed=3))


def test_other_tokens_are_refused_whatever_is_said(make_gguf: Make) -> None:
    base, value = make_gguf("base", renamed={40: "something"}), make_gguf("merged", padding=12)
    for allowed in (False, True):
        with pytest.raises(IncompatibleError, match=r"different vocabularies \(1 tokens differ\)"):
            SIA.load(base, value, same_vocabulary=allowed, setup=LOAD)


def test_fingerprints_compare_tokens(make_gguf: Make) -> None:
    plain, padded = (Vocabulary.read(make_gguf("base", padding=n)) for n in (0, 12))
    assert plain is not None and padded is not None and plain.unpadded == padded.unpadded == N_VOCAB
    from sia_local.llama.keys import vocab_sha256

    for one in (plain, padded):
        for other in (plain, padded):
            assert one.has_fingerprint(vocab_sha256(other.tokens))
        assert not one.has_fingerprint(vocab_sha256([*plain.tokens, b"more"]))
        assert not one.has_fingerprint(vocab_sha256(plain.tokens[:-1]))
