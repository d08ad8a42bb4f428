"""What a model knows, before and after steering: multiple-choice questions answered by log-likelihood.

A question is asked in the model's chat template, its answer begins with a stem, and every choice is scored by the sum
of the log-probabilities of its tokens behind the stem, as language-model evaluation harnesses score multiple choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ContextFullError, DataError
from ..files import parse_json
from ..generation.sia import SIA
from ..packed import lines
from ..records import Float64, Prompt
from .metrics import bootstrap_mean, paired_difference


@dataclass(frozen=True)
class Question:
    """choices: continuations of `stem`, the first of them the right one. topic: for tables."""

    question: str
    stem: str
    choices: tuple[str, ...]
    topic: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.question, self.stem, self.topic)):
            raise DataError("question, stem and topic have to be text")
        if (
            len(set(self.choices)) != len(self.choices)
            or len(self.choices) < 2
            or not all(map(str.strip, self.choices))
        ):
            raise DataError(
                f"the question {self.question!r} has the choices {self.choices}; expected two or more, none empty"
            )


@dataclass(frozen=True)
class Arm:
    """A way of steering to answer under, and its name."""

    name: str
    config: SiaConfig


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """JSONL: `question`, `choices` with the right one first, and, if any, `stem` and `topic`. Raises DataError."""
    questions = []
    for number, line in lines(path, "questions, JSONL"):
        try:
            row = parse_json(line)
            if not isinstance(choices := row["choices"], list):
                raise TypeError(f"choices are {choices!r}, no list")
            choices = tuple(map(str, choices))
            questions.append(Question(row["question"], row.get("stem", ""), choices, row.get("topic", "")))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"line {number} of '{path}' is no question ({type(error).__name__}: {error}); expected JSON with "
                "question and choices, the right one first"
            ) from error
    if not questions:
        raise DataError(f"'{path}' holds no questions; expected one a line, as JSON")
    return questions


def answer(sia: SIA, question: Question, configs: Sequence[SiaConfig]) -> Float64:
    """float64[configs, choices]: log P of every choice behind the stem, nats, under every configuration."""
    prompt, answers = _read(sia, question)
    return np.array(
        [[sia.log_likelihoods(prompt, tokens, config, known).sum() for tokens, known in answers] for config in configs]
    )


def _read(sia: SIA, question: Question) -> tuple[Prompt, list[tuple[list[int], int]]]:
    """The prompt, and of every choice the answer's tokens and how many of them are the stem's."""
    prompt, answers = sia.prompt(question.question), []
    stem = sia.model.tokenize(question.stem, add_special=False, parse_special=False)
    for choice in question.choices:
        text = f"{question.stem} {choice}" if question.stem else choice
        tokens = sia.model.tokenize(text, add_special=False, parse_special=False)
        if (n := len(prompt.tokens) + len(tokens)) > sia.n_ctx:
            raise ContextFullError(f"question and answer are {n} tokens, the context holds {sia.n_ctx}; raise --ctx")
        known = next((i for i, (a, b) in enumerate(zip(stem, tokens, strict=False)) if a != b), len(stem))
        answers.append((tokens, known))
    return prompt, answers


def run_quiz(
    sia: SIA, questions: Sequence[Question], arms: Sequence[Arm], report: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Accuracy of every arm with its interval, against the first arm prompt by prompt, and by topic. As JSON data.

    right: share of questions whose first choice is the likeliest; p: mean probability of the first among the choices.
    Raises ContextFullError for a question that the context does not hold, before any is answered.
    """
    for number, question in enumerate(questions, 1):
        try:
            _read(sia, question)
        except ContextFullError as error:
            raise ContextFullError(f"question {number}: {error}", error.tokens, error.holds) from None
    scores = np.empty((len(questions), len(arms)), dtype=object)
    for i, question in enumerate(questions):
        for j, logps in enumerate(answer(sia, question, [arm.config for arm in arms])):
            scores[i, j] = logps
        report()
    right = np.array([[float(np.argmax(logps) == 0) for logps in one] for one in scores])
    shares = np.array([[float(1 / np.exp(logps - logps[0]).sum()) for logps in one] for one in scores])
    topics = list(dict.fromkeys(q.topic for q in questions))
    rows = []
    for j, arm in enumerate(arms):
        row: dict[str, Any] = {"arm": arm.name, "right": asdict(bootstrap_mean(right[:, j]))}
        row["p"] = asdict(bootstrap_mean(shares[:, j]))
        if j:
            row["difference"] = asdict(paired_difference(right[:, j], right[:, 0]))
            row["changed"] = float((right[:, j] != right[:, 0]).mean())
        row["topics"] = {t: float(right[[q.topic == t for q in questions], j].mean()) for t in topics}
        rows.append(row)
    chance = float(np.mean([1 / len(q.choices) for q in questions]))
    return {"questions": len(questions), "chance": chance, "rows": rows}
