"""How well predicted values stand in for a teacher's, at junctions neither was fitted on. Pure functions, float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .junctions import Junctions

Float64 = npt.NDArray[np.float64]
BETA = 2.0


@dataclass(frozen=True)
class Report:
    """r2: 1 - squared error / variance of the teacher's values, both centred within junctions, every candidate alike;
    r2_p: the same weighted and centred by the base's probabilities. agreement: share of junctions where argmax of
    z + beta V / spread is the same candidate for both. flip_rate and teacher_flip_rate: share of junctions whose
    likeliest candidate steering changes. gain_share: share of the teacher's one-step gain, see `gain`. gain and
    teacher_gain in reward units a junction; spread and teacher_spread: mean standard deviation among candidates.
    """

    junctions: int
    r2: float
    r2_p: float
    agreement: float
    flip_rate: float
    teacher_flip_rate: float
    gain: float
    teacher_gain: float
    spread: float
    teacher_spread: float

    @property
    def gain_share(self) -> float:
        return self.gain / self.teacher_gain if self.teacher_gain else float("nan")


def compare(junctions: Junctions, predicted: npt.NDArray[np.floating], beta: float = BETA) -> Report:
    """predicted float [J, k] against the teacher's values. beta in each one's own spreads. Untried candidates do not
    count; nor do junctions with fewer than two tried ones."""
    tried = junctions.tried()
    rows = tried.sum(axis=1) > 1
    if not rows.any():
        raise DataError(f"none of the {len(junctions)} junctions has two candidates with a value; collect more of them")
    tried = tried[rows]
    teacher = np.where(tried, junctions.values[rows], 0.0).astype(np.float64)
    ours = np.where(tried, predicted[rows], 0.0).astype(np.float64)
    logits = np.where(tried, junctions.logits[rows].astype(np.float64), -np.inf)
    ours_spread, teacher_spread = spread(ours, tried), spread(teacher, tried)
    ours_scores = logits + beta * ours / (ours_spread or 1.0)
    teacher_scores = logits + beta * teacher / (teacher_spread or 1.0)
    best, ours_best, teacher_best = (scores.argmax(axis=1) for scores in (logits, ours_scores, teacher_scores))
    start = expected(logits, teacher)
    return Report(
        junctions=int(rows.sum()),
        r2=explained(ours, teacher, tried.astype(np.float64)),
        r2_p=explained(ours, teacher, probabilities(logits)),
        agreement=float((ours_best == teacher_best).mean()),
        flip_rate=float((ours_best != best).mean()),
        teacher_flip_rate=float((teacher_best != best).mean()),
        gain=float((expected(ours_scores, teacher) - start).mean()),
        teacher_gain=float((expected(teacher_scores, teacher) - start).mean()),
        spread=ours_spread,
        teacher_spread=teacher_spread,
    )


def probabilities(scores: Float64) -> Float64:
    """softmax of every row, float64 [J, k]; -inf counts as 0."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def expected(scores: Float64, values: Float64) -> Float64:
    """Mean value under softmax(scores), float64 [J]. E of the teacher's V under the tilt, less E under the base, is
    the gain of one step."""
    return np.asarray((probabilities(scores) * values).sum(axis=1))


def centred(values: Float64, weights: Float64) -> Float64:
    """values less their weighted mean within each row; rows without weight stay as they are."""
    total = weights.sum(axis=1, keepdims=True)
    return np.asarray(values - (weights * values).sum(axis=1, keepdims=True) / np.where(total > 0, total, 1.0))


def explained(ours: Float64, teacher: Float64, weights: Float64) -> float:
    """Share of the teacher's weighted variance within junctions that ours explains; NaN if there is none."""
    t = centred(teacher, weights)
    error = centred(ours - teacher, weights)
    variance = float((weights * t * t).sum())
    return 1.0 - float((weights * error * error).sum()) / variance if variance > 0 else float("nan")


def spread(values: Float64, tried: npt.NDArray[np.bool_]) -> float:
    """Mean over junctions of the standard deviation among the tried candidates, in the units of the values."""
    weights = tried.astype(np.float64)
    d = centred(values, weights)
    return float(np.sqrt((weights * d * d).sum(axis=1) / weights.sum(axis=1)).mean())
