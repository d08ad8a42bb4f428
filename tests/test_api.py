"""SIA on tiny GGUFs: llama.cpp as its own oracle, and every refusal with its sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import EXACT, source

from sia_local import SIA, SamplingConfig, SiaConfig
from sia_local.errors import ConfigError, ContextFullError, IncompatibleError, ModelFileError, NumericError
from sia_local.generation.filters import LogitFilter
from sia_local.llama.model import Model
from sia_local.llama.samplers import SamplerChain
from sia_local.steering.entropy import top_candidates
from sia_local.values.model import ValueModel


def tokens(sia: SIA, config: SiaConfig | None = None, **options: Any) -> list[int]:
    options = {"max_tokens": 30, "seed": 7, **options}
    return [s.token for s in sia.generate("hello there", config, **options)]


@pytest.mark.parametrize("kind", ["merged", "lean", "adapter", "head"])
def test_beta_zero_threshold_99_and_off_are_one_text(make_gguf: Callable[..., Path], kind: str) -> None:
    seed = 0 if kind == "head" else 1
    with SIA.load(make_gguf("base"), make_gguf(kind, seed=seed), setup=EXACT) as sia:
        off = tokens(sia, SiaConfig(gate="off"))
        for config, junctions in ((SiaConfig(threshold=99.0), 0), (SiaConfig(gate="dense", beta=0.0), len(off))):
            made = sia.generate("hello there", config, max_tokens=30, seed=7)
            assert [s.token for s in made] == off and made.stats.junctions == junctions
        assert tokens(sia, SiaConfig(gate="dense", beta=2.0)) != off


def test_greedy_equals_llama_cpp_pythons_own_generation(base_gguf: Path) -> None:
    from llama_cpp import Llama

    with SIA.load(base_gguf, setup=EXACT) as sia:
        prompt = sia.prompt("hello there", raw=True)
        steps = sia.generate(prompt, SiaConfig(sampling=SamplingConfig(temperature=0.0)), max_tokens=20)
        ours = [s.token for s in steps]
    llama = Llama(str(base_gguf), n_ctx=128, n_threads=1, verbose=False)
    theirs = []
    for token in llama.generate(list(prompt.tokens), temp=0.0, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == len(ours):
            break
    llama.close()
    assert ours == theirs


def test_a_seed_reproduces_the_text_byte_for_byte(base_gguf: Path, value_gguf: Path) -> None:
    def run() -> str:
        with SIA.load(base_gguf, value_gguf, setup=EXACT) as sia:
            return "".join(s.text for s in sia.generate("hello", SiaConfig(threshold=0.5), max_tokens=40, seed=3))

    assert run() == run()


def test_parallel_sequences_give_the_texts_they_give_alone(base_gguf: Path, value_gguf: Path) -> None:
    config = SiaConfig(threshold=1.5, beta=2.0)
    with SIA.load(base_gguf, value_gguf, slots=3, setup=EXACT) as sia:
        jobs = [sia.job(f"story {i}", config, max_tokens=12 + i, seed=i, id=i) for i in range(5)]
        together = {c.job: c.tokens for c in sia.complete(jobs)}
    with SIA.load(base_gguf, value_gguf, setup=EXACT) as sia:
        for i in range(5):
            alone = [s for s in sia.generate(f"story {i}", config, max_tokens=12 + i, seed=i)]
            assert together[i] == [s.token for s in alone if s.finish != "eog"]


def test_grammar_penalties_and_truncation_are_llama_cpps(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=EXACT) as sia:
        grammar = 'root ::= ("ab" | "ba")+ "."'
        text = "".join(
            s.text for s in sia.generate("x", SiaConfig(sampling=SamplingConfig(grammar=grammar)), max_tokens=30)
        )
        assert set(text) <= set("ab.") and text[:2] in ("ab", "ba")
        greedy = tokens(sia, SiaConfig(sampling=SamplingConfig(temperature=0.0)), max_tokens=60)
        penal = SamplingConfig(temperature=0.0, repeat_penalty=5.0, penalty_last_n=200)
        assert len(set(tokens(sia, SiaConfig(sampling=penal), max_tokens=60))) > len(set(greedy))
        narrow = SiaConfig(sampling=SamplingConfig(min_p=0.9))
        for step in sia.generate("x", narrow, max_tokens=10, trace=True):
            assert step.candidates is not None
            p = step.candidates.p_base
            assert (p >= 0.9 * p[0] - 1e-6).all()


def test_a_grammar_that_leaves_little_sees_little_of_the_vocabulary(
    base_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    apply = SamplerChain.apply

    def counted(self: SamplerChain, ids: Any, logits: Any) -> Any:
        seen.append(len(ids))
        return apply(self, ids, logits)

    monkeypatch.setattr(SamplerChain, "apply", counted)
    rng = np.random.default_rng(0)
    with Model(base_gguf) as model:
        letters = [model.tokenize(letter)[0] for letter in "ab"]
        config = SamplingConfig(grammar='root ::= "a" | "b"')
        for behind, expected in ((12.0, letters), (30.0, letters[:1])):
            row = rng.uniform(-24, -20, model.n_vocab).astype(np.float32)
            row[letters[0]], row[letters[1]] = 5.0, 5.0 - behind
            ids, logits = LogitFilter(model, config, []).candidates(row, 10)
            assert ids.tolist() == expected and logits.tolist() == row[expected].tolist()
        assert max(seen) <= 74  # the first pool alone: all the others are 25 nats below the best
        row[letters] = -60.0  # only the least likely tokens are allowed
        ids, _ = LogitFilter(model, config, []).candidates(row, 10)
        assert sorted(ids) == sorted(letters) and max(seen) == model.n_vocab


def test_a_grammar_does_not_hide_the_prompt_from_penalties(base_gguf: Path) -> None:
    def first(**sampling: Any) -> dict[int, float]:
        config = SiaConfig(sampling=SamplingConfig(**sampling))
        step = next(sia.generate("happy dog", config, max_tokens=1, raw=True, trace=True))
        assert step.candidates is not None
        return dict(zip(step.candidates.ids.tolist(), step.candidates.logits.tolist(), strict=True))

    with SIA.load(base_gguf, setup=EXACT) as sia:
        anything = "root ::= [^~]*"
        penalized = first(presence_penalty=-9.0)
        assert first(presence_penalty=-9.0, grammar=anything) == pytest.approx(penalized, abs=1e-4)
        assert set(first(grammar=anything)) != set(penalized)


def test_a_filter_is_freed_with_its_job(base_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sia_local.llama import samplers

    freed: list[object] = []
    monkeypatch.setattr(samplers.C, "llama_sampler_free", freed.append)
    with SIA.load(base_gguf, setup=EXACT) as sia:
        config = SiaConfig(sampling=SamplingConfig(top_p=0.9, repeat_penalty=1.1))
        for _ in range(3):
            tokens(sia, config, max_tokens=4)
        next(sia.generate("x", config, max_tokens=4))
        assert len(freed) == 8


def test_the_penalty_pool_is_exact(base_gguf: Path) -> None:
    """Filtering a pool of the best gives what filtering the whole vocabulary gives."""
    from sia_local.generation.filters import LogitFilter
    from sia_local.llama import samplers
    from sia_local.llama.model import Model

    with Model(base_gguf) as model:
        rng = np.random.default_rng(0)
        config = SamplingConfig(repeat_penalty=1.7, frequency_penalty=-0.4, presence_penalty=0.3, penalty_last_n=20)
        prompt = rng.integers(0, model.n_vocab, 30).tolist()
        pooled = LogitFilter(model, config, prompt)
        chain = samplers.SamplerChain([samplers.penalties(model, 20, 1.7, -0.4, 0.3)])
        for token in prompt[-20:]:
            chain.accept(token)
        row = rng.standard_normal(model.n_vocab).astype(np.float32) * 3
        ids, logits = chain.apply(np.arange(model.n_vocab, dtype=np.int32), row)
        whole = np.full(model.n_vocab, -np.inf, np.float32)
        whole[ids] = logits
        ours, values = pooled.candidates(row, 10)
        assert ours.tolist() == top_candidates(whole, 10).tolist()
        np.testing.assert_array_equal(values, whole[ours])
        chain.close()


def test_values_read_their_own_rendering(make_gguf: Callable[..., Path]) -> None:
    plain = make_gguf("merged", seed=1, template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with SIA.load(make_gguf("base"), plain, setup=EXACT) as sia:
        value = source(sia, ValueModel)
        value.begin(0, sia.prompt("hello"))
        assert value.engine.slots[0].tokens == sia.model.tokenize("hello")


def test_a_text_ends_where_the_value_models_own_rendering_fills_its_context(make_gguf: Callable[..., Path]) -> None:
    config = SiaConfig(gate="dense")
    for words, refused in ((100, False), (200, True)):
        wordy = make_gguf("merged", template="a " * words + "{{ messages[0]['content'] }}")
        with SIA.load(make_gguf("base", ascii=True), wordy, setup=EXACT, slots=2) as sia:
            jobs = [sia.job("hello", config, max_tokens=120, seed=i, id=i) for i in range(2)]
            value = source(sia, ValueModel)
            room = value.engine.capacity - len(value.tokens(jobs[0].prompt))
            if refused:
                with pytest.raises(ContextFullError, match=r"the prompt is \d+ tokens for .*raise --ctx"):
                    list(sia.complete(jobs))
            else:
                done = list(sia.complete(jobs))
                assert [(len(c.tokens), c.finish) for c in done] == [(room, "context")] * 2 and 0 < room < 100


def test_refusals(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    base = make_gguf("base")
    with pytest.raises(ModelFileError, match="no such file"):
        SIA.load(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFileError, match="the file is empty"):
        SIA.load(tmp_path / "empty.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ModelFileError, match="a GGUF file with b'GGUF'"):
        SIA.load(tmp_path / "text.gguf")
    starts = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00": "pointer of git-LFS.*git lfs pull",
        b"\n<!DOCTYPE html><html>": "is a web page",
        b'\x10\0\0\0\0\0\0\0{"a": 1}': "safetensors file.*sia-convert hf-to-gguf",
        b"PK\x03\x04": "file of PyTorch.*sia-convert hf-to-gguf",
        b"ggjt\x03": "left in 2023",
        b"{}": "is JSON",
    }
    for start, said in starts.items():
        (tmp_path / "other.gguf").write_bytes(start)
        with pytest.raises(ModelFileError, match=said):
            SIA.load(tmp_path / "other.gguf")
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[: base.stat().st_size // 2])
    with pytest.raises(ModelFileError, match=r"llama\.cpp cannot load this file"):
        SIA.load(tmp_path / "cut.gguf")
    with pytest.raises(IncompatibleError, match="holds no value head"):
        SIA.load(base, base)
    with pytest.raises(IncompatibleError, match="different vocabularies"):
        SIA.load(base, make_gguf("merged", sha256="0" * 64))
    with pytest.raises(IncompatibleError, match="a head of width 32"):
        SIA.load(base, make_gguf("head", head=(0.1,) * 32))
    with pytest.raises(IncompatibleError, match="has 65 weights and 2 biases, 2 units were expected"):
        SIA.load(base, make_gguf("head", head=(0.1,) * 2, hidden=(0.1,) * 65))
    with pytest.raises(IncompatibleError, match="layout 'sparse' of value model; expected one of merged, lean"):
        SIA.load(base, make_gguf("merged", layout="sparse"))
    with pytest.raises(IncompatibleError, match="contract version 9"):
        SIA.load(base, make_gguf("merged", version=9))
    with SIA.load(base, setup=EXACT) as sia:
        with pytest.raises(ContextFullError, match="the context holds 128"):
            sia.prompt("a b " * 200)
        with pytest.raises(ConfigError, match="cannot be parsed"):
            tokens(sia, SiaConfig(sampling=SamplingConfig(grammar="root ::= (")))
        with pytest.raises(ConfigError, match="has no role or no content"):
            sia.prompt([{"role": "user"}])
        with pytest.raises(ConfigError, match="seed is -1"):
            tokens(sia, seed=-1)
    with SIA.load(base, make_gguf("merged", spread=0.0), setup=EXACT) as sia:
        assert tokens(sia, SiaConfig(gate="dense", beta_unit="spread")) != tokens(sia, SiaConfig(gate="off"))
        assert tokens(sia, SiaConfig(gate="off", beta_unit="spread"))
    with (
        SIA.load(make_gguf("base", nan=True), setup=EXACT) as sia,
        pytest.raises(NumericError, match="logits at token 0"),
    ):
        tokens(sia)
    with SIA.load(base, make_gguf("merged", nan=True), setup=EXACT) as sia, pytest.raises(NumericError, match="value"):
        tokens(sia, SiaConfig(gate="dense"))


def test_importing_the_runtime_brings_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'sklearn', 'gguf'}"
    code = f"import sia_local.generation.sia, sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
