"""A Q-head from a value model: the teacher answers through the runtime that will be steered. Imports no training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sia_local.config import ChatSettings, Setup
from sia_local.learning.collect import CollectConfig
from sia_local.progress import Line
from sia_local.workers import Executor

from ..settings import Machine, settings_of
from .rollouts import load_prompts


def distill_file(
    teacher: Path,
    base: Path,
    prompts: Path,
    config: Any,
    folder: Path,
    machine: Machine,
    echo: Callable[[str], None] = print,
    slots: int = 4,
    executor: Executor | None = None,
    chat: ChatSettings | None = None,
    mark: Any = None,
    anew: bool = False,
) -> str:
    """Distils `teacher`, a value GGUF, to `config.out` (a plan's DistillSection); the summary of what it reached.

    chat: how the base is spoken to. mark, anew: as sia_local.learning.distill.distill() has them.
    """
    from sia_local.learning.distill import distill, summary

    setup = Setup(
        n_ctx=config.n_ctx,
        slots=slots,
        n_threads=machine.threads,
        n_gpu_layers=machine.gpu_layers,
        **settings_of(ChatSettings, chat or ChatSettings()),
    )
    collecting: CollectConfig = config.collecting
    line = Line()
    made = distill(
        base,
        teacher,
        load_prompts(prompts),
        config.out,
        folder,
        collecting,
        config.fit,
        setup,
        lambda p: line.show(str(p), p.texts == p.of),
        lambda e: echo(f"pass {e.epoch}: loss {e.loss:.4f}, held out {e.held_out:.4f}"),
        executor,
        mark,
        anew,
    )
    return summary(made)


def distill_checkpoint(
    checkpoint: Path,
    base: Path,
    prompts: Path,
    config: Any,
    folder: Path,
    machine: Machine,
    slots: int = 4,
    executor: Executor | None = None,
    chat: ChatSettings | None = None,
) -> str:
    """The same for a value model trained into a folder: exported in full precision first, for the time it takes."""
    from ..formats.checkpoint import ValueCheckpoint
    from ..formats.export import ExportConfig, export_value

    with tempfile.TemporaryDirectory(prefix="sia-distill-") as aside:
        found = ValueCheckpoint.open(checkpoint)
        teacher = export_value(found, Path(aside) / "teacher.gguf", base, ExportConfig())
        # Its file names the command that exported it, so a second run for more texts has another.
        mark = {"checkpoint": found.fingerprint(), "spread": found.spread()}
        return distill_file(
            teacher, base, prompts, config, folder, machine, slots=slots, executor=executor, chat=chat, mark=mark
        )
