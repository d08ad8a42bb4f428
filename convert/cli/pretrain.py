"""`sia-convert pretrain`: the demo base language model."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder with the story collections.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/base"),
    show_default=True,
    help="Checkpoints, tokenizer and log.jsonl; an interrupted run continues from here.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/base-hf"),
    show_default=True,
    help="Hugging Face folder written at the end.",
)
@click.option("--minutes", type=float, default=55.0, show_default=True, help="Training time, resumed time included.")
@click.option("--tokens", type=int, default=60_000_000, show_default=True, help="Stop after this many tokens.")
@click.option("--layers", type=int, default=6, show_default=True)
@click.option("--hidden-size", type=int, default=256, show_default=True)
@click.option("--intermediate-size", type=int, default=768, show_default=True)
@click.option("--batch", type=int, default=8, show_default=True, help="Rows of 512 tokens a step.")
@click.option("--lr", type=float, default=2e-3, show_default=True, help="Peak learning rate.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--bf16/--fp32", default=True, show_default=True, help="bfloat16 autocast.")
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=True,
    show_default=True,
    help="torch.compile; needs g++ and is skipped without it.",
)
def pretrain(**options: object) -> None:
    """Trains the base language model from raw text, tokenizer included. Run it again to continue."""
    # Before torch is imported: spinning threads slow a training run severalfold once anything shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from ..demo.pretrain import PretrainConfig
    from ..demo.pretrain import pretrain as run

    progress = run(PretrainConfig(**options))  # type: ignore[arg-type]
    click.echo(f"{progress.tokens} tokens in {progress.seconds / 60:.1f} minutes, {progress.step} steps", err=True)
