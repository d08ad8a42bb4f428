"""Proves that GGUF files compute what the PyTorch value model computes, on the same token sequences."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sia_local.errors import NumericError
from sia_local.files import atomic_write
from sia_local.llama import keys
from sia_local.progress import Progress

from ..provenance import provenance
from ..settings import Machine
from ..train.metrics import spearman
from .junctions import Case, load_runtime, prompt_of
from .walk import Walk, spread_of

if TYPE_CHECKING:
    from sia_local import SIA

MAX_DIFFERENCE = {"F32": 1e-3}  # reward units
MIN_AGREEMENT = {"F32": 0.99, "F16": 0.95, "BF16": 0.95, "Q8_0": 0.95, "Q4_K_M": 0.90, "Q4_1": 0.90}


@dataclass(frozen=True)
class Row:
    """One GGUF file against PyTorch. Differences in reward units; agreement: share of junctions, same best."""

    file: str
    kind: str
    type: str
    junctions: int
    max_abs: float
    mean_abs: float
    mean_in_spreads: float
    spearman: float
    agreement: float
    same_prompt: bool
    spread: float
    failures: tuple[str, ...]


def verify(
    walk: Walk,
    files: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str],
    quantizations: Sequence[str] = (),
    machine: Machine | None = None,
) -> list[Row]:
    """One row a file, and one for each quantization of the first file, made for the purpose and thrown away."""
    from ..formats.quantize import check_quantizable

    machine = machine or Machine()
    for name in quantizations:
        check_quantizable(files[0], name)
    rows = []
    with tempfile.TemporaryDirectory(prefix="sia-verify-") as folder:
        for path in [Path(f) for f in files]:
            rows.append(compare(path, base, walk, machine))
        for path in _quantized(Path(files[0]), quantizations, Path(folder), machine.threads):
            rows.append(compare(path, base, walk, machine))
    return rows


def _quantized(source: Path, types: Sequence[str], folder: Path, n_threads: int) -> Iterator[Path]:
    from ..formats.quantize import quantize_gguf

    for name in types:
        path = folder / f"{source.stem}-{name}.gguf"
        yield quantize_gguf(source, path, name, n_threads=n_threads)
        path.unlink()


def compare(path: Path, base: str | os.PathLike[str], walk: Walk, machine: Machine) -> Row:
    """Runs one GGUF over the junctions and compares it with PyTorch's values."""
    kind, name = _describe(path, base)
    progress = Progress(path.name, len(walk.cases))
    given, same_prompt = [], True
    with load_runtime(base, path, walk.config, machine) as sia:
        for case in walk.cases:
            values, read = gguf_values(sia, case)
            same_prompt &= read == list(case.prompt_ids)
            given.append(values)
            progress.update()
    a, b = np.concatenate(walk.values).astype(np.float64), np.concatenate(given)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise NumericError(f"{path.name}: NaN or infinite values; export again from a finite checkpoint")
    difference = np.abs(a - b)
    spread = spread_of(walk)
    agreement = float((a.argmax(1) == b.argmax(1)).mean())
    failures = []
    if not same_prompt:
        failures.append("the prompt is tokenized differently")
    if difference.max() > MAX_DIFFERENCE.get(name, np.inf):
        failures.append(f"max |dV| {difference.max():.2g} > {MAX_DIFFERENCE[name]:g}")
    if agreement < MIN_AGREEMENT.get(name, 0.0):
        failures.append(f"same best candidate at {agreement:.1%} < {MIN_AGREEMENT[name]:.0%} of junctions")
    return Row(
        path.name,
        kind,
        name,
        len(a),
        float(difference.max()),
        float(difference.mean()),
        float(difference.mean() / spread) if spread > 0 else float("nan"),
        spearman(a.ravel(), b.ravel()),
        agreement,
        same_prompt,
        spread,
        tuple(failures),
    )


def gguf_values(sia: SIA, case: Case) -> tuple[np.ndarray, list[int]]:
    """The runtime's V [J, k], with its queue, branches and commits, and the prompt tokens its value model read."""
    value: Any = sia.value
    trajectory = case.trajectory
    prompt = prompt_of(sia, trajectory)
    sia.engine.begin(0, prompt.tokens)
    value.begin(0, prompt)
    read = list(value.engine.slots[0].tokens)
    shared = value.engine is sia.engine
    rows: list[np.ndarray] = []
    at = 0
    for position, candidates in zip(case.positions, case.candidates, strict=True):
        for token in trajectory.tokens[at:position]:
            sia.engine.accept(0, token)
            value.accept(0, token)
        at = position
        if shared:
            sia.engine.logits([0])
        rows.append(np.asarray(value.score([(0, candidates)])[0], np.float64))
    return np.stack(rows), read


def _describe(path: Path, base: str | os.PathLike[str]) -> tuple[str, str]:
    import gguf

    from sia_local.llama.gguf import GgufMetadata

    with GgufMetadata(path) as meta:
        kind = str(meta.get(keys.KIND, "?"))
        if kind == "value":
            kind = str(meta.get(keys.LAYOUT, "merged"))
        number = int(meta.get("general.file_type", 0))
    if kind in ("value-adapter", "value-head"):
        with GgufMetadata(base) as meta:
            bases = int(meta.get("general.file_type", 0))
        # An adapter is of its own type over float32 weights, and as coarse as the base elsewhere.
        number = number if kind == "value-adapter" and bases == int(gguf.LlamaFileType.ALL_F32) else bases
        kind = kind.removeprefix("value-")
    name = gguf.LlamaFileType(number).name
    return kind, name.removeprefix("MOSTLY_").removeprefix("ALL_")


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = ("file", "layout", "type", "junctions", "max |dV|", "mean |dV|", "in spreads", "Spearman", "same best", "")
    lines = [head] + [
        (
            r.file,
            r.kind,
            r.type,
            str(r.junctions),
            f"{r.max_abs:.2e}",
            f"{r.mean_abs:.2e}",
            f"{r.mean_in_spreads:.4f}",
            f"{r.spearman:.5f}",
            f"{r.agreement:.1%}",
            "FAILED: " + "; ".join(r.failures) if r.failures else "ok" if r.type in MIN_AGREEMENT else "no limit",
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_report(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """The rows and what made them, as JSON."""
    with atomic_write(path) as handle:
        json.dump({"rows": [asdict(row) for row in rows], **provenance()}, handle, indent=1)
