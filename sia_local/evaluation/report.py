"""The report of an evaluation: plots, tables and texts side by side, in one HTML file without requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..views import svg
from ..views.answer import markup, render
from .remarks import remarks
from .samples import Sample
from .tables import arm_cells, equal_compute_cells, equal_kl_cells, failures, findings, picking

GROUPS = {
    "off": 0, "sparse": 2, "dense": 1, "random": 3, "bon": 4, "kl-budget": 5, "guide": 5, "gain": 2, "instruction": 5,
    "profile": 5,
}  # fmt: skip
DASHES = ("none", "9 4", "5 4", "2 4")
SHOWN_PROMPTS = 8
FACTS = (
    "model", "value", "guide", "reward_name", "judge_name", "prompts", "max_tokens", "seed", "machine", "date",
    "command",
)  # fmt: skip
# Points that cost far more than the KL at which arms are compared would squeeze everything else.
KL_REACH = 1.5

Row = Mapping[str, Any]


def eval_report(summary: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """HTML from `summarise`'s summary and the samples behind it."""
    level = _level(summary)
    rate_chart, rate_note = _rate_chart(summary, level)
    return render(
        "eval.html",
        title=summary.get("title") or "Steering, measured",
        chart_css=markup(svg.STYLE),
        findings=findings(summary),
        facts=[(name.replace("_name", ""), summary[name]) for name in FACTS if summary.get(name) is not None],
        warnings=[
            *remarks(summary),
            *summary["warnings"],
            *failures(summary),
        ],
        kl_chart=markup(kl_chart(summary)),
        rate_chart=markup(rate_chart),
        rate_note=rate_note,
        equal=equal_kl_cells(summary),
        compute=equal_compute_cells(summary),
        picking=picking(summary),
        table=arm_cells(summary, full=True),
        entropy_chart=markup(_entropy_chart(summary)),
        samples=_side_by_side(summary, samples, level),
    )


def kl_chart(summary: Mapping[str, Any]) -> str:
    """Reward against KL as SVG: a line a series from the unsteered base through its betas."""
    rows = summary["rows"]
    off = next((row for row in rows if row["family"] == "off"), None)
    levels = [level["kl"] for level in summary["equal_kl"]]
    reach = KL_REACH * max(levels) if levels else float("inf")
    out: list[svg.Series] = []
    seen: dict[str, int] = {}
    for name in dict.fromkeys(row["series"] for row in rows if row["family"] != "off"):
        mine = sorted((r for r in rows if r["series"] == name), key=lambda r: r["kl"]["mean"])
        family = mine[0]["family"]
        seen[family] = seen.get(family, -1) + 1
        points, notes = ([_point(off, "kl")], ["off"]) if off else ([], [])
        for row in mine:
            if row["kl"]["mean"] <= reach:
                points.append(_point(row, "kl"))
                beta = None if row["beta"] is None else f"beta {row['beta']:g}"
                strength = row["strength"] or beta or name
                notes.append(f"{strength}, reward {row['reward']['mean']:.3f}, KL {row['kl']['mean']:.2f}")
        dash = DASHES[seen[family] % len(DASHES)]
        out.append(svg.Series(name, points, GROUPS.get(family, 5), dash, notes, bare=1 if off else 0))
    if off:
        out.append(svg.Series("off", [_point(off, "kl")], GROUPS["off"]))
    title = f"Reward ({summary.get('reward_name', 'mean')}) against KL from the base"
    return svg.lines(out, "KL from the base, nats a text", _reward_label(summary), title=title)


def frontier_svg(summary: Mapping[str, Any]) -> str:
    """The same chart as a file of its own, for a README, with the few arms that tell the story."""
    rates = sorted({row["rate"] for row in summary["rows"] if row["rate"] is not None})
    few = {min(rates, key=lambda rate: abs(rate - wanted)) for wanted in (0.2, 0.5)} if rates else set()
    rows = [row for row in summary["rows"] if row["family"] == "bon" or row["best_of"] == 1]
    return svg.standalone(kl_chart({**summary, "rows": [r for r in rows if r["rate"] is None or r["rate"] in few]}))


def _rate_chart(summary: Mapping[str, Any], level: Mapping[str, Any] | None) -> tuple[str, str]:
    """Reward against the measured intervention rate: at one KL where arms reach it, else every point."""
    rows = summary["rows"]
    off = next((row for row in rows if row["family"] == "off"), None)
    groups: dict[str, list[tuple[float, float, float, float]]] = {}
    for name in dict.fromkeys(r["series"] for r in rows if r["family"] in ("sparse", "gain", "random", "dense")):
        mine = [r for r in rows if r["series"] == name and r["best_of"] == 1]
        if not mine:
            continue
        if level is None:
            points = [(r["junction_rate"], *_interval(r["reward"])) for r in mine]
        elif entry := level["series"].get(name):
            nearest = min(mine, key=lambda r: abs(r["kl"]["mean"] - level["kl"]))
            points = [(nearest["junction_rate"], *_interval(entry["reward"]))]
        else:
            continue
        groups.setdefault(mine[0]["family"], []).extend(points)
    dense = groups.pop("dense", [])
    series = []
    for family, points in groups.items():
        ends = [(0.0, *_interval(off["reward"]))] if off and level is not None else []
        joined = sorted([*ends, *points, *(dense if level is not None else [])])
        line = "none" if level is not None else ""
        series.append(svg.Series(family, joined, GROUPS[family], line, bare=len(ends)))
    if off and level is not None and groups:
        series.append(svg.Series("off", [(0.0, *_interval(off["reward"]))], GROUPS["off"]))
    if dense:
        series.append(svg.Series("dense", dense, GROUPS["dense"], ""))
    note = (
        f"Every point at the same KL of {level['kl']:.1f} nats a text, so arms with fewer steered tokens push harder "
        "where they act. Rate 0 is the unsteered base."
        if level is not None
        else "Every arm and beta as measured; no two arms reach a common KL."
    )
    return svg.lines(series, "share of tokens steered", _reward_label(summary), title="Reward against rate"), note


def _entropy_chart(summary: Mapping[str, Any]) -> str:
    entropy = summary.get("entropy")
    if not entropy:
        return ""
    rules = [(float(nats), f"{100 * float(rate):g} %") for rate, nats in summary.get("thresholds", {}).items()]
    label = "entropy, nats"
    return svg.histogram(entropy["edges"], entropy["counts"], label, title="Entropy of the base", rules=rules)


def _level(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The equal-KL level that most series reach; of several, the highest."""
    levels = summary["equal_kl"]
    return max(levels, key=lambda one: (len(one["series"]), one["kl"])) if levels else None


def _side_by_side(
    summary: Mapping[str, Any], samples: Sequence[Sample], level: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The first prompts in the unsteered base and in one arm a family, each at about the same KL."""
    picked: list[Row] = []
    for family in GROUPS:
        mine = [row for row in summary["rows"] if row["family"] == family]
        if not mine:
            continue
        target = level["kl"] if level else max(row["kl"]["mean"] for row in mine) / 2
        picked.append(
            min(mine, key=lambda r: (abs((r["rate"] or 0.2) - 0.2), r["best_of"], abs(r["kl"]["mean"] - target)))
        )
    by_place = {sample.place: sample for sample in samples}
    prompts = list(dict.fromkeys(sample.prompt_id for sample in samples))[:SHOWN_PROMPTS]
    out = []
    for prompt_id in prompts:
        sides = []
        for row in picked:
            group = [by_place.get((row["key"], prompt_id, n)) for n in range(row["best_of"])]
            there = [s for s in group if s is not None and s.reward is not None]
            if there:
                best = max(there, key=lambda s: s.score(row["pick"]))
                beta = f", beta {row['beta']:g}" if row["beta"] is not None else ""
                judged = f", judge {best.judge:+.2f}" if best.judge is not None else ""
                title = f"{row['series']}{beta} · reward {best.reward:+.2f}{judged}"
                sides.append({"title": title, "text": best.text.strip()})
        if sides:
            prompt = next(s.prompt for s in samples if s.prompt_id == prompt_id)
            out.append({"prompt": prompt, "sides": sides})
    return out


def _point(row: Row, axis: str) -> tuple[float, float, float, float]:
    return (row[axis]["mean"], *_interval(row["reward"]))


def _interval(reward: Mapping[str, float]) -> tuple[float, float, float]:
    return reward["mean"], reward["low"], reward["high"]


def _reward_label(summary: Mapping[str, Any]) -> str:
    name = summary.get("reward_name")
    return f"mean reward ({name})" if name else "mean reward"
