"""`sia-convert spread`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..proof.junctions import JunctionConfig
from ..settings import Machine


@click.command("spread")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF: it decides the junctions.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Hugging Face folder, if it has moved.")
@options_for(JunctionConfig)
@options_for(Machine)
def spread(checkpoint: Path, data: tuple[Path, ...], base: Path, backbone: Path | None, **options: Any) -> None:
    """Measure how far V differs among the candidates of a junction and store it for `export`.

    CHECKPOINT is a trained value model, DATA trajectories that it was not trained on.
    """
    from ..formats.checkpoint import ValueCheckpoint
    from ..proof.walk import store_spread, walk

    found = ValueCheckpoint.open(checkpoint, backbone)
    seen = walk(found, base, data, build(JunctionConfig, options), build(Machine, options))
    click.echo(f"spread {store_spread(found, seen):.4g} in reward units, over {seen.junctions} junctions")
