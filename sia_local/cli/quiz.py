"""`sia-local quiz`: whether steering hurts what a model knows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..config import Setup, SiaConfig, setting
from ..errors import ConfigError
from ..progress import Progress
from .from_dataclass import build, options_for
from .many import shipped_prompts
from .options import model_options, profile_option
from .resolve import config_from, load_from, loading_from, model_paths, profile_fields

SETUP = Setup(n_ctx=512)
QUESTIONS = "examples/knowledge.jsonl"


@dataclass(frozen=True)
class QuizConfig:
    """betas: strengths of steering every token, in spreads of V, beside the settings that come with the value file."""

    betas: tuple[float, ...] = setting((0.5, 1.0, 2.0), "Strengths at every token, in spreads of the value model.")
    limit: int | None = setting(None, "Only the first so many questions.")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit is {self.limit}; expected at least 1 question")


@click.command()
@click.argument("questions", required=False, type=click.Path(path_type=Path))
@model_options(SETUP)
@options_for(QuizConfig)
@profile_option
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write all figures there, as JSON.")
def quiz(questions: Path | None, out: Path | None, **options: Any) -> None:
    """Ask multiple-choice questions before and after steering.

    QUESTIONS is JSONL: question, choices (the right one first) and, if any, stem, with which the answer begins, and
    topic. Without it, 309 simple ones that come with the program are asked. The choice of the highest log-likelihood
    counts as the answer.
    """
    from ..evaluation.quiz import Arm, read_questions, run_quiz
    from ..files import atomic_write, finite

    asked = build(QuizConfig, options)
    usual = partial(shipped_prompts, QUESTIONS, "name a file of questions, as in `sia-local quiz questions.jsonl`")
    items = read_questions(questions or usual())[: asked.limit]
    if not model_paths(options)[1]:
        raise ConfigError("no value model was given; give one with -v value.gguf, or guides with --guide-plus")
    dense = SiaConfig(gate="dense", beta_unit="spread")
    arms = [Arm("off", replace(dense, gate="off"))]
    if fields := profile_fields(options):
        arms.append(Arm("settings of the value file", config_from(options, fields)))
    arms += [Arm(f"every token, beta {beta:g}", replace(dense, beta=beta)) for beta in asked.betas]
    with load_from(options, dense, loading_from(options, SETUP)) as sia:
        result = run_quiz(sia, items, arms, Progress("questions", len(items)).update)
    click.echo(_table(result))
    if out is not None:
        with atomic_write(out) as handle:
            whole = result | {"arms": {arm.name: asdict(arm.config) for arm in arms}}
            json.dump(finite(whole), handle, indent=1, allow_nan=False)


def _table(result: dict[str, Any]) -> str:
    lines = [f"{result['questions']} questions; a guess is right at {100 * result['chance']:.0f} %", ""]
    lines.append(f"{'':28} {'right':>18} {'against off':>20} {'changed':>8} {'P(right)':>9}")
    for row in result["rows"]:
        right, against = row["right"], row.get("difference")
        interval = f"{100 * right['mean']:.1f} % [{100 * right['low']:.0f}, {100 * right['high']:.0f}]"
        moved = (
            ""
            if against is None
            else f"{100 * against['mean']:+.1f} [{100 * against['low']:+.1f}, " + (f"{100 * against['high']:+.1f}]")
        )
        changed = "" if against is None else f"{100 * row['changed']:.1f} %"
        lines.append(f"{row['arm']:28} {interval:>18} {moved:>20} {changed:>8} {row['p']['mean']:>9.3f}")
    return "\n".join(lines)
