"""From samples to numbers: one row an arm, and arms compared at equal KL. Works on a finished samples file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..files import atomic_write
from ..prompts import PromptItem
from .arms import Arm
from .metrics import (
    Frontier,
    Interval,
    bon_kl_bound,
    bootstrap_mean,
    distinct_n,
    lift_share,
    paired_difference,
    repetition,
    reward_at_kl,
)
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
) -> dict[str, Any]:
    """The summary as JSON data. Rows keep the arms' order; arms without samples appear under `failed` only.

    Intervals are over prompts; a prompt's samples are averaged first. Arms are compared on the prompts that
    all of them finished. KL of a text: what steering spent (without truncation to the candidates), plus the
    bound log N − (N − 1)/N where the best of N was kept.
    """
    failed = dict(failed or {})
    ids = [item.id for item in prompts]
    kept: dict[str, dict[str, list[Sample]]] = {}
    everything: dict[str, list[Sample]] = {}
    for arm in arms:
        mine = [s for s in samples if s.arm == arm.key and s.reward is not None]
        chosen = _winners(mine, arm.best_of)
        if chosen and arm.key not in failed:
            kept[arm.key], everything[arm.key] = chosen, mine
    common = [i for i in ids if all(i in chosen for chosen in kept.values())]
    rows: list[dict[str, Any]] = []
    frontiers: dict[str, list[tuple[float, np.ndarray, np.ndarray]]] = {}
    reference = kept.get("off") if common else None
    for arm in arms:
        if arm.key not in kept or not common:
            continue
        texts = {i: kept[arm.key][i] for i in common}
        bound = bon_kl_bound(arm.best_of) if arm.best_of > 1 else 0.0
        rows.append(_row(arm, texts, everything[arm.key], reference, bound))
        kl, reward = _means(texts, "kl_steering") + bound, _means(texts, "reward")
        frontiers.setdefault(arm.series, []).append((float(kl.mean()), kl, reward))
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
        "entropy": _entropy(off),
        "failed": failed,
        "warnings": _warnings(len(common), len(ids)),
    }


def _winners(samples: Sequence[Sample], best_of: int) -> dict[str, list[Sample]]:
    """Texts by prompt; of every whole group of N samples the one with the best reward."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: s.sample):
        groups.setdefault((sample.prompt_id, sample.sample // best_of), []).append(sample)
    winners: dict[str, list[Sample]] = {}
    for (prompt_id, _), group in groups.items():
        if len(group) == best_of:
            winners.setdefault(prompt_id, []).append(max(group, key=lambda s: s.reward or 0.0))
    return winners


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
    words = [_WORD.findall(s.response.lower()) for s in flat]
    steps = sum(s.steps for s in flat)
    junctions = sum(s.junctions for s in flat)
    seconds = sum(s.seconds for s in everything)
    row: dict[str, Any] = {
        "key": arm.key,
        "series": arm.series,
        "family": arm.family,
        "rate": arm.rate,
        "beta": arm.beta if arm.steers and arm.config is None else None,
        "best_of": arm.best_of,
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
    dense = curves.get("dense")
    levels = list(at_kl)
    if not levels and dense is not None:
        reach = max((c.max_kl for name, c in curves.items() if name != "dense"), default=dense.max_kl)
        levels = _levels([dense], reach) or _levels([c for c in curves.values() if c is not dense], dense.max_kl)
    out = []
    for level in levels:
        entries = {}
        for name, curve in curves.items():
            reward = reward_at_kl(curve, level)
            if reward is None:
                continue
            share: Interval | None = None
            if dense is not None and name != "dense":
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
        out.append(
            f"Only {common} prompts: the intervals say little; use at least {FEW_PROMPTS}, better 200 or more."
        )
    if 0 < common < asked:
        out.append(f"{asked - common} of {asked} prompts are missing in at least one arm and were left out.")
    return out


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What the comparison says, in a sentence: each family's share of dense's lift at the middle equal KL."""
    levels = [level for level in summary["equal_kl"] if any(e["share"] for e in level["series"].values())]
    if not levels:
        return []
    level = max(levels, key=lambda one: (sum(bool(e["share"]) for e in one["series"].values()), one["kl"]))
    kept: dict[str, dict[float, str]] = {}
    for row in summary["rows"]:
        share = level["series"].get(row["series"], {}).get("share")
        if share and row["rate"] and row["best_of"] == 1:
            kept.setdefault(row["family"], {})[row["rate"]] = _percent(share)
    parts = [
        f"{family} keeps " + ", ".join(f"{share} at rate {rate:g}" for rate, share in shares.items())
        for family, shares in kept.items()
    ]
    return [f"At the same KL of {level['kl']:.1f} nats a text, of dense steering's lift {'; '.join(parts)}."]


def _percent(share: Mapping[str, float]) -> str:
    return f"{100 * share['mean']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The rows as a Markdown table: intervals as ±, KL per text in nats."""
    judge = any("judge" in row for row in summary["rows"])
    beta_name = "beta (spreads)" if summary.get("beta_unit") == "spread" else "beta"
    header = ["arm", beta_name, "reward", "Δ to off", *(["judge"] if judge else []), "steered", "KL (nats)"]
    header += ["cut (nats)", "ppl", "distinct-1/2/3", "repeats", "tokens", "flips", "values/token", "tokens/s"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in summary["rows"]:
        beta = "–" if row["beta"] is None else f"{row['beta']:g}"
        size = f" (N = {row['best_of']})" if row["family"] == "bon" else ""
        cells = [row["series"] + size, beta, _plus_minus(row["reward"]), _plus_minus(row.get("difference"))]
        cells += [_plus_minus(row.get("judge"))] if judge else []
        cells += [f"{100 * row['junction_rate']:.0f} %", f"{row['kl']['mean']:.2f}", f"{row['kl_truncation']:.2f}"]
        cells += [f"{row['perplexity']:.2f}"]
        cells += ["/".join(f"{row[f'distinct_{n}']:.3f}" for n in (1, 2, 3)), f"{100 * row['repetition']:.1f} %"]
        cells += [f"{row['tokens']:.0f}", f"{100 * row['flips']:.0f} %", f"{row['values_per_token']:.2f}"]
        cells += [f"{row['tokens_per_second'] or 0:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def equal_kl_table(summary: Mapping[str, Any]) -> str:
    """Reward and share of dense's lift at equal KL as a Markdown table, empty when nothing is comparable."""
    levels = summary["equal_kl"]
    names = list(dict.fromkeys(name for level in levels for name in level["series"]))
    if not names:
        return ""
    lines = ["| at equal KL | " + " | ".join(f"{level['kl']:.1f} nats" for level in levels) + " |"]
    lines.append("|---|" + "---|" * len(levels))
    for name in names:
        cells = []
        for level in levels:
            entry = level["series"].get(name)
            share = f" ({_percent(entry['share'])})" if entry and entry["share"] else ""
            cells.append(f"{entry['reward']['mean']:.3f}{share}" if entry else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plus_minus(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{interval['mean']:.3f} ± {(interval['high'] - interval['low']) / 2:.3f}"


def write_alpaca(path: str | os.PathLike[str], samples: Sequence[Sample], arm: Arm, generator: str) -> None:
    """AlpacaEval's `model_outputs.json`: one object a prompt with `instruction`, `output` and `generator`."""
    outputs = [
        {"instruction": group[0].prompt, "output": group[0].response, "generator": generator}
        for group in _winners([s for s in samples if s.arm == arm.key], arm.best_of).values()
    ]
    with atomic_write(path) as handle:
        json.dump(outputs, handle, ensure_ascii=False, indent=1)
