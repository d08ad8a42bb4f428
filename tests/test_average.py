"""Several Q-heads as one: their weighted mean, each in its spreads. Oracles: PyTorch, and the runtime's weighing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import EXACT
from qheads import FORMS, made

from sia_local import SIA, SiaConfig, ValuePath
from sia_local.cli import main
from sia_local.learning.average import average, joined, spread_of
from sia_local.learning.collect import CollectConfig, hidden_states
from sia_local.learning.junctions import Junctions
from sia_local.llama.embeddings import EmbeddingRows
from sia_local.seeds import text_seed
from sia_local.values.qhead import ACTIVATIONS, Bilinear, Joint, Sum, Term
from sia_local.values.qhead_file import QHeadFile, write_qhead

Make = Callable[..., Path]
ACTS = {
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
}


def torch_q(term: Term, hidden: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Q [k] in float64, from the formula."""

    def t(array: np.ndarray | None) -> torch.Tensor:
        assert array is not None
        return torch.tensor(array).double()

    h, e = t(hidden), t(rows)
    of_token = e @ t(term.token_weight).T
    x = t(term.hidden_weight) @ h + t(term.hidden_bias) if term.n_hidden else h
    if isinstance(term, Bilinear):
        f = t(term.weight) @ (ACTS[term.activation](x) if term.n_hidden else x) + t(term.bias)
        q = of_token @ f
    else:
        q = ACTS[term.activation](x + of_token) @ t(term.weight)
    return term.scale * (q + e @ t(term.token_bias)).numpy()


def some(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n).astype(np.float32), rng.standard_normal((5, n)).astype(np.float32)


PARTS = st.tuples(
    st.sampled_from(FORMS),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(1, 9),  # hidden units
    st.floats(0.01, 10),  # spread
    st.floats(0.1, 10),  # weight
    st.floats(-4, 4),  # scale
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PARTS, min_size=2, max_size=5), st.integers(0, 99))
def test_an_average_is_the_mean_of_its_parts_in_their_spreads(parts: list[tuple], seed: int) -> None:
    """Whatever the forms, and again when an average is averaged."""
    heads = [
        replace(made(form, 12, n, activation, seed + i), spread=spread, scale=scale)
        for i, (form, activation, n, spread, _, scale) in enumerate(parts)
    ]
    weights = [weight for *_, weight, _ in parts]
    hidden, rows = some(12, seed)
    shares = np.array(weights) / sum(weights)
    unit = float(shares @ [h.spread for h in heads])
    told = [torch_q(h, hidden, rows) / (h.spread or 0) for h in heads]
    expected = unit * np.einsum("i,ik->k", shares, told)
    whole = average(heads, weights)
    tolerance = 1e-5 * max(unit * np.abs(told).max(), 1e-9)
    np.testing.assert_allclose(whole(hidden, rows), expected, rtol=0, atol=tolerance)
    assert whole.spread is None
    kinds = {
        i if (layered := isinstance(h, Bilinear) and h.n_hidden) else (h.form, h.activation)
        for i, h in enumerate(heads)
    }
    assert len(whole.terms) == len(kinds), layered
    again = average([replace(whole, spread=unit), heads[0]], [2.0, 1.0])
    unit_again = (2 * unit + (heads[0].spread or 0)) / 3
    expected = unit_again * (2 * expected / unit + told[0]) / 3
    np.testing.assert_allclose(
        again(hidden, rows), expected, rtol=0, atol=3 * tolerance * unit_again / unit + tolerance
    )


def test_what_is_stacked_is_one_term_and_levels_are_averaged() -> None:
    a, b = made("joint"), made("joint", n_hidden=3, seed=1)
    whole = average([a, b], [1, 3])
    assert isinstance(whole, Joint) and whole.n_hidden == 10 and whole.scale == 0.75 * 0.375
    assert a.level_weight is not None and b.level_weight is not None and whole.level_weight is not None
    np.testing.assert_allclose(whole.level_weight, 0.25 * a.level_weight + 0.75 * b.level_weight, rtol=1e-6)
    assert whole.level_bias == -1.5
    assert average([a, replace(b, level_weight=None, level_bias=0.0)], [1, 1]).level_weight is None
    linear = average([made("linear"), made("linear", seed=1)], [1, 1])
    assert isinstance(linear, Bilinear) and len(linear.token_weight) == 10
    both = average([a, made("bilinear")], [1, 1])
    assert isinstance(both, Sum) and [part.form for part in both.parts] == ["joint", "bilinear"]


def test_the_spread_says_how_far_the_parts_agree() -> None:
    rng = np.random.default_rng(0)
    hidden, rows = rng.standard_normal((20, 24)).astype(np.float32), rng.standard_normal((30, 24)).astype(np.float32)
    ids = rng.integers(0, 30, (20, 6)).astype(np.int32)
    junctions = Junctions(hidden, ids, np.zeros((20, 6), np.float32), np.zeros((20, 6), np.float32), ids[:, 0])
    a = made("joint")
    against = replace(a, scale=-a.scale)
    for other, agreement in ((a, 1.0), (against, 0.5)):
        parts, weights = [a, replace(other, spread=0.0625)], [3.0, 1.0]
        assert spread_of(average(parts, weights), parts, weights, junctions, rows) == pytest.approx(0.0625 * agreement)


def heads(make_gguf: Make, folder: Path) -> list[Path]:
    """A joint and a bilinear one of the tiny base."""
    joint = QHeadFile.read(make_gguf("qhead"))
    bilinear = replace(made("bilinear", joint.qhead.n_embd), spread=2.0)
    write_qhead(folder / "b.gguf", bilinear, replace(joint.meta, name="b"), "f16")
    return [joint.path, folder / "b.gguf"]


def test_the_command_makes_a_file_that_steers_as_both_do(make_gguf: Make, tmp_path: Path) -> None:
    base, out, prompts = make_gguf("base"), tmp_path / "c.gguf", tmp_path / "p.txt"
    prompts.write_text("hello\na dog")
    a, b = heads(make_gguf, tmp_path)
    few = ["--texts", "4", "--max-tokens", "8", "--threshold", "0", "--k", "6", "--threads", "1"]
    asked = ["average", f"{a}:3", b, "-o", out, "-m", base, "--prompts", prompts, *few]
    done = CliRunner().invoke(main, list(map(str, asked)))
    assert done.exit_code == 0, done.output
    file = QHeadFile.read(out)
    assert file.meta.average == f"0.75 {a.stem} + 0.25 b" and file.meta.distillation is None
    assert file.meta.vocab_sha256 == QHeadFile.read(a).meta.vocab_sha256 and file.spread is not None
    # In spreads: 3 Qa / 0.5 + 1 Qb / 2; in reward units, a quarter of that times 0.875, the mean spread.
    config, written = SiaConfig(gate="dense", k=6, beta=1.0), []
    for values in ([ValuePath(a, 3.0), ValuePath(b, 1.0)], out):
        with SIA.load(base, values, setup=EXACT) as sia:
            assert sia.value is not None
            beta = config.beta if sia.value.name != "c" else 4 * config.beta / 0.875
            steps = list(sia.generate("hello", replace(config, beta=beta), max_tokens=12, seed=3, trace=True))
            written.append(([s.token for s in steps], np.array([s.candidates.values for s in steps if s.candidates])))
    assert written[0][0] == written[1][0]
    np.testing.assert_allclose(written[1][1], 0.875 / 4 * written[0][1], atol=1e-5 * np.abs(written[1][1]).max())
    # Its spread is to the mean of its parts' as theirs are at the same junctions.
    heads_of, rows = [QHeadFile.read(path).qhead for path in (a, b, out)], EmbeddingRows.output_of(base)
    found: list[list[float]] = [[], [], []]
    with SIA.load(base, [ValuePath(a, 3.0), ValuePath(b, 1.0)], setup=EXACT, hidden_states=True) as sia:
        for text, words in enumerate(("hello", "a dog", "hello", "a dog")):
            prompt, seed = sia.prompt(words), text_seed(0, str(text), 0)
            config = CollectConfig(k=6, threshold=0.0).steering(text)
            steps = list(sia.generate(prompt, config, max_tokens=8, seed=seed, trace=True))
            for step, hidden in zip(steps, hidden_states(sia, prompt, [s.token for s in steps]), strict=False):
                assert step.candidates is not None
                for qhead, kept in zip(heads_of, found, strict=True):
                    kept.append(float(np.std(qhead(hidden, rows[step.candidates.ids]))))
    of_a, of_b, of_both = np.mean(found, axis=1)
    assert file.spread == pytest.approx(of_both / (0.75 * of_a / 0.5 + 0.25 * of_b / 2.0), rel=5e-3)
    assert "4 of 4 texts, 32 junctions" in done.stderr


def test_prompts_that_do_not_fit_are_left_out_and_counted(make_gguf: Make, tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    few = ["--texts", "4", "--max-tokens", "8", "--threshold", "0", "--threads", "1", "--ctx", "64"]
    asked = ["average", *heads(make_gguf, tmp_path), "-o", tmp_path / "c.gguf", "-m", make_gguf("base")]
    for words, code, said in (
        (f"hello\n{'a dog ' * 64}", 0, "4 of 4 texts (2 left out: their prompts do not fit the context), 16 junctions"),
        ("a dog " * 64, 2, "tokens, the context holds 64; shorten the prompt or raise the context length (--ctx)"),
    ):
        prompts.write_text(words)
        done = CliRunner().invoke(main, [*map(str, asked), "--prompts", str(prompts), *few])
        assert done.exit_code == code and said in done.stderr, done.output


@pytest.mark.parametrize(
    "which, words",
    [
        (["a"], "an average of 1 Q-head; expected two or more"),
        (["a", "b:-1"], "weight -1 in an average; expected above 0"),
        (["a", "wide"], "read different bases, of width 64 and of width 65"),
        (["a", "other"], "read different bases, one without a name and other.gguf"),
        (["a", "words"], "read different bases, of one vocabulary and of another"),
        (["a", "value"], "is of the kind value; expected Q-heads"),
        (["a", "base"], "holds no value head"),
        (["a", "flat"], "flat.gguf: stores no spread"),
    ],
)
def test_refusals(make_gguf: Make, value_gguf: Path, tmp_path: Path, which: list[str], words: str) -> None:
    a, b = heads(make_gguf, tmp_path)
    files = {"a": a, "b": b, "value": value_gguf, "base": make_gguf("base")}
    file = QHeadFile.read(a)
    for name, qhead, meta in (
        ("wide", made("joint", file.qhead.n_embd + 1), file.meta),
        ("other", file.qhead, replace(file.meta, base_name="other.gguf")),
        ("words", file.qhead, replace(file.meta, vocab_sha256="ab" * 32)),
        ("flat", replace(file.qhead, spread=None), file.meta),
    ):
        files[name] = tmp_path / f"{name}.gguf"
        write_qhead(files[name], qhead, meta)
    given = [str(files[name]) + colon + weight for name, colon, weight in (w.partition(":") for w in which)]
    done = CliRunner().invoke(main, ["average", *given, "-o", str(tmp_path / "c.gguf"), "-m", str(files["base"])])
    assert done.exit_code == 2 and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "c.gguf").exists()


def test_another_reward_leaves_no_level(make_gguf: Make, tmp_path: Path) -> None:
    a, b = map(QHeadFile.read, heads(make_gguf, tmp_path))
    qhead, meta = joined([a, b], [1, 1], "c")
    assert qhead.level_weight is not None and meta.reward_name == a.meta.reward_name
    qhead, meta = joined([a, replace(b, meta=replace(b.meta, reward_name="vader"))], [1, 1], "c")
    assert qhead.level_weight is None and meta.reward_name == ""
