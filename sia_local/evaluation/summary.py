"""From samples to numbers: one row an arm, and arms compared at equal KL. Works on a finished samples file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..files import atomic_write
from ..prompts import PromptItem
from ..steering.tilt import bon_kl_bound
from .arms import Arm
from .cost import USUAL_KINDS, equal_compute, rows_of
from .metrics import (
    Frontier,
    Interval,
    bootstrap_mean,
    distinct_n,
    lift_share,
    paired_difference,
    repetition,
    reward_at_kl,
)
from .remarks import at_equal_length
from .samples import Sample

FEW_PROMPTS = 30
KL_LEVELS = 6
_WORD = re.compile(r"\w+|[^\w\s]")


def summarise(
    arms: Sequence[Arm],
    prompts: Sequence[PromptItem],
    samples: Sequence[Sample],
    meta: Mapping[str, Any],
    failed: Mapping[str, str] | None = None,
    at_kl: Sequence[float] = (),
    kinds: Mapping[str, Sequence[str]] = USUAL_KINDS,
    reused: Collection[str] = (),
) -> dict[str, Any]:
    """The summary as JSON data. Rows keep the arms' order; arms without samples appear under `failed` only.

    Intervals are over prompts; a prompt's samples are averaged first, those of equal prompts together, which are no
    independent draws. Arms are compared on the prompts that all of them finished. KL of a text: what steering spent
    (without truncation to the candidates), plus the bound log N − (N − 1)/N where the best of N was kept. kinds: the
    models behind a source of values, see cost.value_rows. reused: keys of arms with texts of an earlier run.
    """
    failed = dict(failed or {})
    equal: dict[str, list[str]] = {}
    for item in prompts:
        equal.setdefault(item.text, []).append(item.id)
    units = {ids[0]: ids for ids in equal.values()}
    kept: dict[str, dict[str, list[Sample]]] = {}
    everything: dict[str, list[Sample]] = {}
    for arm in arms:
        mine = [s for s in samples if s.arm == arm.key and s.reward is not None]
        chosen = winners(mine, arm)
        if chosen and arm.key not in failed:
            kept[arm.key], everything[arm.key] = _together(chosen, units), mine
    common = [unit for unit in units if kept and all(unit in chosen for chosen in kept.values())]
    there = {i for unit in common for i in units[unit]}
    rows: list[dict[str, Any]] = []
    frontiers: dict[str, list[tuple[float, np.ndarray, np.ndarray]]] = {}
    reference = kept.get("off") if common else None
    for arm in arms:
        if arm.key not in kept or not common:
            continue
        texts = {i: kept[arm.key][i] for i in common}
        bound = bon_kl_bound(arm.best_of) if arm.best_of > 1 else 0.0
        made = [s for s in everything[arm.key] if s.prompt_id in there]
        told = {"reused": True} if arm.key in reused else {}
        rows.append(_row(arm, texts, made, reference, bound) | rows_of(arm, made, kinds) | told)
        kl, reward = _means(texts, "kl_steering") + bound, _means(texts, "reward")
        frontiers.setdefault(arm.series, []).append((float(kl.mean()), kl, reward))
    lengths = at_equal_length({row["key"]: [s for i in common for s in kept[row["key"]][i]] for row in rows})
    rows = [row | ({"reward_at_length": lengths[row["key"]]} if lengths else {}) for row in rows]
    start = frontiers.pop("off", [])
    curves = {
        name: Frontier(*(np.stack([p[i] for p in start + points]) for i in (1, 2)))
        for name, points in frontiers.items()
        if start
    }
    off = [s for i in common for s in (reference or {}).get(i, [])]
    return {
        **meta,
        "prompts": len(common),
        "rows": rows,
        "equal_kl": _equal_kl(curves, at_kl),
        "equal_compute": equal_compute(rows),
        "entropy": _entropy(off),
        "failed": failed,
        "warnings": _warnings(len(common), len(units)),
    }


def winners(samples: Sequence[Sample], arm: Arm) -> dict[str, list[Sample]]:
    """Texts of an arm by prompt; of every whole group of N samples the best by the arm's pick."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: s.sample):
        groups.setdefault((sample.prompt_id, sample.sample // arm.best_of), []).append(sample)
    out: dict[str, list[Sample]] = {}
    for (prompt_id, _), group in groups.items():
        if len(group) == arm.best_of:
            out.setdefault(prompt_id, []).append(max(group, key=lambda s: s.score(arm.pick)))
    return out


def _together(texts: Mapping[str, list[Sample]], units: Mapping[str, Sequence[str]]) -> dict[str, list[Sample]]:
    """Texts by unit, of the units all of whose prompts have some."""
    return {
        unit: [text for i in ids for text in texts[i]] for unit, ids in units.items() if all(i in texts for i in ids)
    }


def _means(texts: Mapping[str, Sequence[Sample]], name: str) -> np.ndarray:
    return np.array([np.mean([getattr(s, name) for s in group]) for group in texts.values()], np.float64)


def _row(
    arm: Arm,
    texts: Mapping[str, Sequence[Sample]],
    everything: Sequence[Sample],
    reference: Mapping[str, Sequence[Sample]] | None,
    bound: float,
) -> dict[str, Any]:
    flat = [s for group in texts.values() for s in group]
    words = [_WORD.findall(s.text.lower()) for s in flat]
    steps = sum(s.steps for s in flat)
    junctions = sum(s.junctions for s in flat)
    seconds = sum(s.seconds for s in everything)
    row: dict[str, Any] = {
        "key": arm.key,
        "series": arm.series,
        "family": arm.family,
        "rate": arm.rate,
        "beta": arm.beta if arm.steers and arm.config is None else None,
        "kl_budget": arm.kl_per_token,
        "strength": arm.strength,
        "best_of": arm.best_of,
        "pick": arm.pick,
        "n": len(texts),
        "reward": asdict(bootstrap_mean(_means(texts, "reward"))),
        "junction_rate": junctions / steps,
        "kl": asdict(bootstrap_mean(_means(texts, "kl_steering") + bound)),
        "kl_sampled": float(np.mean(_means(texts, "kl_steering"))),
        "kl_bound": bound,
        "kl_truncation": float(np.mean(_means(texts, "kl_truncation"))),
        "kl_per_token": sum(s.kl_steering for s in flat) / steps,
        "perplexity": math.exp(sum(s.nll for s in flat) / steps),
        "distinct_1": distinct_n(words, 1),
        "distinct_2": distinct_n(words, 2),
        "distinct_3": distinct_n(words, 3),
        "repetition": repetition(words, 4),
        "tokens": steps / len(flat),
        "flips": sum(s.flips for s in everything) / max(1, sum(s.junctions for s in everything)),
        "values_per_token": sum(s.values_asked for s in everything) / sum(s.steps for s in everything),
        "tokens_per_second": sum(s.steps for s in everything) / seconds if seconds else None,
    }
    if all(s.judge is not None for s in flat):
        row["judge"] = asdict(bootstrap_mean(_means(texts, "judge")))
    if reference is not None and arm.key != "off":
        base = {i: reference[i] for i in texts}
        row["difference"] = asdict(paired_difference(_means(texts, "reward"), _means(base, "reward")))
        if "judge" in row and all(s.judge is not None for group in base.values() for s in group):
            row["judge_difference"] = asdict(paired_difference(_means(texts, "judge"), _means(base, "judge")))
    return row


def _equal_kl(curves: Mapping[str, Frontier], at_kl: Sequence[float]) -> list[dict[str, Any]]:
    """Every series at the same KL, where it reaches it, and its share of dense's lift over the base.

    The levels are dense's own measured points that others reach, else the points of others; unless given.
    """
    # Where several value files are compared, the first is the reference; steering away comes last.
    dense_ones = (name for name in sorted(curves, key=lambda name: "beta < 0" in name) if name.split(",")[0] == "dense")
    reference = next(dense_ones, None)
    dense = curves[reference] if reference is not None else None
    levels = list(at_kl)
    if not levels and dense is not None:
        reach = max((c.max_kl for name, c in curves.items() if name != reference), default=dense.max_kl)
        levels = _levels([dense], reach) or _levels([c for c in curves.values() if c is not dense], dense.max_kl)
    out = []
    for level in levels:
        entries = {}
        for name, curve in curves.items():
            reward = reward_at_kl(curve, level)
            if reward is None:
                continue
            share: Interval | None = None
            if dense is not None and name != reference:
                share = lift_share(curve, dense, level)
            entries[name] = {"reward": asdict(reward), "share": asdict(share) if share else None}
        out.append({"kl": level, "series": entries})
    return out


def _levels(curves: Sequence[Frontier], reach: float) -> list[float]:
    points = sorted({float(kl) for curve in curves for kl in curve.kl.mean(1)[1:] if kl <= reach})
    return points[:: max(1, math.ceil(len(points) / KL_LEVELS))]


def _entropy(off: Sequence[Sample]) -> dict[str, Any] | None:
    values = np.array([h for s in off for h in s.entropies or ()])
    if not len(values):
        return None
    counts, edges = np.histogram(values, bins=40, range=(0.0, float(values.max()) or 1.0))
    return {
        "edges": [float(x) for x in edges],
        "counts": [int(x) for x in counts],
        "quantiles": {str(q): float(np.quantile(values, q)) for q in (0.2, 0.5, 0.6, 0.8, 0.9, 0.95)},
    }


def _warnings(common: int, asked: int) -> list[str]:
    out = []
    if not common:
        out.append("No prompt was finished by every arm, so nothing can be compared yet.")
    elif common < FEW_PROMPTS:
        out.append(f"Only {common} prompts: the intervals say little; use at least {FEW_PROMPTS}, better 200 or more.")
    if 0 < common < asked:
        out.append(f"{asked - common} of {asked} prompts are missing in at least one arm and were left out.")
    return out


def write_alpaca(path: str | os.PathLike[str], samples: Sequence[Sample], arm: Arm, generator: str) -> None:
    """AlpacaEval's `model_outputs.json`: one object a prompt with `instruction`, `output` and `generator`."""
    outputs = [
        {"instruction": group[0].prompt, "output": group[0].text, "generator": generator}
        for group in winners([s for s in samples if s.arm == arm.key], arm).values()
    ]
    with atomic_write(path) as handle:
        json.dump(outputs, handle, ensure_ascii=False, indent=1)
