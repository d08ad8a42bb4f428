"""`sia-convert verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..proof.junctions import JunctionConfig
from ..settings import Machine


@click.command("verify")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF: it decides the junctions.")
@click.option("--data", required=True, multiple=True, type=click.Path(path_type=Path), help="Trajectories (JSONL).")
@click.option("--quantize", default="", help="Also verify these quantizations of the first file: Q8_0,Q4_K_M,…")
@click.option("--backbone", type=click.Path(path_type=Path), help="Hugging Face folder, if it has moved.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON report.")
@options_for(JunctionConfig)
@options_for(Machine)
@click.pass_context
def verify(
    context: click.Context,
    checkpoint: Path,
    files: tuple[Path, ...],
    base: Path,
    data: tuple[Path, ...],
    quantize: str,
    backbone: Path | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Compare the values of the GGUF FILES with those of CHECKPOINT in PyTorch, on the same token sequences.

    The GGUF runs as in use: queue, candidates, commits. Exits with 1 when a file is beyond its tolerance
    (float32: max |dV| 1e-3; Q8_0: the same best candidate at 95 % of junctions; Q4_K_M: at 90 %).
    """
    from ..formats.checkpoint import ValueCheckpoint
    from ..proof.verify import table, write_report
    from ..proof.verify import verify as run
    from ..proof.walk import walk

    config, machine = build(JunctionConfig, options), build(Machine, options)
    seen = walk(ValueCheckpoint.open(checkpoint, backbone), base, data, config, machine)
    types = [name.strip() for name in quantize.split(",") if name.strip()]
    rows = run(seen, files, base, types, machine)
    click.echo(table(rows))
    if out is not None:
        write_report(rows, out)
    if any(row.failures for row in rows):
        context.exit(1)
