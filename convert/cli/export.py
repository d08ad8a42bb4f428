"""`sia-convert export`: a trained value model as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..formats.export import ExportConfig


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Base GGUF: its tokenizer is the one to agree with.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Hugging Face folder, if it has moved.")
@options_for(ExportConfig)
def export(checkpoint: Path, out: Path, base: Path | None, backbone: Path | None, **options: Any) -> None:
    """Write the value model trained into the folder CHECKPOINT as the GGUF file OUT (or into the folder OUT)."""
    from ..formats.checkpoint import ValueCheckpoint
    from ..formats.export import export_value

    config = build(ExportConfig, options)
    found = ValueCheckpoint.open(checkpoint, backbone)
    click.echo(f"wrote {export_value(found, out, base, config)}")
    if config.spread is None and found.spread() is None:
        click.echo("its spread is not known, so beta cannot count in spreads: measure it with `sia-convert spread`")
