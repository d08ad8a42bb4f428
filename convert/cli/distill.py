"""`sia-convert distill`: a Q-head that stands in for a value model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for
from sia_local.config import ChatSettings
from sia_local.learning.collect import CollectConfig
from sia_local.learning.fit import FitConfig
from sia_local.ray_workers import RayConfig, executor_for

from ..plan import DistillSection
from ..settings import Machine


@click.command("distill")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF, as it will be steered.")
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="One prompt a line, or JSONL.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The Q-head, GGUF.")
@click.option("--junctions", type=click.Path(path_type=Path), help="Folder of what was collected.  [default: OUT.d]")
@click.option("--slots", type=click.IntRange(min=1), default=4, show_default=True, help="Texts at once.")
@options_for(CollectConfig)
@options_for(DistillSection, names=("n_ctx",))
@options_for(FitConfig)
@options_for(ChatSettings)
@options_for(RayConfig)
@options_for(Machine)
def distill(
    teacher: Path, base: Path, prompts: Path, out: Path, junctions: Path | None, slots: int, **options: Any
) -> None:
    """Distil TEACHER, a value GGUF or the folder of a trained value model, into a Q-head that costs no decode.

    The base writes texts, every other one steered by the teacher; where it is unsure the teacher scores the candidates.
    Run again after an interruption: it goes on with the texts that are missing.
    """
    from ..data.distill import distill_checkpoint, distill_file

    machine, ray, folder = build(Machine, options), build(RayConfig, options), junctions or Path(f"{out}.d")
    config = build(DistillSection, options, out=out)
    machine = replace(machine, threads=ray.threads(machine.threads))
    executor = executor_for(ray) if ray.ray is not None else None
    run = distill_checkpoint if teacher.is_dir() else distill_file
    chat = build(ChatSettings, options)
    click.echo(run(teacher, base, prompts, config, folder, machine, slots=slots, executor=executor, chat=chat))
