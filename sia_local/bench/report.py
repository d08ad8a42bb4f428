"""What `bench` found, as Markdown, CSV, JSON or JSON lines, and held against the goals of the design."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from ..files import finite
from ..llama.library import versions
from ..llama.model import Model
from .arms import RIVAL, UNSTEERED, Row
from .cold import ColdRow
from .machine import cpu_name
from .settings import BenchOptions

FORMATS = ("md", "csv", "json", "jsonl")


@dataclass(frozen=True)
class Goal:
    """A ratio the design asks for, and what this run measured (None: its arms did not run)."""

    name: str
    goal: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


# Of the speed of the fastest number of texts at once: what fewer of them must reach to be enough.
ENOUGH = 0.95


@dataclass(frozen=True)
class Slots:
    """How many texts at once are fastest, in total tokens/s, and the fewest that come within a twentieth of it."""

    test: str
    arm: str
    fastest: int
    tokens_per_second: float
    enough: int


def slots(rows: Sequence[Row]) -> list[Slots]:
    """Of every way to generate that was measured with several numbers of texts at once."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for r in (row.summary() for row in rows if row.test.startswith("tg") and row.samples):
        steered = f"{r['placement']} {100 * float(r['rate']):.0f} %" if r["rate"] is not None else None
        parts = [str(r["arm"]), *filter(None, [steered])]
        parts += [f"k {r['k']}"] if r["k"] is not None else []
        speeds = found.setdefault((str(r["test"]), ", ".join(parts)), {})
        n, speed = int(r["sequences"] or 1), float(r["tokens_per_second"] or 0.0)
        speeds[n] = max(speed, speeds.get(n, 0.0))
    made = []
    for (test, arm), speeds in found.items():
        if len(speeds) > 1:
            best = max(speeds, key=speeds.__getitem__)
            enough = min(n for n, speed in speeds.items() if speed >= ENOUGH * speeds[best])
            made.append(Slots(test, arm, best, speeds[best], enough))
    return made


def setting(options: BenchOptions, model: Model) -> dict[str, Any]:
    """What identifies a measurement: versions, machine, backend, model, threads, time."""
    from .. import __version__

    said = versions()
    return {
        "sia_local": __version__,
        "llama_cpp_python": said["llama-cpp-python"],
        "numpy": said["numpy"],
        "backend": said["backend"],
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "model": model.description,
        "model_file": options.model.name,
        "model_mb": model.size_bytes / 1e6,
        "threads": options.threads,
        "n_gpu_layers": options.setup.n_gpu_layers,
        "type_k": options.setup.type_k,
        "type_v": options.setup.type_v,
        "flash_attention": options.setup.flash_attention,
        "repetitions": options.repetitions,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def goals(rows: Sequence[Row], cold: Sequence[ColdRow] = ()) -> list[Goal]:
    """The goals table of the design, from the first generation test that has the arms."""
    records = [row.summary() for row in rows if row.test.startswith("tg")]
    records = [r for r in records if r["test"] == records[0]["test"]]

    def ratio(sequences: int = 1, **wanted: Any) -> float | None:
        found = [
            float(r["ratio"])
            for r in records
            if r["ratio"] is not None
            and r["sequences"] == sequences
            and all(w(r[name]) if callable(w) else r[name] == w for name, w in wanted.items())
        ]
        return max(found, default=None)

    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    def fifth(rate: float | None) -> bool:
        return rate is not None and abs(rate - 0.2) < 1e-6

    own = lambda size: size is not None and size > 0.9  # noqa: E731
    quarter = lambda size: size is not None and size <= 0.35  # noqa: E731
    separate = lambda placement: placement in ("separate", "lean")  # noqa: E731
    sparse: dict[str, Any] = {"arm": "sparse", "rate": fifth}
    head = ratio(**sparse, placement="head")
    eight = over(ratio(8, **sparse, placement="q-head"), ratio(8, arm=UNSTEERED))
    many = max(
        (
            speedup
            for placement in ("head", "lean", "separate", "adapter")
            if (speedup := over(ratio(8, **sparse, placement=placement), ratio(**sparse, placement=placement)))
        ),
        default=None,
    )
    start = next((c.of_rival for c in cold if c.rival), None)
    adapter = next((over(c.added_mb, c.expected_mb) for c in cold if c.expected_mb), None)
    return [
        Goal(f"unsteered / {RIVAL} generate", 1.0, over(ratio(arm=UNSTEERED), ratio(arm=f"{RIVAL} generate"))),
        Goal("q-head at 20 % / unsteered", 0.98, ratio(**sparse, placement="q-head")),
        Goal("q-head at every token / unsteered", 0.95, ratio(arm="dense", placement="q-head")),
        Goal("8 texts, q-head at 20 % / 8 texts unsteered", 0.97, eight),
        Goal("head at 20 % / unsteered", 0.83, head),
        Goal(
            "separate, the base's size, at 20 % / unsteered", 0.65, ratio(**sparse, placement=separate, value_size=own)
        ),
        Goal(
            "separate, a quarter of it, at 20 % / unsteered",
            0.85,
            ratio(**sparse, placement=separate, value_size=quarter),
        ),
        Goal(
            "head at 20 % / separate dense", 4.0, over(head, ratio(arm="dense", placement="separate", value_size=own))
        ),
        Goal("8 texts / 1 text, steered, best placement", 2.5, many),
        Goal("start-up over llama-cpp-python's", 1.15, start, at_most=True),
        Goal("memory added by the adapter over file + KV cache", 1.1, adapter, at_most=True),
    ]


def render(
    form: str, about: dict[str, Any], rows: Sequence[Row], cold: Sequence[ColdRow], failed: Sequence[str] = ()
) -> str:
    records = [row.summary() for row in rows]
    if form == "json":
        document = {
            "setting": about,
            "rows": records,
            "cold": [asdict(row) for row in cold],
            "slots": [asdict(found) for found in slots(rows)],
            "goals": [{**asdict(goal), "met": goal.met} for goal in goals(rows, cold)] if rows else [],
            "failed": list(failed),
        }
        return json.dumps(finite(document), indent=2, allow_nan=False)
    if form == "jsonl":
        return "\n".join(json.dumps(finite({**record, **about}), allow_nan=False) for record in records)
    if form == "csv":
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, [*records[0], *about] if records else [*about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**record, **about} for record in records)
        return sheet.getvalue().rstrip("\n")
    return _markdown(about, records, rows, cold, failed)


def _markdown(
    about: dict[str, Any],
    records: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    cold: Sequence[ColdRow],
    failed: Sequence[str],
) -> str:
    a = about
    parts = [
        f"{a['model']} ({a['model_mb']:.0f} MB) · {a['cpu']}, {a['threads']} threads, {a['backend']}"
        f" · sia-local {a['sia_local']}, llama-cpp-python {a['llama_cpp_python']} · {a['repetitions']} repetitions"
        f" · {a['time'][:10]}"
    ]
    names = ("test", "arm", "value model", "junctions", "k", "texts", "tokens/s", "of unsteered", "floor")
    if records:
        parts.append(
            _table(
                (*names, "ms a junction", "value rows a token"),
                (
                    (
                        r["test"],
                        r["arm"],
                        r["placement"] + (f" {r['value_size']:.2f}" if r["value_size"] else ""),
                        f"{r['junction_rate']:.0%}".replace("%", " %") if r["placement"] != "-" else "",
                        r["k"] or "",
                        r["sequences"],
                        f"{r['tokens_per_second']:.2f} ± {r['tokens_per_second_sd']:.2f}",
                        f"{r['ratio']:.2f} ± {r['ratio_sd']:.2f}" if r["ratio"] is not None else "",
                        f"{r['floor_ratio']:.3f}" if r["floor_ratio"] is not None else "",
                        f"{r['ms_per_junction']:.1f}" if r["ms_per_junction"] is not None else "",
                        f"{r['value_rows_per_token']:.2f}" if r["placement"] != "-" else "",
                    )
                    for r in records
                ),
            )
        )
    if cold:
        parts.append(
            _table(
                (
                    "fresh process, one token",
                    "s",
                    "CPU s",
                    "llama-cpp-python, same files, s",
                    "of llama-cpp-python, base alone",
                    "peak MB",
                    "added MB",
                    "of which expected",
                ),
                (
                    (
                        c.placement,
                        f"{c.ours.seconds:.2f}",
                        f"{c.ours.cpu_seconds:.2f}" if c.ours.cpu_seconds is not None else "",
                        f"{c.rival.seconds:.2f}" if c.rival else "",
                        f"{c.of_rival:.2f}" if c.of_rival is not None else "",
                        *(f"{x:.0f}" if x is not None else "" for x in (c.ours.peak_mb, c.added_mb, c.expected_mb)),
                    )
                    for c in cold
                ),
            )
        )
    held = [goal for goal in goals(rows, cold) if goal.measured is not None] if rows else []
    if held:
        parts.append(
            _table(
                ("ratio", "goal", "measured", ""),
                (
                    (
                        g.name,
                        f"{'≤' if g.at_most else '≥'} {g.goal:g}",
                        f"{g.measured:.2f}",
                        "" if g.met else "missed",
                    )
                    for g in held
                ),
            )
        )
    if swept := slots(rows):
        parts.append(
            _table(
                ("texts at once", "arm", "fastest", "tokens/s", f"enough ({ENOUGH:.0%} of it)".replace("%", " %")),
                ((s.test, s.arm, s.fastest, f"{s.tokens_per_second:.2f}", s.enough) for s in swept),
            )
        )
    parts += [f"Not measured: {sentence}" for sentence in failed]
    return "\n\n".join(parts)


def _table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    rows = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *rows])
