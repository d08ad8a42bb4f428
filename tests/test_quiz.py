"""How likely a given text is under steering, and questions answered by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sia_convert.data.topics import seed_tasks
from sia_convert.demo.judge import read_stories

from sia_local import SIA, SiaConfig
from sia_local.errors import ConfigError, ContextFullError, DataError
from sia_local.evaluation.quiz import Arm, Question, answer, read_questions, run_quiz
from sia_local.shipped import find_file
from sia_local.steering.choice import Choice

STEERED = SiaConfig(k=4, gate="dense", beta=2.0, tail=True, center=True)


@pytest.fixture
def sia(base_gguf: Path, value_gguf: Path) -> SIA:
    return SIA.load(base_gguf, value_gguf, n_ctx=128, n_threads=1, type_k="f32", type_v="f32")


@pytest.mark.parametrize("config", [SiaConfig(gate="off", tail=True), STEERED])
def test_what_was_written_is_as_likely_as_the_writing_says(sia: SIA, config: SiaConfig) -> None:
    steps = list(sia.generate("ab", config, max_tokens=12, seed=3, raw=True, trace=True))
    found = sia.log_likelihoods(sia.prompt("ab", raw=True), [step.token for step in steps], config)
    assert any(step.steered for step in steps) == (config is STEERED)
    compared = 0
    for step, logp in zip(steps, found, strict=True):
        assert step.candidates is not None
        at = np.flatnonzero(step.candidates.ids == step.token)
        if len(at):  # a token of the tail is in no trace
            assert logp == pytest.approx(float(np.log(step.candidates.p_steered[at[0]])), abs=1e-6)
            compared += 1
        if not step.steered:
            assert logp == pytest.approx(step.logprob, abs=1e-6)
    assert compared > 0


def test_a_level_of_the_values_makes_nothing_likelier(sia: SIA, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, tokens = sia.prompt("ab", raw=True), sia.model.tokenize("hello there")
    value: Any = sia.value
    for config in (STEERED, replace(STEERED, min_share=0.5, center=False)):
        plain, score = sia.log_likelihoods(prompt, tokens, config), value.score
        with monkeypatch.context() as patch:
            patch.setattr(value, "score", lambda *a, score=score: [one + 7.0 for one in score(*a)])
            np.testing.assert_allclose(sia.log_likelihoods(prompt, tokens, config), plain, atol=1e-5)


def test_candidates_that_nobody_scored_are_average_ones_beside_a_kept_tail() -> None:
    class Two:
        spread: float | None = None
        max_candidates = 2

    choice = Choice(SiaConfig(k=3, gate="dense", tail=True), 0, Two())
    look = choice.look(np.array([3.0, 2.0, 1.0, 0.0]))
    assert look.asked.tolist() == [0, 1] and len(look.ids) == 4
    scores = choice.weigh(look, np.array([3.0, 5.0])).scores
    assert scores.tolist() == [6.0, 7.0, 5.0, 0.0]


def test_every_token_has_a_probability(sia: SIA) -> None:
    prompt = sia.prompt("ab", raw=True)
    p = [np.exp(sia.log_likelihoods(prompt, [5, token], STEERED, known=1)[0]) for token in range(sia.model.n_vocab)]
    assert sum(p) == pytest.approx(1.0, abs=1e-6)
    assert min(p) > 0


def test_choices_are_scored_behind_the_stem(sia: SIA) -> None:
    question = Question("ab", "a", ("b", "c"))
    off = SiaConfig(gate="off")
    scored = answer(sia, question, [off])[0]
    tokens = [sia.model.tokenize(f"a {choice}") for choice in question.choices]
    whole = [sia.log_likelihoods(sia.prompt("ab"), ids, off).sum() for ids in tokens]
    assert scored[0] - scored[1] == pytest.approx(whole[0] - whole[1], abs=1e-6)


def test_a_tilt_too_strong_for_floats_leaves_likelihoods_to_compare(sia: SIA) -> None:
    prompt, tokens = sia.prompt("ab", raw=True), sia.model.tokenize("hello there")
    at = [sia.log_likelihoods(prompt, tokens, replace(STEERED, beta=beta)) for beta in (1e4, 2e4, 3e4)]
    assert np.isfinite(at).all() and min(at[0]) < -800  # exp(-746) is 0
    np.testing.assert_allclose(at[2] - at[1], at[1] - at[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match=r"under a penalty, .*; give settings without them"):
        sia.log_likelihoods(prompt, tokens, SiaConfig(gate="off").with_sampling(top_p=0.9))


def test_a_question_too_long_is_told_before_any_is_answered(sia: SIA, monkeypatch: pytest.MonkeyPatch) -> None:
    short, arms = Question("ab", "", ("a", "b")), [Arm("off", SiaConfig(gate="off"))]
    monkeypatch.setattr(sia, "log_likelihoods", None)
    for long in (Question("ab" * 400, "", ("a", "b")), Question("ab", "", ("a", "b" * 400))):
        with pytest.raises(ContextFullError, match=r"question 2: .* tokens, the context holds 128; .*--ctx"):
            run_quiz(sia, [short, long], arms)


def test_quiz_counts_and_pairs(sia: SIA) -> None:
    questions = [Question(f"{a}?", "", ("a", "b", "c"), topic) for a, topic in (("a", "x"), ("b", "x"), ("c", "y"))]
    arms = [Arm("off", SiaConfig(gate="off")), Arm("same", SiaConfig(gate="dense", beta=0.0))]
    result = run_quiz(sia, questions, arms)
    off, same = result["rows"]
    assert result["questions"] == 3 and result["chance"] == pytest.approx(1 / 3)
    assert same["right"] == off["right"] and same["changed"] == 0.0 and same["difference"]["mean"] == 0.0
    expected = [float(np.argmax(answer(sia, q, [arms[0].config])[0]) == 0) for q in questions]
    assert off["right"]["mean"] == pytest.approx(np.mean(expected))
    assert off["topics"] == {"x": np.mean(expected[:2]), "y": expected[2]}


@pytest.mark.parametrize("sign", "\u2028\u2029\x85")
def test_a_line_of_data_ends_at_a_line_feed_alone(tmp_path: Path, sign: str) -> None:
    """JSON may hold these as they are, though they end lines of Unicode text."""
    asked = {"question": f"a{sign}b", "choices": [f"c{sign}", "d"]}
    task = {"instruction": f"a{sign}b", "instances": [{"input": ""}]}
    path, tasks, stories = (tmp_path / name for name in ("questions.jsonl", "tasks.jsonl", "stories.jsonl"))
    for file, row in ((path, asked), (tasks, task), (stories, {"text": f"A dog{sign} ran."})):
        file.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 10)
    assert read_questions(path) == [Question(f"a{sign}b", "", (f"c{sign}", "d"))] * 10
    assert [len(list(seed_tasks(tasks, held_out))) for held_out in (False, True)] == [9, 1]
    assert len(read_stories([stories])) == 10
    for line in ("{}", '{"text": 1}', "x"):
        stories.write_text(f'{{"text": "A dog ran."}}\n{line}\n')
        with pytest.raises(DataError, match=r"stories.jsonl, line 2"):
            read_stories([stories])


def test_questions_come_with_the_program_and_others_are_refused(tmp_path: Path) -> None:
    path = find_file("examples/knowledge.jsonl")
    assert path is not None
    questions = read_questions(path)
    assert len(questions) == 309
    assert {len(question.choices) for question in questions} == {4}
    bad = tmp_path / "bad.jsonl"
    for row in ({}, *({"choices": choices} for choices in (["b"], ["b", "b"], ["b", " "], "bc"))):
        bad.write_text(json.dumps({"question": "a", **row}))
        with pytest.raises(DataError):
            read_questions(bad)
