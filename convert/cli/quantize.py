"""`sia-convert quantize`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("quantize")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.argument("ftype")
@click.option(
    "--rows",
    type=click.Choice(["f16", "q8_0", "f32"]),
    help="Re-encode the embedding rows that a lean value model carries; default: keep them as they are.",
)
@click.option("--threads", default=0, show_default="all")
def quantize(src: Path, dst: Path, ftype: str, rows: str | None, threads: int) -> None:
    """Quantize the GGUF file SRC to FTYPE (Q8_0, Q6_K, Q4_K_M, Q4_0, …) as DST; a value head stays float32."""
    from ..formats.quantize import quantize_gguf

    path = quantize_gguf(src, dst, ftype, rows, threads)
    click.echo(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB, from {src.stat().st_size / 1e6:.1f} MB")
