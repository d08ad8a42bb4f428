"""From a teacher to a file: collect junctions, fit a Q-head to them, write it, and read it back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Setup
from ..errors import DataError, NumericError
from ..files import sha256_of
from ..generation.sia import SIA
from ..llama.embeddings import EmbeddingRows
from ..llama.gguf import GgufMetadata
from ..llama.keys import REWARD_NAME
from ..values.qhead_file import Distillation, QHeadFile, QHeadMeta, write_qhead
from ..values.sources import Specs, parse_specs
from ..workers import Executor
from .baseline import predict_table
from .collect import CollectConfig, Collector, Progress, collect, gather
from .fit import Epoch, Fit, FitConfig, fit, predict
from .junctions import Junctions, Transitions, read_junctions, read_transitions, split
from .report import Report, compare
from .targets import read_targets

# Of the spread: what writing as halves may move a value by.
ROUNDING = 0.02


@dataclass(frozen=True)
class Distilled:
    """A Q-head on disk, how its fit went, and what one number a token would have reached."""

    path: Path
    fit: Fit
    table: Report
    junctions: int


def distill(
    base: str | os.PathLike[str],
    teacher: Specs,
    prompts: Sequence[str],
    out: Path,
    folder: Path,
    collecting: CollectConfig,
    fitting: FitConfig,
    setup: Setup,
    on_text: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    executor: Executor | None = None,
    mark: Any = None,
    anew: bool = False,
) -> Distilled:
    """The teacher is any source of values the runtime knows. folder: where the junctions are kept; a run that was
    stopped goes on there, and junctions of another base, teacher or setting are refused, or with `anew` removed.
    executor: where the teacher works. mark: in JSON, what tells the teacher apart if its file is made for each run.
    Raises as SIA.load and collect do, DataError where there is no second prompt to hold out, and NumericError when the
    file does not say what was learned.
    """
    if len(set(prompts[: collecting.texts])) == 1:
        raise DataError(
            f"{collecting.texts} texts of 1 prompt were asked for; expected at least 2 of 2, since some are held out "
            "to see how well it was learned: give more prompts, or ask for more texts"
        )
    with SIA.load(base, teacher, setup, hidden_states=True, max_candidates=collecting.k) as sia:
        assert sia.value is not None
        name, reward = sia.value.name, _reward(sia.value)
        fitting = replace(fitting, level=fitting.level and sia.value.absolute)
        settings = {"base": _identity(base), "teacher": name, "teacher_files": mark or _files(teacher)}
        settings |= {"n_ctx": setup.n_ctx, **_loading(setup), **setup.unusual}
        if executor is None:
            collect(sia, prompts, folder, collecting, settings, on_text, anew)
    if executor is not None:
        with executor.open(partial(Collector.load, base, teacher, setup, collecting)) as pool:
            gather(pool, prompts, folder, collecting, settings, on_text, anew)
    return fit_folder(base, folder, out, fitting, name, reward, on_epoch)


def from_targets(
    base: str | os.PathLike[str],
    targets: str | os.PathLike[str],
    out: Path,
    fitting: FitConfig,
    setup: Setup,
    on_text: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Distilled:
    """A Q-head from what candidates earned when `sia-convert branch` tried them, without a teacher. Raises as
    read_targets and fit_junctions do."""
    with SIA.load(base, None, setup, hidden_states=True) as sia:
        junctions = read_targets(sia, targets, on_text)
    return fit_junctions(base, junctions, None, out, fitting, "branches", "", on_epoch)


def fit_folder(
    base: str | os.PathLike[str],
    folder: Path,
    out: Path,
    fitting: FitConfig,
    teacher: str,
    reward: str = "",
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Distilled:
    """Fits a Q-head to the junctions of a folder and writes it to `out`."""
    junctions, _ = read_junctions(folder)
    return fit_junctions(base, junctions, read_transitions(folder), out, fitting, teacher, reward, on_epoch)


def fit_junctions(
    base: str | os.PathLike[str],
    junctions: Junctions,
    taken: Transitions | None,
    out: Path,
    fitting: FitConfig,
    teacher: str,
    reward: str,
    on_epoch: Callable[[Epoch], None],
) -> Distilled:
    """Fits a Q-head, a tenth of the prompts held out, writes it to `out`, and checks what the file says."""
    learned, held = split(junctions)
    rows = EmbeddingRows.output_of(base)
    made = fit(learned, held, rows, fitting, on_epoch, taken)
    report = made.report
    facts = Distillation(teacher, len(learned), junctions.k, report.r2, report.agreement, report.gain_share)
    with GgufMetadata(base) as meta:
        vocab = meta.vocab_sha256()
    about = QHeadMeta(out.stem, Path(base).name, vocab, reward, distillation=facts)
    write_qhead(out, made.qhead, about)
    read = QHeadFile.read(out).qhead
    moved = np.abs(predict(read, held, rows) - predict(made.qhead, held, rows)).max()
    if not moved <= ROUNDING * max(report.spread, 1e-12) * 10:
        raise NumericError(f"{out}: the file's values are {moved:g} off what was learned; write it again")
    return Distilled(out, made, compare(held, predict_table(learned, held)), len(junctions))


def _identity(path: str | os.PathLike[str]) -> dict[str, str]:
    """A model by what it holds, since one that is trained anew has the name and size of the one before.

    All of it is read: a head may stand anywhere in the metadata, and what was not trained anywhere in the tensors. That
    takes seconds where collecting takes minutes.
    """
    with GgufMetadata(path) as meta:
        parts = [part.path for part in meta.parts]
    return {"name": Path(path).name, "sha256": " ".join(map(sha256_of, parts))}


def _loading(setup: Setup) -> dict[str, Any]:
    """Settings of loading that change hidden states or values, where they are not the usual ones."""
    usual = Setup()
    names = ("type_k", "type_v", "shortlist")
    return {name: x for name in names if (x := getattr(setup, name)) != getattr(usual, name)}


def _files(teacher: Specs) -> list[dict[str, Any]]:
    """What a rerun must share, in JSON: every source with its files by what they hold."""
    known = cache(_identity)  # an instruction and its opposite are two sources in one file
    return [
        {
            name: known(str(value)) if name in ("path", "plus", "minus") and value is not None else value
            for name, value in vars(spec).items()
        }
        for spec in parse_specs(teacher)
    ]


def _reward(source: Any) -> str:
    file = getattr(source, "file", None)
    return str(file.about.get(REWARD_NAME, "")) if file is not None else ""


def summary(made: Distilled) -> str:
    """How well the Q-head stands in for its teacher, on held-out prompts."""
    report, table = made.fit.report, made.table
    lines = [f"{made.path}: {made.path.stat().st_size / 1e6:.1f} MB, from {made.junctions} junctions"]
    lines += [
        f"{what:44} {ours:>6} {one_number:>18}"
        for what, ours, one_number in (
            ("on held-out prompts", "Q-head", "one number a token"),
            ("differences within a junction explained", f"{report.r2:.2f}", f"{table.r2:.2f}"),
            ("the teacher's favourite at", f"{report.agreement:.0%}", f"{table.agreement:.0%}"),
            ("the teacher's one-step gain", f"{report.gain_share:.0%}", f"{table.gain_share:.0%}"),
            (f"favourites turned (teacher {report.teacher_flip_rate:.0%})", f"{report.flip_rate:.0%}", ""),
        )
    ]
    return "\n".join([*lines, f"spread {report.spread:.4g}"])
