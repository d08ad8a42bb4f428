"""`sia-convert import-official`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..formats.export import ExportConfig


@click.command("import-official", context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--backbone", type=click.Path(path_type=Path), show_default="base_model_path of model_config.json")
@click.option("--reward-name", default="unknown", help="Stored in the model.")
@click.option("--base-name", default="", help="Stored in the model.")
@click.option("--gguf", type=click.Path(path_type=Path), help="Also export it to this file.")
@click.option("--base", type=click.Path(path_type=Path), help="With --gguf: the base GGUF it will steer.")
@options_for(
    ExportConfig,
    names=("layout", "dtype"),
    overrides={
        "layout": {"help": "With --gguf.", "choices": ("merged", "lean", "adapter"), "show": "lean"},
        "dtype": {"help": "With --gguf."},
    },
)
def import_official(
    folder: Path,
    out: Path,
    backbone: Path | None,
    reward_name: str,
    base_name: str,
    gguf: Path | None,
    base: Path | None,
    **options: Any,
) -> None:
    """Turn a checkpoint of the paper's code in FOLDER into the value model folder OUT, ready for `export`.

    FOLDER has lora_weights/ (PEFT), token_reward_head.pt and model_config.json. Pickled code is never run.
    """
    from ..formats.export import export_value
    from ..formats.official import import_official as run

    checkpoint = run(folder, out, backbone, reward_name, base_name)
    click.echo(f"wrote {out}")
    if gguf is not None:
        click.echo(f"wrote {export_value(checkpoint, gguf, base, build(ExportConfig, options))}")
