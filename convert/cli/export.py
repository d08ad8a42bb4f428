"""`sia-convert export`: a trained value model as GGUF."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(["merged", "lean", "adapter", "head"]),
    show_default="by placement; lean for separate",
    help="merged: a standard GGUF with the LoRA merged. lean: without a vocabulary, its only logit is V. "
    "adapter: a LoRA over the base's own weights. head: the head alone, over the frozen base.",
)
@click.option("--base", type=click.Path(path_type=Path), help="Base GGUF: its tokenizer is the one to agree with.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Hugging Face folder, if it has moved.")
@click.option("--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f16", show_default=True)
@click.option(
    "--rows",
    type=click.Choice(["f16", "q8_0", "f32", "base"]),
    show_default="f32 beside f32 weights, else f16",
    help="Format of a lean file's embedding rows; base: none, the base model's are used.",
)
@click.option("--spread", type=float, help="Spread of V among candidates (see `sia-convert spread`).")
@click.option("--name", help="general.name of the file.")
@click.option("--pre", help="llama.cpp's name of the pre-tokenizer, where the tokenizer's is not recognised.")
def export(
    checkpoint: Path,
    out: Path,
    layout: str | None,
    base: Path | None,
    backbone: Path | None,
    dtype: str,
    rows: str | None,
    spread: float | None,
    name: str | None,
    pre: str | None,
) -> None:
    """Write the value model trained into the folder CHECKPOINT as the GGUF file OUT (or into the folder OUT)."""
    import dataclasses

    from ..formats.checkpoint import ValueCheckpoint
    from ..formats.export import export_value

    found = ValueCheckpoint.open(checkpoint, backbone)
    if spread is not None:
        found = dataclasses.replace(found, meta=dataclasses.replace(found.meta, spread=spread))
    click.echo(f"wrote {export_value(found, out, layout, base, dtype, rows, name, pre)}")
