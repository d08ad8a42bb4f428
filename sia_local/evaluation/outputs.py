"""What an evaluation leaves in its folder, besides the samples."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_write, finite
from .report import eval_report, frontier_svg
from .samples import Sample
from .tables import tables

SAMPLES, SUMMARY, TABLE, FRONTIER, REPORT = "samples.jsonl", "summary.json", "table.md", "frontier.svg", "report.html"
_END = 1 << 20


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Tells model files apart without reading gigabytes: name, size, SHA-256 of the first and last MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        digest.update(handle.read(_END))
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - _END))
        digest.update(handle.read())
    return {"file": Path(path).name, "bytes": size, "sha256": digest.hexdigest()}


def write_outputs(
    folder: Path, summary: Mapping[str, Any], samples: Sequence[Sample], report: bool = True
) -> list[Path]:
    """summary.json, table.md, frontier.svg (when anything was steered) and report.html; each whole or untouched.
    One that is not written now does not stay from before: it would speak of other texts."""
    texts = {
        SUMMARY: json.dumps(finite(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        TABLE: tables(summary),
        FRONTIER: frontier_svg(summary) if any(row["family"] != "off" for row in summary["rows"]) else "",
        REPORT: eval_report(summary, samples) if report else "",
    }
    written = []
    for name, text in texts.items():
        if text:
            with atomic_write(folder / name) as handle:
                handle.write(text)
            written.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    return written
