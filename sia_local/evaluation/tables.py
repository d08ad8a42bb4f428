"""A summary as tables and sentences for people: rows of cells, for the report, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .cost import row_count
from .remarks import remarks

Row = Mapping[str, Any]
Cells = list[list[str]]

NOTE = (
    "KL + cut: nats a text that steering spends, and that keeping only the candidates costs. rows/text: tokens decoded "
    "for one kept text, by the base + for the values, prompts aside; all texts of a best of N count."
)


def arm_cells(summary: Mapping[str, Any], full: bool = False) -> Cells:
    """A line an arm under a header; intervals as ±. full: with the columns that a narrow table leaves to the report."""
    rows = summary["rows"]
    columns: dict[str, Callable[[Row], str]] = {
        "arm": row_name,
        "beta (spreads)" if summary.get("beta_unit") == "spread" else "beta": lambda row: _beta(row) or "–",
        "reward": lambda row: _plus_minus(row["reward"]),
        "Δ to off": lambda row: _plus_minus(row.get("difference")),
        "at equal length": lambda row: f"{row['reward_at_length']:.3f}",
        "judge": lambda row: _plus_minus(row.get("judge")),
        "steered": lambda row: _percent(row["junction_rate"]),
        "flips": lambda row: _percent(row["flips"]),
        "KL + cut": lambda row: f"{row['kl']['mean']:.2f} + {row['kl_truncation']:.2f}",
        "ppl": lambda row: f"{row['perplexity']:.2f}",
        "distinct-1/2/3": lambda row: "/".join(f"{row[f'distinct_{n}']:.3f}" for n in (1, 2, 3)),
        "repeats": lambda row: f"{100 * row['repetition']:.1f} %",
        "tokens": lambda row: f"{row['tokens']:.0f}",
        "values/token": lambda row: f"{row['values_per_token']:.2f}",
        "rows/text": _rows,
        "tokens/s": lambda row: f"{row['tokens_per_second'] or 0:.0f}{'*' if row.get('reused') else ''}",
    }
    left_out = set() if full else {"flips", "values/token"}
    left_out |= set() if any("judge" in row for row in rows) else {"judge"}
    left_out |= set() if all("reward_at_length" in row for row in rows) else {"at equal length"}
    shown = {name: cell for name, cell in columns.items() if name not in left_out}
    return [list(shown), *([cell(row) for cell in shown.values()] for row in rows)]


def equal_kl_cells(summary: Mapping[str, Any]) -> Cells:
    """Reward and share of dense's lift at equal KL, a line a series; empty when nothing is comparable."""
    levels = summary["equal_kl"]
    names = list(dict.fromkeys(name for level in levels for name in level["series"]))
    if not names:
        return []
    cells = [["at equal KL", *(f"{level['kl']:.1f} nats" for level in levels)]]
    for name in names:
        entries = [level["series"].get(name) for level in levels]
        shares = [f" ({_interval(entry['share'])})" if entry and entry["share"] else "" for entry in entries]
        shown = [f"{e['reward']['mean']:.3f}{share}" if e else "–" for e, share in zip(entries, shares, strict=True)]
        cells.append([name, *shown])
    return cells


def equal_compute_cells(summary: Mapping[str, Any]) -> Cells:
    """Reward and KL of steering, Best-of-N and both at about equal cost, a line a way; empty when nothing is."""
    levels = summary["equal_compute"]
    names = list(dict.fromkeys(name for level in levels for name in level["ways"]))
    if not names:
        return []
    cells = [["at equal compute", *(f"about {level['rows']:.0f} rows/text" for level in levels)]]
    for name in names:
        cells.append([name, *(_spent(name, level["ways"].get(name)) for level in levels)])
    return cells


def _spent(way: str, row: Row | None) -> str:
    if row is None:
        return "–"
    series = "" if row["series"] == way else row["series"]
    beta = f"beta {_beta(row)}" if _beta(row) else ""
    which = ", ".join(part for part in (series, row["strength"], beta, f"{row_count(row):.0f} rows") if part)
    judge = f", judge {row['judge']['mean']:.3f}" if row.get("judge") else ""
    return f"{_plus_minus(row['reward'])}{judge}, KL {row['kl']['mean']:.1f} ({which})"


def markdown(cells: Cells) -> str:
    """A Markdown table, of no cells nothing."""
    if not cells:
        return ""
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"


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
            by = row["series"].partition(", ")[2]
            kept.setdefault(f"{row['family']} ({by})" if by else row["family"], {})[row["rate"]] = _interval(share)
    parts = [
        f"{family} keeps " + ", ".join(f"{share} at rate {rate:g}" for rate, share in shares.items())
        for family, shares in kept.items()
    ]
    if not parts:
        return []
    return [f"At the same KL of {level['kl']:.1f} nats a text, of dense steering's lift {'; '.join(parts)}."]


def picking(summary: Mapping[str, Any]) -> str:
    """What a reader must know of arms that keep the best by the reward; nothing where there is none."""
    if not any(row["best_of"] > 1 and row["pick"] == "reward" for row in summary["rows"]):
        return ""
    return (
        "A best of N is picked by the reward that it is measured with, which flatters it, unless it says `by value`; "
        "the second judge had no say."
    )


def failures(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each arm that failed, which is no row."""
    return [f"The arm {key} failed: {why}" for key, why in summary["failed"].items()]


def row_name(row: Row) -> str:
    """The arm of a summary's row, without its beta."""
    return f"{row['series']} ({row['strength']})" if row["strength"] else str(row["series"])


def tables(summary: Mapping[str, Any]) -> str:
    """All tables as Markdown, with what was found and how it was measured."""
    about = [summary.get(name) for name in ("machine", "date", "command")]
    sentences: Sequence[str] = [*findings(summary), *remarks(summary), *failures(summary), *summary["warnings"]]
    parts = [markdown(arm_cells(summary)), NOTE if summary["rows"] else ""]
    parts += [markdown(equal_kl_cells(summary)), markdown(equal_compute_cells(summary)), picking(summary)]
    parts.append("\n\n".join(sentences))
    parts.append(f"{about[0]}, {about[1]}: `{about[2]}`" if all(about) else "")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _beta(row: Row) -> str:
    if row["beta"] is None:
        return ""
    # A KL budget lowers it from there.
    return f"{'≤ ' if row['kl_budget'] is not None else ''}{row['beta']:g}"


def _rows(row: Row) -> str:
    return f"{row['base_rows']:.0f}" + (f" + {row['value_rows']:.0f}" if row["value_rows"] else "")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(share: Mapping[str, float]) -> str:
    return f"{_percent(share['mean'])} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def _plus_minus(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    if interval["n"] == 1:  # no resample of one prompt differs from another
        return f"{interval['mean']:.3f}"
    return f"{interval['mean']:.3f} ± {(interval['high'] - interval['low']) / 2:.3f}"
