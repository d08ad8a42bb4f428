"""`sia-convert hf-to-gguf`: a base model as GGUF."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..formats.export import BaseConfig


@click.command("hf-to-gguf")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@options_for(BaseConfig)
def hf_to_gguf(folder: Path, out: Path, **options: Any) -> None:
    """Write the Hugging Face causal LM in FOLDER as the GGUF file OUT, with its tokenizer and chat template.

    What is not llama, qwen2 or qwen3 goes through llama.cpp's own converter (see fetch-converter). OUT may be a folder;
    the file is then named by convention.
    """
    from ..formats.export import export_base

    config = build(BaseConfig, options)
    click.echo(f"wrote {export_base(folder, out, **dataclasses.asdict(config))}")
