"""`sia-convert hf-to-gguf`: a base model as GGUF."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("hf-to-gguf")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["f32", "f16", "bf16"]), default="f16", show_default=True)
@click.option("--pre", help="llama.cpp's name of the pre-tokenizer, where the tokenizer's is not recognised.")
@click.option("--name", help="general.name of the file; default: the folder's name.")
def hf_to_gguf(folder: Path, out: Path, dtype: str, pre: str | None, name: str | None) -> None:
    """Write the Hugging Face causal LM in FOLDER (llama, qwen2 or qwen3) as the GGUF file OUT.

    Tokenizer and chat template are included. OUT may be a folder; the file is then named by convention.
    """
    from ..formats.export import export_base

    click.echo(f"wrote {export_base(folder, out, dtype, pre, name)}")
