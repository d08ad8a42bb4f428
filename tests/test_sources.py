"""Sources of V: guides against their own full forward, mixtures against their parts, specs and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loading import EXACT, source, traced

from sia_local import SIA, SiaConfig
from sia_local.errors import ConfigError, IncompatibleError, ModelFileError
from sia_local.llama.engine import Engine
from sia_local.llama.part import AnyEngine, EnginePart
from sia_local.records import Prompt
from sia_local.values.guides import GuidePair
from sia_local.values.sources import Guides, MixedValues, Spec, Specs, ValuePath, parse_specs

Make = Callable[..., Path]
Cached = Callable[..., SIA]


class Table:
    """V of a candidate is its id times `scale`; records what it was asked."""

    absolute = rates_texts = True

    def __init__(self, name: str, scale: float, spread: float | None, limit: int = 10, shares_base: bool = False):
        self.name, self.scale, self.spread, self.max_candidates = name, scale, spread, limit
        self.shares_base = shares_base
        self.engines: list[Engine] = []
        self.calls: list[tuple[object, ...]] = []

    def begin(self, slot: int, prompt: Prompt) -> None:
        self.calls.append(("begin", slot))

    def accept(self, slot: int, token: int) -> None:
        self.calls.append(("accept", slot, token))

    def room(self, slot: int) -> int:
        return 1 << 30

    def score(self, requests: Sequence[tuple[int, np.ndarray]], also: Sequence[int] = ()) -> list[np.ndarray]:
        self.calls.append(("score", tuple(also)))
        return [self.scale * np.asarray(ids, float) for _, ids in requests]

    def levels(self, hidden: np.ndarray) -> np.ndarray | None:
        return self.scale * hidden.sum(axis=1) if self.shares_base else None

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> np.ndarray:
        return self.scale * np.asarray(tokens, float)

    def close(self) -> None:
        self.calls.append(("close",))


IDS = np.array([1, 2, 5], np.int32)


def test_mixture_is_the_weighted_sum_in_units_of_spread() -> None:
    mixed = MixedValues([Table("a", 1.0, 0.5), Table("b", -3.0, 2.0, limit=4)], [0.7, 0.3])
    (values,) = mixed.score([(0, IDS)])
    assert values.tolist() == pytest.approx([0.95, 1.9, 4.75])  # 0.7 / 0.5 - 0.3 * 3 / 2 = 0.95 a token id
    assert mixed.trajectory(0, Prompt((1,)), [2]).tolist() == pytest.approx([1.9])
    assert mixed.levels(np.ones((2, 3), np.float32)) is None
    heads = MixedValues([Table("a", 1.0, 0.5, shares_base=True), Table("b", -3.0, 2.0, shares_base=True)], [0.7, 0.3])
    levels = heads.levels(np.array([[1, 1], [1, 3]], np.float32))
    assert levels is not None and levels.tolist() == pytest.approx([1.9, 3.8])
    heads.set_weight("a", 0)
    heads.set_weight("b", 0)
    assert heads.levels(np.ones((2, 3), np.float32)) is None
    assert mixed.max_candidates == 4
    assert mixed.spread == 1.0


def test_weights_change_at_runtime_and_zero_costs_nothing() -> None:
    a, b = Table("a", 1.0, 0.5), Table("b", -3.0, None)
    mixed = MixedValues([a, b], [1.0, 1.0])
    mixed.set_weight("a", 0)
    assert mixed.score([(0, IDS)])[0].tolist() == [-3.0, -6.0, -15.0]
    assert a.calls == []
    mixed.accept(0, 7)
    assert a.calls == [("accept", 0, 7)]
    with pytest.raises(ConfigError, match="no value is named 'c'; expected one of a, b"):
        mixed.set_weight("c", 1)
    with pytest.raises(ConfigError, match="weight of a is nan"):
        mixed.set_weight("a", float("nan"))


def test_only_one_sharing_source_takes_the_base_along() -> None:
    heads = [Table("a", 1, 1), Table("h", 1, 1, shares_base=True), Table("g", 1, 1, shares_base=True)]
    MixedValues(heads, [1, 1, 1]).score([(0, IDS)], also=[3])
    assert [h.calls for h in heads] == [[("score", (3,))], [("score", (3,))], [("score", ())]]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, []),
        ("a.gguf", [ValuePath("a.gguf")]),
        (Path("a.gguf"), [ValuePath("a.gguf")]),
        ("a.gguf:0.7", [ValuePath("a.gguf", 0.7)]),
        ("kind=x/a.gguf:-2", [ValuePath("x/a.gguf", -2.0, "kind")]),
        ("x/b=c.gguf", [ValuePath("x/b=c.gguf")]),
        (r"C:\m\a.gguf", [ValuePath(r"C:\m\a.gguf")]),
        (("a.gguf", 2), [ValuePath("a.gguf", 2.0)]),
        (["a.gguf:0.7", ("b.gguf", 0.3)], [ValuePath("a.gguf", 0.7), ValuePath("b.gguf", 0.3)]),
        (Guides("p", "m"), [Guides("p", "m")]),
    ],
)
def test_specs(given_: Specs | None, expected: list[Spec]) -> None:
    assert parse_specs(given_) == expected


def test_a_file_that_exists_wins_over_a_weight(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.7"
    odd.write_bytes(b"x")
    assert parse_specs(str(odd)) == [ValuePath(str(odd))]


def test_bad_specs_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"weight of a\.gguf is inf"):
        parse_specs("a.gguf:inf")
    with pytest.raises(ConfigError, match=r"has no \{prompt\}"):
        Guides("p", plus_prompt="Be kind.")


def logprobs(sia: SIA, tokens: Sequence[int]) -> np.ndarray:
    """log softmax after a whole prefix, by the base's engine, from nothing."""
    sia.engine.release(0)
    sia.engine.begin(0, tokens)
    row = sia.engine.logits([0])[0].astype(float)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


@pytest.fixture(scope="module")
def cached() -> Iterator[Cached]:
    """cached(base, value) -> SIA; the same arguments give the same one."""
    loaded: dict[object, SIA] = {}
    with ExitStack() as stack:

        def load(path: Path, value: Specs | None = None) -> SIA:
            if (path, value) not in loaded:
                loaded[path, value] = stack.enter_context(SIA.load(path, value, EXACT))
            return loaded[path, value]

        yield load


@given(seed=st.integers(0, 2**16))
def test_guides_equal_their_own_forward(make_gguf: Make, cached: Cached, seed: int) -> None:
    """After random accepts and scores, V is the difference of the two models' plain log-probabilities."""
    rng = np.random.default_rng(seed)
    paths = [make_gguf("base"), make_gguf("base", seed=3), make_gguf("base", seed=4)]
    plus, minus = cached(paths[1]), cached(paths[2])
    sia = cached(paths[0], Guides(paths[1], paths[2]))
    prompt = Prompt(tuple(rng.integers(3, 300, rng.integers(1, 9)).tolist()))
    tokens = list(prompt.tokens)
    value = source(sia)
    value.begin(0, prompt)
    for _ in range(6):
        for token in rng.integers(3, 300, rng.integers(0, 4)).tolist():
            value.accept(0, token)
            tokens.append(token)
        ids = rng.choice(320, 10, replace=False).astype(np.int32)
        (values,) = value.score([(0, ids)], ())
        expected = logprobs(plus, tokens)[ids] - logprobs(minus, tokens)[ids]
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_a_pair_of_twins_steers_nothing_and_one_guide_is_its_logprob(make_gguf: Make, cached: Cached) -> None:
    base, guide = make_gguf("base"), make_gguf("base", seed=3)
    config = SiaConfig(gate="dense", beta=2.0)
    off = [s.token for s in cached(base).generate("a cat", SiaConfig(gate="off"), max_tokens=20, seed=1)]
    with SIA.load(base, Guides(guide, guide), setup=EXACT) as twins:
        steps = list(twins.generate("a cat", config, max_tokens=20, seed=1, trace=True))
        assert [s.token for s in steps] == off
        assert all(np.abs(traced(s).values).max() == 0 for s in steps)
    with SIA.load(base, Guides(guide), setup=EXACT) as one:
        steps = list(one.generate("a cat", config, max_tokens=3, seed=1, trace=True))
        prefix = list(one.prompt("a cat").tokens)
        for step in steps:
            np.testing.assert_allclose(
                traced(step).values, logprobs(cached(guide), prefix)[traced(step).ids], atol=1e-4
            )
            prefix.append(step.token)


def test_the_base_as_its_own_guide_sharpens_like_a_temperature(make_gguf: Make, cached: Cached) -> None:
    """z + log p(z) is 2z up to a constant: temperature 1/2. The base's weights are loaded once."""
    base = make_gguf("base")
    with SIA.load(base, Guides(base), setup=EXACT) as sia:
        assert source(sia, GuidePair).plus.model is sia.model
        steered = [s.token for s in sia.generate("a dog", SiaConfig(gate="dense"), max_tokens=12, seed=5)]
    half = SiaConfig(gate="off").with_sampling(temperature=0.5)
    assert steered == [s.token for s in cached(base).generate("a dog", half, max_tokens=12, seed=5)]


def test_a_rewording_changes_what_a_guide_reads(make_gguf: Make) -> None:
    base = make_gguf("base")
    guides = Guides(base, base, plus_prompt="happy {prompt}", minus_prompt="sad {prompt}")
    with SIA.load(base, guides, setup=EXACT) as sia:
        prompt = sia.prompt("a dog")
        text = bytes(b"".join(map(sia.model.piece, source(sia, GuidePair).plus.tokens(prompt)))).decode()
        assert "happy a dog" in text
        steps = list(sia.generate(prompt, SiaConfig(gate="dense"), max_tokens=4, trace=True))
        assert all(np.abs(traced(s).values).max() > 0 for s in steps)
        raw = sia.prompt("a dog", raw=True)
        assert source(sia, GuidePair).plus.tokens(raw) == sia.model.tokenize("happy a dog")


def test_guides_of_one_model_share_its_decodes(make_gguf: Make, tmp_path: Path) -> None:
    """What each reads stays its own: a copy of the file, which is another model, says the same in twice the decodes."""
    base, copy = make_gguf("base"), tmp_path / "copy.gguf"
    copy.write_bytes(base.read_bytes())
    seen = []
    for minus in (base, copy):
        spec = Guides(base, minus, plus_prompt="happy {prompt}", minus_prompt="sad and so on {prompt}")
        with SIA.load(base, spec, setup=EXACT, slots=2) as sia:
            for slot, text in enumerate(("a dog", "the cat ran")):
                source(sia).begin(slot, sia.prompt(text))
            asked = [(slot, np.arange(4, dtype=np.int32) + slot) for slot in (1, 0)]
            values = [*source(sia).score(asked, ())]
            before = [_decodes(engine) for engine in source(sia).engines]
            source(sia).accept(1, 7)
            values += source(sia).score(asked, ())
            seen.append((np.concatenate(values), [_decodes(engine) for engine in source(sia).engines], before))
    (together, *one), (apart, *two) = seen
    np.testing.assert_allclose(together, apart, atol=1e-4)
    assert np.abs(together).min() > 1e-3
    assert one[0] == [n + 1 for n in one[1]] and one[1][0] == one[1][1]
    assert two[0] == [n + 1 for n in two[1]]


def _decodes(engine: AnyEngine) -> int:
    return engine.whole.decodes if isinstance(engine, EnginePart) else engine.decodes


def test_trajectories_equal_scores(
    make_gguf: Make, base_gguf: Path, value_gguf: Path, lean_gguf: Path, cached: Cached
) -> None:
    """V after each token of a text, encoded in one go, equals what the loop would score token by token."""
    sources: dict[str, Specs] = {
        "merged": value_gguf,
        "lean": lean_gguf,
        "adapter": make_gguf("adapter", seed=2),
        "head": make_gguf("head"),
        "mix": ((str(value_gguf), 0.7), (str(make_gguf("adapter", seed=2)), -0.5)),
    }
    rng = np.random.default_rng(0)
    prompt, tokens = Prompt((5, 6, 7, 8)), rng.integers(3, 300, 40).tolist()
    for name, specs in sources.items():
        sia = cached(base_gguf, specs)
        value = source(sia)
        trajectory = value.trajectory(0, prompt, tokens)
        sia.engine.begin(0, prompt.tokens)
        value.begin(0, prompt)
        singly = []
        for token in tokens:
            (v,) = value.score([(0, np.array([token, 9], np.int32))], ())
            singly.append(v[0])
            if not value.shares_base:
                value.accept(0, token)
            sia.engine.accept(0, token)
        np.testing.assert_allclose(trajectory, singly, atol=1e-4, err_msg=name)


def test_a_guides_trajectory_is_the_log_ratio_so_far(make_gguf: Make, base_gguf: Path, cached: Cached) -> None:
    plus, minus = make_gguf("base", seed=3), make_gguf("base", seed=4)
    sia = cached(base_gguf, Guides(plus, minus))
    prompt, tokens = Prompt((5,)), [20, 21, 300]
    ratios = []
    for i, token in enumerate(tokens):
        prefix = [5, *tokens[:i]]
        ratios.append(logprobs(cached(plus), prefix)[token] - logprobs(cached(minus), prefix)[token])
    trajectory = source(sia).trajectory(0, prompt, tokens)
    np.testing.assert_allclose(trajectory, np.cumsum(ratios), atol=1e-4)
    # The slot is left as if the text had been read: going on equals starting afresh.
    source(sia).begin(0, Prompt((5, *tokens)))
    ids = np.arange(10, dtype=np.int32)
    (after,) = source(sia).score([(0, ids)], ())
    whole = [5, *tokens]
    np.testing.assert_allclose(after, (logprobs(cached(plus), whole) - logprobs(cached(minus), whole))[:10], atol=1e-4)


def test_two_objectives_steer_and_several_slots_agree_with_one(base_gguf: Path, make_gguf: Make) -> None:
    values = [str(make_gguf("merged", seed=1)) + ":0.7", f"kind={make_gguf('adapter', seed=2)}:0.3"]
    config = SiaConfig(gate="dense", beta=3.0)
    with SIA.load(base_gguf, values, setup=EXACT) as one, SIA.load(base_gguf, values, setup=EXACT, slots=3) as many:
        mixed = source(one, MixedValues)
        assert list(mixed.weights.values()) == [0.7, 0.3] and "kind" in mixed.weights
        prompts = ["a cat", "a dog ran", "the sun"]
        singly = [[s.token for s in one.generate(p, config, max_tokens=10, seed=i)] for i, p in enumerate(prompts)]
        jobs = [many.job(p, config, max_tokens=10, seed=i, id=i) for i, p in enumerate(prompts)]
        together: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for step in many.run(jobs):
            together[step.job].append(step.token)
        assert list(together.values()) == singly
        first = [s.token for s in one.generate("a cat", config, max_tokens=10, seed=0)]
        mixed.set_weight("kind", -40)
        assert first == singly[0] != [s.token for s in one.generate("a cat", config, max_tokens=10, seed=0)]


def test_two_heads_on_one_base(make_gguf: Make, base_gguf: Path) -> None:
    """Both read the base's hidden states: the mixture equals the two apart, with other sequences alongside."""
    head = make_gguf("head")
    config = SiaConfig(k=4, threshold=1.2, beta=2.0)
    texts: list[dict[int, list[tuple[int, bool]]]] = []
    for values in (f"{head}:1", [f"{head}:0.5", f"b={head}:0.5"]):
        with SIA.load(base_gguf, values, EXACT, slots=3, max_candidates=4) as sia:
            texts.append({i: [] for i in range(4)})
            jobs = [sia.job(p, config, max_tokens=15, seed=2, id=i) for i, p in enumerate("abcd")]
            for step in sia.run(jobs):
                texts[-1][step.job].append((step.token, step.steered))
    assert texts[0] == texts[1] and {steered for text in texts[0].values() for _, steered in text} == {True, False}


def test_guides_of_another_vocabulary_are_refused(make_gguf: Make, base_gguf: Path, tmp_path: Path) -> None:
    other = make_gguf("base", n_vocab=330)
    with pytest.raises(IncompatibleError, match=r"different vocabularies .*--nudge`, which works on text"):
        SIA.load(base_gguf, Guides(other), setup=EXACT)
    with pytest.raises(IncompatibleError, match="different vocabularies"):
        SIA.load(base_gguf, Guides(base_gguf, other), setup=EXACT)
    with pytest.raises(ModelFileError, match="no such file"):
        SIA.load(base_gguf, Guides(tmp_path / "none.gguf"), setup=EXACT)
    with pytest.raises(ModelFileError, match="no such file"):
        SIA.load(base_gguf, ["a.gguf:0.5", str(tmp_path / "none.gguf")], setup=EXACT)
