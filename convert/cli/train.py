"""`sia-convert train`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..train.config import TrainConfig, read_template


@click.command("train")
@click.argument("backbone", type=str)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the value model.")
@options_for(TrainConfig)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    help="CPU threads of a process.  [default: all of one process, one of several]",
)
@click.option("--processes", type=click.IntRange(min=1), help="Train in so many processes.  [default: 1]")
@click.option(
    "--accelerate",
    type=click.Path(path_type=Path),
    help="File of `accelerate config`: machines, processes, FSDP. Give the same command on each machine.",
)
@click.option("--restart", is_flag=True, help="Begin again instead of continuing an interrupted run.")
def train(
    backbone: str,
    data: tuple[Path, ...],
    out: Path,
    threads: int | None,
    processes: int | None,
    accelerate: Path | None,
    restart: bool,
    **options: Any,
) -> None:
    """Train a value model: BACKBONE (a Hugging Face folder) on the scored trajectories DATA.

    The defaults are the paper's recipe. An interrupted run of the same settings continues where it stopped.
    """
    # Before torch is imported: waiting threads that spin slow everything down once cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sia_local.tables import pinned

    from ..train.launch import launch
    from ..train.loop import train as run

    config = build(TrainConfig, options, backbone=backbone, data=tuple(map(pinned, data)), out=str(out))
    config = dataclasses.replace(config, template=read_template(config.template))
    if accelerate is not None or (processes or 1) > 1:
        launch(config, Path(f"{out.resolve()}-train.json"), processes, accelerate, restart, threads)
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    run(config, resume=not restart)
