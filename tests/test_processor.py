"""The drop-in processor inside real llama-cpp-python: the same texts as SIA, the same values as read afresh."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llama_cpp import ChatCompletionRequestMessage, Llama, LogitsProcessorList
from loading import EXACT, traced

from sia_local import SIA, SiaConfig, SiaLogitsProcessor
from sia_local.config import SamplingConfig
from sia_local.errors import ConfigError, IncompatibleError
from sia_local.values.sources import Guides

LOAD: dict[str, Any] = {"n_threads": 1, "type_k": "f32", "type_v": "f32"}
GREEDY = SamplingConfig(temperature=0.0)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def llm(base_gguf: Path) -> Iterator[Llama]:
    # 0 is f32 for the KV cache: rows must not round differently from SIA's.
    made = Llama(str(base_gguf), n_ctx=128, n_threads=1, n_threads_batch=1, type_k=0, type_v=0, verbose=False)
    yield made
    made.close()


def written(llm: Llama, processor: SiaLogitsProcessor, prompt: Any, n: int = 20, **options: Any) -> list[int]:
    """Ids that the Llama writes; a plain loop over its own generate()."""
    options = {"temp": 0.0, "repeat_penalty": 1.0, **options}
    out = []
    for token in llm.generate(list(prompt), logits_processor=LogitsProcessorList([processor]), **options):
        out.append(token)
        if len(out) == n or llm.token_eos() == token:
            break
    return out


@pytest.mark.parametrize("source", ["merged", "adapter", "guides"])
def test_a_greedy_text_is_sias_own(llm: Llama, make_gguf: Make, source: str) -> None:
    base = make_gguf("base")
    value: Any = Guides(make_gguf("base", seed=3), base) if source == "guides" else make_gguf(source, seed=1)
    config = SiaConfig(gate="rate", rate=0.5, beta=3.0, sampling=GREEDY)
    with SIA.load(base, value, EXACT) as sia:
        prompt = sia.prompt("hello there", raw=True)
        steps = list(sia.generate(prompt, config, max_tokens=20, trace=True))
    with SiaLogitsProcessor(llm, value, config, **LOAD) as processor:
        tokens = written(llm, processor, prompt.tokens)
        assert tokens == [s.token for s in steps]
        ours = processor.steps
    assert [s.steered for s in ours] == [s.steered for s in steps] and {True, False} == {s.steered for s in steps}
    for a, b in zip(ours[:-1], steps[:-1], strict=True):
        assert (a.token, a.text, a.flipped, a.beta) == (b.token, b.text, b.flipped, b.beta)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        np.testing.assert_allclose(traced(a).values, traced(b).values, atol=1e-4)
        if a.steered:
            assert a.kl_steering == pytest.approx(b.kl_steering, abs=1e-4)
    assert ours[-1].token == -1 and np.isnan(ours[-1].logprob)
    assert processor.stats.junctions == sum(s.steered for s in steps)
    assert processor.stats.tokens == 20


def test_a_guide_that_rewords_a_prompt_reads_it(llm: Llama, base_gguf: Path) -> None:
    guides = Guides(base_gguf, base_gguf, plus_prompt="happy {prompt}", minus_prompt="sad {prompt}")
    with SiaLogitsProcessor(llm, guides, SiaConfig(gate="dense", sampling=GREEDY), **LOAD) as processor:
        written(llm, processor, llm.tokenize(b"a dog"), n=2)
        value: Any = processor.value
        read = value.plus.engine.slots[0].tokens
        assert b"".join(map(processor.model.piece, read)).startswith(b"happy a dog")


def test_a_chat_completion_is_steered(llm: Llama, base_gguf: Path, value_gguf: Path) -> None:
    config = SiaConfig(gate="dense", beta=3.0, sampling=GREEDY)
    messages: list[ChatCompletionRequestMessage] = [{"role": "user", "content": "hello"}]
    with SIA.load(base_gguf, value_gguf, EXACT) as sia:
        expected = "".join(s.text for s in sia.generate("hello", config, max_tokens=8))
    with SiaLogitsProcessor(llm, value_gguf, config, **LOAD) as processor:
        options: Any = {"max_tokens": 8, "temperature": 0.0, "logits_processor": LogitsProcessorList([processor])}
        answer: Any = llm.create_chat_completion(messages, **options)
        # llama-cpp-python leaves out the bytes of unfinished characters, SIA shows U+FFFD.
        assert answer["choices"][0]["message"]["content"] == expected.replace("\ufffd", "")
        completion: Any = llm("hello", **options)
        assert completion["choices"][0]["text"] and processor.stats.junctions > 0


def test_logit_bias_leaves_the_processor_in_place(llm: Llama, value_gguf: Path) -> None:
    config = SiaConfig(gate="dense", sampling=GREEDY)
    with SiaLogitsProcessor(llm, value_gguf, config, **LOAD) as processor:
        given = processor.processors
        options: Any = {"max_tokens": 6, "temperature": 0.0, "logits_processor": given}
        plain: Any = llm("hello", **options)
        biased: Any = llm("hello", logit_bias={7: 1.0}, **options)
        assert len(processor.steps) == 6 and len(given) == 1
        again: Any = llm("hello", **options)
        assert biased and again["choices"][0]["text"] == plain["choices"][0]["text"]


def test_a_draft_model_is_refused(value_gguf: Path, base_gguf: Path) -> None:
    drafted = SimpleNamespace(model_path=str(base_gguf), draft_model=object())
    with pytest.raises(ConfigError, match=r"has a draft model, .* make it without draft_model"):
        SiaLogitsProcessor(drafted, value_gguf)


def test_a_callers_own_llama_logs_as_ever(base_gguf: Path) -> None:
    """Lines that a verbose Llama prints, with and without this package in the process, which itself prints none."""
    code = (
        "import sys; from llama_cpp import Llama\n"
        f"path = {str(base_gguf)!r}\n"
        "if sys.argv[1] == 'with':\n"
        "    from sia_local import SIA\n"
        "    SIA.load(path, n_ctx=64, n_threads=1).close()\n"
        "Llama(path, n_ctx=64, verbose=True)"
    )
    lines = [
        len(subprocess.run([sys.executable, "-c", code, how], capture_output=True, check=True).stderr.splitlines())
        for how in ("with", "without")
    ]
    assert abs(lines[0] - lines[1]) <= 5 and lines[1] > 50


@pytest.mark.parametrize("config", [SiaConfig(gate="off"), SiaConfig(gate="dense", beta=0.0)])
def test_off_and_beta_zero_leave_the_scores_alone(base_gguf: Path, value_gguf: Path, config: SiaConfig) -> None:
    rng = np.random.default_rng(1)
    with SiaLogitsProcessor(base_gguf, value_gguf, config, n_ctx=64, **LOAD) as processor:
        ids = np.array([5, 6], np.intc)
        for token in (7, 8):
            scores = rng.standard_normal(320).astype(np.single)
            assert processor(ids, scores) is scores
            ids = np.append(ids, np.intc(token))
        assert processor.stats.kl == 0


@pytest.mark.parametrize("tail", [False, True])
def test_what_comes_out_samples_the_steered_distribution(base_gguf: Path, value_gguf: Path, tail: bool) -> None:
    config = SiaConfig(k=6, gate="dense", beta=2.0, tail=tail, sampling=SamplingConfig(temperature=0.7))
    row = np.random.default_rng(2).standard_normal(320).astype(np.single) * 3
    # A view with a stride, as llama-cpp-python passes it.
    strided = np.zeros((320, 3), np.single)
    strided[:, 1] = row
    with SiaLogitsProcessor(base_gguf, value_gguf, config, n_ctx=64, **LOAD) as processor:
        out = processor(np.array([5, 6], np.intc), strided[:, 1])
        (step,) = processor.steps
    c = step.candidates
    assert c is not None and out.dtype == np.single
    weights = np.exp((out.astype(float) - out.max()) / 0.7)
    np.testing.assert_allclose((weights / weights.sum())[c.ids], c.p_steered, atol=1e-6)
    others = np.delete(out, c.ids)
    np.testing.assert_array_equal(others, np.delete(row, c.ids) if tail else -np.inf)


def test_values_follow_any_prefix(base_gguf: Path, value_gguf: Path) -> None:
    """Whatever was read before (longer, shorter, forked, the same), values equal those of a fresh processor."""
    rng = np.random.default_rng(3)
    config = SiaConfig(gate="dense", beta=1.0)
    row = rng.standard_normal(320).astype(np.single)
    fork = [5, 6, 20, 21, 22]
    prefixes = [[5, 6, 7, 8], [5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10], [5, 6], fork, fork, [30]]
    with SiaLogitsProcessor(base_gguf, value_gguf, config, n_ctx=64, **LOAD) as kept:
        for n, prefix in enumerate(prefixes):
            ids = np.array(prefix, np.intc)
            kept(ids, row)
            with SiaLogitsProcessor(base_gguf, value_gguf, config, n_ctx=64, **LOAD) as fresh:
                fresh(ids, row)
                expected = traced(fresh.steps[0])
            got = traced(kept.steps[-1])
            np.testing.assert_allclose(got.values, expected.values, atol=1e-4)
            # Only the second and third go on by one token; every other prefix begins a text of its own.
            assert kept.steps[-1].index == (n if n < 3 else 0)
        # Beside 10 candidates a call: the first prefix, and of each other one at most what is new or its last token.
        (engine,) = kept.value.engines
        assert engine.decoded_tokens - 10 * len(prefixes) <= 4 + 1 + 1 + 1 + 3 + 1 + 1


def test_a_value_model_may_read_its_own_rendering(base_gguf: Path, make_gguf: Make) -> None:
    plain = make_gguf("merged", seed=1, template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    row = np.zeros(320, np.single)
    with SiaLogitsProcessor(base_gguf, plain, SiaConfig(gate="dense"), n_ctx=64, **LOAD) as processor:
        processor.chat([{"role": "user", "content": "hello"}])
        processor(np.array([5, 6, 7], np.intc), row)
        processor(np.array([5, 6, 7, 40], np.intc), row)
        (engine,) = processor.value.engines
        assert engine.slots[0].tokens == [*processor.model.tokenize("hello"), 40]


def test_what_fails_inside_a_call_warns_once_and_leaves_the_text_alone(base_gguf: Path, value_gguf: Path) -> None:
    row = np.zeros(320, np.single)
    with SiaLogitsProcessor(base_gguf, value_gguf, n_ctx=16, **LOAD) as processor:
        long = np.arange(300, dtype=np.intc)
        with pytest.warns(RuntimeWarning, match="goes on unsteered: the prompt is 300 tokens for "):
            assert processor(long, row) is row
        assert processor(np.append(long, np.intc(3)), row) is row and processor.error is not None
        assert processor(long[:4], row) is not row and processor.error is None


def test_refusals(base_gguf: Path, value_gguf: Path, head_gguf: Path, make_gguf: Make) -> None:
    with pytest.raises(IncompatibleError, match="which belongs to another program here"):
        SiaLogitsProcessor(base_gguf, head_gguf)
    with pytest.raises(IncompatibleError, match="different vocabularies"):
        SiaLogitsProcessor(base_gguf, make_gguf("merged", seed=1, n_vocab=330))
    with pytest.raises(ConfigError, match="pass them to the call"):
        SiaLogitsProcessor(base_gguf, value_gguf, SiaConfig().with_sampling(repeat_penalty=1.2))
    with pytest.raises(ConfigError, match="no value source was given"):
        SiaLogitsProcessor(base_gguf, [])
