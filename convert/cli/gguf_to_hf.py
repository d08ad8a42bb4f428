"""`sia-convert gguf-to-hf`: a GGUF model as a folder that can be trained."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("gguf-to-hf")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def gguf_to_hf(gguf: Path, folder: Path) -> None:
    """Write the model in GGUF (llama, qwen2, qwen3 or gemma3, any quantization) as the Hugging Face folder FOLDER.

    A backbone for `train` where the original checkpoint is not at hand. Weights are float32; what quantization took
    is lost. The tokenizer is compared with llama.cpp's before anything is kept.
    """
    from ..formats.gguf_to_hf import gguf_to_hf as convert

    click.echo(f"wrote {convert(gguf, folder)}")
