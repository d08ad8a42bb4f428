"""`sia-convert quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from sia_local.cli.from_dataclass import options_for

from ..settings import Machine


@click.command("quantize")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.argument("ftype")
@click.option(
    "--rows",
    type=click.Choice(["f16", "q8_0", "f32"]),
    help="Re-encode the embedding rows that a lean value model carries; default: keep them as they are.",
)
@options_for(Machine, names=("threads",))
def quantize(src: Path, dst: Path, ftype: str, rows: str | None, threads: int | None) -> None:
    """Quantize the GGUF file SRC to FTYPE (Q8_0, Q6_K, Q4_K_M, Q4_0, …) as DST; a value head stays float32."""
    from ..formats.quantize import quantize_gguf, rows_hint

    path = quantize_gguf(src, dst, ftype, rows, threads or 0)
    click.echo(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB, from {src.stat().st_size / 1e6:.1f} MB")
    if hint := rows_hint(path):
        click.echo(hint, err=True)
