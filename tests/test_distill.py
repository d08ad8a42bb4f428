"""From a teacher to a steering file: collecting, resuming, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loading import EXACT, source
from planted import same

from sia_local import SIA, BestOf, Guides, SiaConfig
from sia_local.cli import main
from sia_local.config import Setup
from sia_local.errors import ConfigError, ContextFullError, DataError
from sia_local.learning.collect import CollectConfig, Progress, collect
from sia_local.learning.distill import distill
from sia_local.learning.fit import FitConfig
from sia_local.learning.junctions import read_junctions, read_transitions
from sia_local.learning.targets import read_targets
from sia_local.seeds import text_seed
from sia_local.values.guides import GuidePair, instruction
from sia_local.values.qhead_file import QHeadFile
from sia_local.values.sources import Specs

PROMPTS = ["hello", "a dog", "the red house", "rain"]
CONFIG = CollectConfig(k=6, threshold=0.0, texts=6, max_tokens=10, beta=1.0)


@pytest.mark.parametrize("kind", ["merged", "head"])
def test_what_is_collected_is_what_the_teacher_said(make_gguf: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """Values are the teacher's of that prefix, hidden states those behind it: a text's own steps say which."""
    base, teacher = make_gguf("base"), make_gguf(kind, seed=0)
    with SIA.load(base, teacher, slots=2, hidden_states=True, max_candidates=6, setup=EXACT) as sia:
        collect(sia, PROMPTS, tmp_path / "j", CONFIG, {})
        junctions, settings = read_junctions(tmp_path / "j")
        assert settings["k"] == 6 and set(junctions.prompts.tolist()) == {0, 1, 2, 3}
        seen = []
        for text in range(CONFIG.texts):
            asked = {"max_tokens": 10, "seed": text_seed(0, str(text), 0), "trace": True}
            written = sia.generate(PROMPTS[text % 4], CONFIG.steering(text), **asked)
            seen += [step.candidates for step in written if step.candidates is not None]
        order = np.lexsort(junctions.values.T)
        expected = np.stack([c.values for c in seen]).astype(np.float32)
        np.testing.assert_allclose(junctions.values[order], expected[np.lexsort(expected.T)], atol=1e-5, rtol=1e-5)
        at = int(np.argmin(np.abs(junctions.values - expected[0]).sum(axis=1)))
        prefix = list(sia.prompt(PROMPTS[0]).tokens)
        *_, rows = sia.engine.trail(1, [], prefix, hidden=True)
        np.testing.assert_allclose(junctions.hidden[at].astype(np.float32), rows[-1], atol=5e-3)


@pytest.mark.parametrize("kind", ["merged", "head"])
def test_what_is_taken_between_junctions_gains_what_the_teacher_says(
    make_gguf: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """V after the token less V before it, of whole prefixes scored afresh."""
    base, teacher = make_gguf("base"), make_gguf(kind, seed=0)
    config = replace(CONFIG, threshold=1.55)
    with SIA.load(base, teacher, slots=2, hidden_states=True, max_candidates=6, setup=EXACT) as sia:
        collect(sia, PROMPTS, tmp_path / "j", config, {})
        taken, junctions = read_transitions(tmp_path / "j"), read_junctions(tmp_path / "j")[0]
        assert taken is not None and len(taken) > 6 and len(taken) + len(junctions) <= 60
        expected = []
        for text in range(config.texts):
            prompt = sia.prompt(PROMPTS[text % 4])
            seed = text_seed(0, str(text), 0)
            steps = list(sia.generate(prompt, config.steering(text), max_tokens=10, seed=seed))
            tokens = [step.token for step in steps]
            assert sia.value is not None
            values = sia.value.trajectory(0, prompt, tokens)
            for at in range(1, len(tokens)):
                if not steps[at].values_asked:
                    expected.append((text % 4, tokens[at], values[at] - values[at - 1]))
        found = zip(taken.prompts.tolist(), taken.ids.tolist(), taken.gains.tolist(), strict=True)
        by_token = sorted((p, t, g) for p, t, g in found)
        # A head knows V before the first token, too, and not after the last.
        missing = [e for e in expected if not any(e[:2] == f[:2] and abs(e[2] - f[2]) < 1e-4 for f in by_token)]
        assert len(missing) <= (config.texts if kind == "head" else 0)
        assert kind == "head" or len(by_token) == len(expected)


def test_an_interrupted_collection_goes_on(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    with SIA.load(base_gguf, value_gguf, hidden_states=True, max_candidates=6, setup=EXACT) as sia:
        collect(sia, PROMPTS, whole, CONFIG, {})

        def stop(progress: Progress) -> None:
            if progress.texts == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collect(sia, PROMPTS, halves, CONFIG, {}, stop)
        collect(sia, PROMPTS, halves, CONFIG, {})
        a, b = read_junctions(whole)[0], read_junctions(halves)[0]
        assert len(a.values) > CONFIG.texts and same(a, b)
        with pytest.raises(ConfigError, match="was begun with k = 6, now it is 5"):
            collect(sia, PROMPTS, halves, replace(CONFIG, k=5), {})


def test_prompts_are_continued_as_plain_text_where_that_is_asked_for(
    base_gguf: Path, value_gguf: Path, tmp_path: Path
) -> None:
    with SIA.load(base_gguf, value_gguf, hidden_states=True, max_candidates=6, setup=EXACT) as sia:
        for raw in (False, True):
            config = replace(CONFIG, texts=1, max_tokens=1, raw=raw)
            collect(sia, PROMPTS, tmp_path / str(raw), config, {})
            junctions, settings = read_junctions(tmp_path / str(raw))
            assert settings.get("raw") == (raw or None)
            *_, rows = sia.engine.trail(0, [], list(sia.prompt(PROMPTS[0], raw).tokens), hidden=True)
            np.testing.assert_allclose(junctions.hidden, rows[-1:], atol=5e-3)
        with pytest.raises(ConfigError, match="was begun with raw = None, now it is True"):
            collect(sia, PROMPTS, tmp_path / "False", config, {})


def test_prompts_that_do_not_fit_are_left_out_and_counted(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    """The other texts are those that are written without them; a second run says the same."""
    long, said = "a dog " * 64, list[Progress]()
    with SIA.load(base_gguf, value_gguf, hidden_states=True, max_candidates=6, setup=EXACT, n_ctx=64) as sia:
        collect(sia, PROMPTS, tmp_path / "all", CONFIG, {})
        collect(sia, [*PROMPTS[:3], long], tmp_path / "some", CONFIG, {}, said.append)
        assert [p.left_out for p in said] == [0, 0, 0, 1, 1, 1]  # those behind it do not wait
        whole, some = (read_junctions(tmp_path / name)[0] for name in ("all", "some"))
        np.testing.assert_array_equal(some.values, whole.values[whole.prompts != 3])
        assert set(whole.prompts.tolist()) == {0, 1, 2, 3} and str(said[-1]).startswith(
            f"6 of 6 texts (1 left out: their prompts do not fit the context), {len(some)} junctions"
        )
        collect(sia, [*PROMPTS[:3], long], tmp_path / "some", CONFIG, {}, said.append)
        assert (len(said), said[-1].left_out) == (7, 1)
        for _ in range(2):
            with pytest.raises(ContextFullError, match=r"the prompt is \d+ tokens, the context holds 64; shorten"):
                collect(sia, [long], tmp_path / "none", CONFIG, {})


def test_prompts_that_the_teachers_template_makes_too_long_are_left_out(
    base_gguf: Path, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    """They fit the base, and had ended the whole run."""
    wordy = make_gguf("merged", seed=1, template="{{ messages[0].content * 16 }}")
    prompts, said = [*PROMPTS[:3], "a dog " * 4], list[Progress]()
    with SIA.load(base_gguf, wordy, hidden_states=True, max_candidates=6, setup=EXACT, n_ctx=72) as sia:
        collect(sia, prompts, tmp_path / "some", CONFIG, {}, said.append)
        assert (said[-1].texts, said[-1].left_out) == (6, 1)
        assert set(read_junctions(tmp_path / "some")[0].prompts.tolist()) == {0, 1, 2}
        with pytest.raises(ContextFullError, match=r"the prompt is \d+ tokens for .*, its context holds \d+"):
            collect(sia, prompts[3:], tmp_path / "none", CONFIG, {})


@pytest.mark.parametrize("kind", ["one", "several", "guides"])
def test_a_teacher_trained_anew_is_another(make_gguf: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """Though its file has the name and the size of the one before."""
    base, file, folder = make_gguf("base"), tmp_path / "value.gguf", tmp_path / "j"
    first, second = (make_gguf("base" if kind == "guides" else "merged", seed=seed).read_bytes() for seed in (3, 4))
    assert len(first) == len(second) and first != second
    teachers: dict[str, Specs] = {
        "one": file, "several": [(file, 1.0), (make_gguf("head"), 2.0)], "guides": Guides(file)
    }  # fmt: skip
    teacher = teachers[kind]

    def run(texts: int, anew: bool = False) -> int:
        collecting = replace(CONFIG, texts=texts, max_tokens=3)
        few = FitConfig(hidden=4, epochs=1)
        return distill(base, teacher, PROMPTS, tmp_path / "q.gguf", folder, collecting, few, EXACT, anew=anew).junctions

    for content, texts in ((first, 2), (first, 4)):  # more texts of the same teacher are added
        file.write_bytes(content)
        found = run(texts)
    values = read_junctions(folder)[0].values
    assert found == len(values) > 2
    file.write_bytes(second)
    with pytest.raises(ConfigError, match=r"j was begun with teacher_files = .*; give the same settings, or another"):
        run(4)
    run(4, anew=True)
    assert not np.isin(read_junctions(folder)[0].values, values).any()


def test_what_cuts_or_moves_the_texts_is_noted(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    """Texts cut at another context, values of a coarser cache: neither goes on with what is there."""

    def run(**over: Any) -> int:
        setup, few = replace(Setup(n_ctx=128, n_threads=1), **over), FitConfig(hidden=4, epochs=1)
        files = (base_gguf, value_gguf, PROMPTS, tmp_path / "q.gguf", tmp_path / "j")
        return distill(*files, replace(CONFIG, texts=2), few, setup).junctions

    found = run()
    assert found == run() == 20
    for name, other in (("n_ctx", 64), ("type_k", "f32"), ("type_v", "f32")):
        with pytest.raises(ConfigError, match=f"j was begun with {name} = (128|None), now it is '?{other}'?; give the"):
            run(**{name: other})


def test_equal_prompts_are_one_and_one_alone_is_refused(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    """Else a prompt that is learned from would be held out, too; and a refusal would come after all texts."""
    folder, few = tmp_path / "j", FitConfig(hidden=4, epochs=1)

    def run(prompts: list[str], texts: int) -> None:
        collecting = replace(CONFIG, texts=texts, max_tokens=3)
        distill(base_gguf, value_gguf, prompts, tmp_path / "q.gguf", folder, collecting, few, EXACT)

    for prompts, texts in ((["hello"], 4), (["hello", "hello"], 4), (PROMPTS, 1)):
        with pytest.raises(DataError, match=f"{texts} texts of 1 prompt were asked for; .* more prompts, or ask for"):
            run(prompts, texts)
    assert not folder.exists()
    run(["hello", "rain", "hello", "rain", "a dog"], 6)
    assert read_junctions(folder)[0].prompts.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3 + [4] * 3 + [0] * 3


def test_a_base_trained_anew_is_another(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    base, asked = (
        tmp_path / "base.gguf",
        ["learn", "Be brief.", "--texts", "2", "--max-tokens", "2", "--threshold", "2.302"],
    )
    asked += ["-m", str(base), "-o", str(tmp_path / "a.gguf"), "--threads", "1"]
    for seed, refused in ((0, False), (0, False), (1, True)):
        base.write_bytes(make_gguf("base", seed=seed).read_bytes())
        done = CliRunner().invoke(main, asked)
        assert done.exit_code == 2 and ("was begun with base = " in done.stderr) == refused, done.output


def test_a_file_from_two_sentences_steers(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    base, prompts, out = make_gguf("base"), tmp_path / "prompts.txt", tmp_path / "words.gguf"
    prompts.write_text("\n".join(PROMPTS))
    assert instruction("Be brief.") == "Be brief. {prompt}" and instruction("{prompt}!") == "{prompt}!"
    few = ["--texts", "6", "--max-tokens", "8", "--threshold", "0", "--hidden", "4", "--epochs", "2"]
    asked = ["Be brief.", "--minus", "Be long.", "-m", base, "--prompts", prompts, "-o", out, *few, "--threads", "1"]
    done = CliRunner().invoke(main, ["learn", *map(str, asked)])
    assert done.exit_code == 0, done.output
    assert "differences within a junction explained" in done.stdout
    file = QHeadFile.read(out)
    assert file.meta.distillation is not None and file.meta.distillation.teacher == "words"
    # What a token adds to a log ratio is not what a text is worth.
    assert file.qhead.level_weight is None
    with SIA.load(base, out, setup=EXACT) as sia:
        assert BestOf(sia, 2).by == "likelihood"
        with pytest.raises(ConfigError, match="words knows differences among candidates, not what a text is worth"):
            BestOf(sia, 2, "value")
        made = sia.generate("hello", SiaConfig(gate="dense", beta_unit="spread"), max_tokens=5)
        assert len(list(made)) == 5 and made.stats.junctions == 5
    for unsure in (["--k", "2"], ["--threshold", "2.4"]):
        none = CliRunner().invoke(main, ["learn", "Be brief.", "-m", str(base), "-o", str(out), *unsure])
        assert none.exit_code == 2 and "so no token would be a junction: lower the threshold" in none.stderr
    both = CliRunner().invoke(main, ["learn", *map(str, asked), "-v", str(out)])
    assert both.exit_code == 2 and "a sentence and -v were given" in both.stderr
    away = CliRunner().invoke(main, ["learn", *map(str, asked[1:]), "-v", str(out)])
    assert away.exit_code == 2 and "a sentence and -v were given" in away.stderr


def test_a_base_that_holds_chats_is_asked_questions_and_another_needs_its_own(
    make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    asked = ["learn", "Be brief.", "--texts", "2", "--max-tokens", "2", "-o", str(tmp_path / "a.gguf"), "-m"]
    few = ["--threshold", "2.302", "--threads", "1"]
    done = CliRunner().invoke(main, [*asked, str(make_gguf("base")), *few])
    # Two texts of two tokens teach nothing, but they were written.
    assert "2 of 2 texts" in done.stderr
    refused = CliRunner().invoke(main, [*asked, str(make_gguf("base", template="")), *few])
    assert refused.exit_code == 2 and "no chat template, so it is not for questions" in refused.stderr
    assert "--prompts FILE" in refused.stderr


def test_one_model_under_two_instructions_shares_its_weights(base_gguf: Path) -> None:
    pair = Guides(base_gguf, base_gguf, plus_prompt="a {prompt}", minus_prompt="b {prompt}")
    with SIA.load(base_gguf, pair, setup=EXACT) as sia:
        guides = source(sia, GuidePair)
        assert guides.minus is not None and guides.plus.model is guides.minus.model is sia.model


def test_branches_are_targets_without_a_teacher(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    base, out, targets = make_gguf("base"), tmp_path / "q.gguf", tmp_path / "branched.jsonl"
    lines: list[dict[str, Any]] = []
    for p, prompt in enumerate(PROMPTS):
        branches = [
            {"at": at, "ids": [3 + at, 9, 40][:n], "logits": [2.0, 1.5, 1.0][:n], "means": [0.5, 0.25, float(p)][:n]}
            | {"stds": [0.0] * n, "counts": [2, 2, 4][:n]}
            for at, n in ((0, 3), (2, 2))
        ]
        lines.append({"prompt_id": p, "prompt": prompt, "tokens": [5, 6, 7], "branches": branches})
    lines[2] |= {"rendered": "Say: the king"}  # by another template than the base's own
    lines.append({"prompt_id": 0, "prompt": "hello", "tokens": [5], "reward": 0.1})
    lines[3]["response"] = "one\u2028line"
    lines.append(lines[0] | {"prompt_id": 9})  # the same prompt again
    targets.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    with SIA.load(base, None, setup=EXACT, hidden_states=True) as sia:
        found = read_targets(sia, targets)
        assert found.ids.tolist()[:2] == [[3, 9, 40], [5, 9, 0]] and found.prompts.tolist() == [
            0,
            0,
            1,
            1,
            2,
            2,
            3,
            3,
            0,
            0,
        ]
        np.testing.assert_array_equal(found.values[:2], [[0.5, 0.25, 0.0], [0.5, 0.25, np.nan]])
        assert found.counts is not None and found.counts.tolist()[:2] == [[2, 2, 4], [2, 2, 0]]
        for damage in ({"at": 9}, {"ids": 3}, {"ids": None}, {"at": 1e999}):
            (tmp_path / "damaged.jsonl").write_text(json.dumps(lines[0] | {"branches": [branches[0] | damage]}))
            with pytest.raises(DataError, match=r"damaged.jsonl, line 1: .*; expected a line of `sia-convert branch`"):
                read_targets(sia, tmp_path / "damaged.jsonl")
        long = lines[0] | {"tokens": [5] * (n := sia.engine.capacity), "branches": [branches[0] | {"at": n - 1}]}
        for entry in (long, lines[0] | {"prompt": "a dog " * sia.n_ctx}):
            (tmp_path / "long.jsonl").write_text(json.dumps(entry))
            with pytest.raises(ContextFullError, match=r"long.jsonl, line 1: .*raise "):
                read_targets(sia, tmp_path / "long.jsonl")
        read, other = sia.prompt("a dog").tokens, sia.prompt("Say: the king", raw=True).tokens
        for at, tokens in ((2, read), (3, (*read, 5, 6)), (4, other)):
            *_, rows = sia.engine.trail(0, [], list(tokens), hidden=True)
            np.testing.assert_allclose(found.hidden[at], rows[-1], atol=1e-4)
    asked = [
        "-m",
        base,
        "--targets",
        targets,
        "-o",
        out,
        "--form",
        "bilinear",
        "--rank",
        "2",
        "--hidden",
        "0",
        "--epochs",
        "1",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(main, ["learn", *map(str, asked)])
    assert done.exit_code == 0, done.output
    facts = QHeadFile.read(out).meta.distillation
    assert facts is not None and (facts.teacher, facts.k) == ("branches", 3)
    both = CliRunner().invoke(main, ["learn", "Be brief.", *map(str, asked)])
    assert both.exit_code == 2 and "a sentence and --targets were given" in both.stderr
    unused = CliRunner().invoke(main, ["learn", *map(str, asked), "--prompts", "x.txt", "--texts", "1000", "--raw"])
    assert unused.exit_code == 2 and "--prompts, --texts, --raw and --targets were given" in unused.stderr
    targets.write_text(json.dumps(lines[-2]))
    none = CliRunner().invoke(main, ["learn", *map(str, asked)])
    assert none.exit_code == 2 and "no text in it has branches" in none.stderr
