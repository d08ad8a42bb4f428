"""What a text costs in decoded rows, and arms compared at equal cost.

A row is one token in one model's decode. The base decodes a row a token. What the values cost depends on where they
come from: see `value_rows`. Prompts are left out: they are read once in every arm, whatever it does with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .arms import Arm
from .samples import Sample

# How value sources are read where nothing else is known: one model of its own, one guide.
USUAL_KINDS: Mapping[str, Sequence[str]] = {"value": ("value",), "guide": ("guide",)}
# Costs within this factor are about equal.
_NEAR = 1.5
_KEPT = ("key", "series", "strength", "beta", "kl_budget", "reward", "judge", "kl", "base_rows", "value_rows")

Row = Mapping[str, Any]


def value_rows(sample: Sample, kinds: Sequence[str], picked: bool = False, judged: bool = False) -> int:
    """Rows that the models behind the values decoded for one text; kinds: of each of them, `guide` or keys.KINDS.

    A value model decodes the candidates of every junction and, on its way to the last one, the tokens in between
    (the winner of a junction is already decoded); what it leaves unread behind the last junction is counted, too,
    since a sample does not say where that was. `value:3`: a shortlist leaves it three candidates a junction.
    A value-head's candidates run in the base's decode, where the winner saves the base its next row. A Q-head decodes
    nothing. A guide reads the text along, whatever the candidates.
    picked: the whole text is read once more for the value by which the best of N is chosen. judged: the gate judges
    values, so that candidates are scored at every token, steered or not.
    """
    rows = 0
    looks = sample.steps - sample.thought if judged and sample.values_asked else sample.junctions
    for model in kinds:
        kind, _, few = model.partition(":")
        if looks and kind == "value-qhead":
            pass
        elif looks and kind == "guide":
            rows += sample.steps
        elif looks:
            read = 0 if kind == "value-head" else sample.steps
            asked = min(sample.values_asked, int(few) * looks) if few else sample.values_asked
            rows += asked - looks + read
        if picked:
            rows += sample.steps
    return rows


def rows_of(arm: Arm, samples: Sequence[Sample], kinds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Mean rows for one kept text: `base_rows`, `value_rows`; all N texts of Best-of-N count. samples: non-empty."""
    mine = kinds.get(arm.source, ()) if arm.uses_values else ()
    scale = arm.best_of / len(samples)
    return {
        "base_rows": scale * sum(s.steps for s in samples),
        "value_rows": scale * sum(value_rows(s, mine, arm.by_value, arm.judges_values) for s in samples),
    }


def row_count(row: Row) -> float:
    """Rows of both kinds for one kept text, of a row of the summary."""
    return float(row["base_rows"] + row["value_rows"])


def equal_compute(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Steering alone, Best-of-N alone and both, side by side where they cost about the same number of rows.

    The levels are the costs of the arms that keep the best of N. At each, a way is its series of the nearest cost
    (within a factor of 1.5), at the beta of its highest reward; a level with only one way is left out.
    """
    ways: dict[str, list[Row]] = {}
    for row in rows:
        if (way := _way(row)) is not None:
            ways.setdefault(way, []).append(row)
    out = []
    for level in _levels(sorted(row_count(row) for row in rows if row["best_of"] > 1)):
        found = {way: near for way, mine in ways.items() if (near := _nearest(mine, level)) is not None}
        if len(found) > 1:
            out.append({"rows": level, "ways": {way: {n: row.get(n) for n in _KEPT} for way, row in found.items()}})
    return out


def _way(row: Row) -> str | None:
    """The way of spending compute that a row stands for; None for controls and settings of a user's own."""
    if row["family"] not in ("sparse", "dense", "bon"):
        return None
    parts = [] if row["family"] == "bon" else [str(row["family"])]
    parts += ["best of N"] if row["best_of"] > 1 else []
    return ", ".join(parts) + (" by value" if row["best_of"] > 1 and row["pick"] == "value" else "")


def _levels(costs: Sequence[float]) -> list[float]:
    """The geometric means of groups of costs (ascending) that lie close together."""
    groups: list[list[float]] = []
    for cost in costs:
        if groups and cost <= _NEAR * groups[-1][0]:
            groups[-1].append(cost)
        else:
            groups.append([cost])
    return [math.exp(sum(map(math.log, group)) / len(group)) for group in groups]


def _nearest(rows: Sequence[Row], level: float) -> Row | None:
    def distance(row: Row) -> float:
        return abs(math.log(row_count(row) / level))

    near = min(rows, key=distance)
    if distance(near) > math.log(_NEAR):
        return None
    # Plain Best-of-N of two sizes is one series, so the size counts as well.
    same = [row for row in rows if (row["series"], row["best_of"]) == (near["series"], near["best_of"])]
    return max(same, key=lambda row: float(row["reward"]["mean"]))
