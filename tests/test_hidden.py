"""A Q-head at work: its values against fresh hidden states, what prompts pay for it, and who may use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import EXACT, source

from sia_local import SIA, BestOf, Setup, SiaConfig, SiaLogitsProcessor, ValuePath
from sia_local.errors import ConfigError, IncompatibleError
from sia_local.llama.context import Context, options_for
from sia_local.llama.embeddings import EmbeddingRows
from sia_local.llama.engine import Engine
from sia_local.llama.ggml import ggml_base
from sia_local.llama.model import Model
from sia_local.values.qhead_file import QHeadFile
from sia_local.values.sources import MixedValues

LOAD = Setup.of(EXACT, n_ctx=256)
DENSE = SiaConfig(gate="dense", k=6, beta=1.5)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def qhead_gguf(make_gguf: Make) -> Path:
    return make_gguf("qhead")


def fresh_values(sia: SIA, file: QHeadFile, prefix: list[int], ids: np.ndarray) -> np.ndarray:
    """Q by encoding the whole prefix afresh in another slot."""
    sia.engine.release(sia.slots - 1)
    *_, rows = sia.engine.trail(sia.slots - 1, [], prefix, hidden=True)
    return file.qhead(rows[-1].copy(), EmbeddingRows.output_of(sia.model.path)[ids])


@pytest.mark.parametrize("beside", [[], ["head"], ["adapter"]])
def test_values_are_those_of_a_fresh_encoding(
    make_gguf: Make, qhead_gguf: Path, beside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over whole texts, several at once, with other values beside it whose decodes come between."""
    file = QHeadFile.read(qhead_gguf)
    values = [ValuePath(qhead_gguf, 1.0, "q"), *(ValuePath(make_gguf(kind), 0.5, kind) for kind in beside)]
    with SIA.load(make_gguf("base"), values, slots=3, setup=LOAD) as sia:
        q = source(sia, MixedValues).sources["q"]
        asked: list[tuple[int, np.ndarray, np.ndarray]] = []
        score = q.score

        def kept(requests: Sequence[tuple[int, np.ndarray]], also: Sequence[int]) -> Sequence[np.ndarray]:
            scored = score(requests, also)
            asked.extend(
                (len(sia.engine.slots[s].tokens), ids, v) for (s, ids), v in zip(requests, scored, strict=True)
            )
            return scored

        monkeypatch.setattr(q, "score", kept)
        prompt = sia.prompt("hello there " * 8)
        steps = list(sia.generate(prompt, DENSE, max_tokens=12, seed=4, trace=True))
        assert len(asked) == 12
        written = list(prompt.tokens)
        for (length, ids, v), step in zip(asked, steps, strict=True):
            assert length == len(written)
            np.testing.assert_allclose(v, fresh_values(sia, file, written, ids), atol=2e-5)
            written.append(step.token)


def test_many_texts_are_what_each_is_alone_and_beta_zero_is_off(make_gguf: Make, qhead_gguf: Path) -> None:
    prompts = [f"text number {i}" for i in range(5)]
    with SIA.load(make_gguf("base"), qhead_gguf, slots=3, setup=LOAD) as sia:
        jobs = [sia.job(p, DENSE, max_tokens=10, seed=i, id=i) for i, p in enumerate(prompts)]
        together = {c.job: c.tokens for c in sia.complete(jobs)}
        for i, prompt in enumerate(prompts):
            text = [s.token for s in sia.generate(prompt, DENSE, max_tokens=10, seed=i) if s.finish != "eog"]
            assert text == together[i]
        off = [s.token for s in sia.generate("a", SiaConfig(gate="off"), max_tokens=20)]
        assert [s.token for s in sia.generate("a", SiaConfig(gate="dense", beta=0.0), max_tokens=20)] == off


def test_a_prompt_computes_one_output_row(make_gguf: Make, qhead_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[int] = []
    everywhere = False
    decode, set_embeddings = Context.decode, Context.set_embeddings

    def switched(self: Context, on: bool) -> None:
        nonlocal everywhere
        everywhere = on
        set_embeddings(self, on)

    def counted(self: Context) -> None:
        n = self.batch.n
        outputs.append(n if everywhere else int(self.batch.output[:n].sum()))
        decode(self)

    monkeypatch.setattr(Context, "set_embeddings", switched)
    monkeypatch.setattr(Context, "decode", counted)
    with SIA.load(make_gguf("base"), qhead_gguf, setup=LOAD) as sia:
        next(sia.generate("many words " * 12, DENSE, max_tokens=3))
        assert sum(outputs) == 1


def test_best_of_reads_the_level_and_says_where_there_is_none(make_gguf: Make, qhead_gguf: Path) -> None:
    with SIA.load(make_gguf("base"), qhead_gguf, slots=3, setup=LOAD) as sia:
        made = BestOf(sia, 3).generate("hello", DENSE, max_tokens=6)
        list(made)
        assert made.result is not None and made.result.by == "value" and len(set(made.result.scores)) > 1
    no_level = make_gguf("qhead", level=False)
    with SIA.load(make_gguf("base"), no_level, slots=2, setup=LOAD) as sia:
        assert BestOf(sia, 2).by == "likelihood"
        with pytest.raises(ConfigError, match="choose texts by likelihood or by a reward"):
            BestOf(sia, 2, "value")
        with pytest.raises(ConfigError, match="choose texts by likelihood or by a reward"):
            sia.value_of(sia.prompt("hello"), [5, 6])


def test_refusals(make_gguf: Make, qhead_gguf: Path, base_gguf: Path) -> None:
    with pytest.raises(IncompatibleError, match="it reads the hidden states of the base's own decode"):
        SiaLogitsProcessor(base_gguf, qhead_gguf)
    with pytest.raises(IncompatibleError, match=r"different vocabularies, .* use a Q-head distilled on this base"):
        SIA.load(base_gguf, make_gguf("qhead", sha256="0" * 64), setup=LOAD)


def test_ctrl_c_within_a_decode_is_raised_behind_it(base_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback of llama.cpp cannot raise; ctypes would print the interrupt, and the decode pass for a broken one."""
    library = ggml_base()

    class Pressed:
        def __init__(self) -> None:
            self.once = [KeyboardInterrupt()]

        def __getattr__(self, name: str) -> Any:
            if self.once:
                raise self.once.pop()
            return getattr(library, name)

    with Model(base_gguf) as model:
        whole: list[list[float]] = []
        for lib in (library, Pressed()):
            monkeypatch.setattr("sia_local.llama.context.ggml_base", lambda lib=lib: lib)
            with Context(model, options_for(model, LOAD, 0), hidden_only=True) as context:
                engine = Engine(context, 1, 0)
                if isinstance(lib, Pressed):
                    with pytest.raises(KeyboardInterrupt):
                        list(engine.trail(0, [], [5, 6, 7], hidden=True))
                    engine.release(0)
                whole.append(
                    np.concatenate([rows.copy() for rows in engine.trail(0, [], [5, 6, 7], hidden=True)]).tolist()
                )
        assert whole[0] == whole[1] and np.shape(whole[0]) == (3, model.n_embd)
