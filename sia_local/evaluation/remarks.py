"""What a reader of a comparison must be told: in sentences, from a summary's rows and frontiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .samples import Sample

Row = Mapping[str, Any]
# Mean lengths further apart than this share of them are told apart.
SAME_LENGTH = 0.05


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """Arms that do not reach the KL they are compared at, strengths past the useful ones, speeds of another run."""
    return [*_unreached(summary), *_turned(summary["rows"]), *_reused(summary["rows"])]


def at_equal_length(texts: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    """Mean reward of every arm (key -> texts) at the mean length of all texts; nothing where lengths hardly differ.

    What a token more is worth is the slope of reward on length within the arms, least squares (an analysis of
    covariance), so that an arm which only writes longer gains nothing by it.
    """
    lengths = {key: np.array([s.steps for s in mine], float) for key, mine in texts.items() if mine}
    rewards = {key: np.array([s.reward for s in texts[key]], float) for key in lengths}
    means = {key: float(x.mean()) for key, x in lengths.items()}
    if not means or max(means.values()) - min(means.values()) <= SAME_LENGTH * max(means.values()):
        return {}
    x = np.concatenate([lengths[key] - means[key] for key in lengths])
    y = np.concatenate([rewards[key] - rewards[key].mean() for key in lengths])
    slope = float(x @ y) / float(x @ x) if x.any() else 0.0
    middle = float(np.concatenate(list(lengths.values())).mean())
    return {key: float(rewards[key].mean()) + slope * (middle - means[key]) for key in lengths}


def _unreached(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for all series that are missing at a level because their strongest arm spends less."""
    reach: dict[str, float] = {}
    for row in summary["rows"]:
        if row["family"] != "off":
            reach[row["series"]] = max(reach.get(row["series"], 0.0), row["kl"]["mean"])
    levels = summary["equal_kl"]
    short = {
        name: most
        for name, most in reach.items()
        if any(name not in level["series"] and most < level["kl"] for level in levels)
    }
    if not short:
        return []
    named = ", ".join(f"{name} ({most:.1f})" for name, most in short.items())
    return [f"Without an entry where they are compared at more nats than their strongest arm spends: {named}."]


def _turned(rows: Sequence[Row]) -> list[str]:
    """Where more beta bought less reward, or less of the judge, beyond the interval of the best."""
    out = []
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row["beta"] is not None and row["best_of"] == 1:
            series.setdefault(row["series"], []).append(row)
    for name, mine in series.items():
        ordered = sorted(mine, key=lambda row: abs(row["beta"]))
        for what in ("reward", "judge"):
            if not all(what in row for row in ordered):
                continue
            best = max(ordered, key=lambda row: row[what]["mean"])
            worse = [r for r in ordered if abs(r["beta"]) > abs(best["beta"]) and r[what]["mean"] < best[what]["low"]]
            if worse:
                out.append(
                    f"{name}: the {what} turns after beta {best['beta']:g} ({best[what]['mean']:.3f}; "
                    f"{worse[0][what]['mean']:.3f} at beta {worse[0]['beta']:g})."
                )
    return out


def _reused(rows: Sequence[Row]) -> list[str]:
    """One sentence for texts that were not made in this run, whose speed is that of another."""
    named = [str(row["key"]) for row in rows if row.get("reused")]
    return [f"tokens/s marked * are of an earlier run: {', '.join(named)}."] if named else []
