"""`sia-convert pretrain`: the demo base language model."""

from __future__ import annotations

import os
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..demo.recipe import PretrainConfig


@click.command()
@options_for(PretrainConfig)
def pretrain(**options: Any) -> None:
    """Trains the base language model from raw text, tokenizer included. Run it again to continue."""
    # Before torch is imported: spinning threads slow a training run severalfold once anything shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from ..demo.pretrain import pretrain as run

    progress = run(build(PretrainConfig, options))
    click.echo(f"{progress.tokens} tokens in {progress.seconds / 60:.1f} minutes, {progress.step} steps", err=True)
