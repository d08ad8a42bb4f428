"""`sia-convert train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


@click.command("train", context_settings={"show_default": True})
@click.argument("backbone", type=str)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the value model.")
@click.option("--placement", type=click.Choice(["separate", "adapter", "head"]), default="separate")
@click.option(
    "--tune",
    type=click.Choice(["lora", "full", "none"]),
    show_default="lora; none for --placement head",
    help="What is trained beside the head; full: all weights but the embeddings.",
)
@click.option("--loss", type=click.Choice(["trajectory-mean", "per-token", "td-lambda"]), default="trajectory-mean")
@click.option("--lambda", "lam", default=0.95, help="Lambda of td-lambda: 1 is per-token, 0 one-step TD.")
@click.option("--layers", type=int, help="Keep only the first N blocks of the backbone.")
@click.option("--head-hidden", default=0, help="Width of a hidden layer in the head; 0: a linear head.")
@click.option("--lora-r", default=16)
@click.option("--lora-alpha", default=32)
@click.option("--lora-dropout", default=0.1)
@click.option("--lora-targets", default="q_proj,k_proj,v_proj,o_proj", help="Module names, or all-linear.")
@click.option("--epochs", default=3)
@click.option("--batch", default=16, help="Trajectories a forward pass.")
@click.option("--accumulate", default=1, help="Forward passes an optimiser step.")
@click.option("--lr", default=1e-4)
@click.option("--head-lr", type=float, show_default="--lr")
@click.option("--weight-decay", default=1e-4)
@click.option("--clip", default=1.0)
@click.option("--schedule", type=click.Choice(["constant", "linear", "cosine"]), default="constant")
@click.option("--warmup", default=0, help="Optimiser steps of linear warm-up.")
@click.option("--held-out", default=0.1, help="Share of the prompts that is held out.")
@click.option("--patience", default=2, help="Epochs without a better held-out loss before stopping.")
@click.option("--max-length", default=1024, help="Longest prompt and response together, in tokens.")
@click.option("--template", default="chat", help="chat (the tokenizer's), raw (the plain prompt), or a jinja file.")
@click.option("--stop-token", help="Token appended to finished responses.", show_default="the template's")
@click.option("--reward-name", default="unknown", help="Stored in the model.")
@click.option("--base-name", default="", help="Stored in the model.")
@click.option("--bf16/--no-bf16", default=None, show_default="on a GPU")
@click.option("--checkpointing", is_flag=True, help="Gradient checkpointing: less memory, more time.")
@click.option("--seed", default=0)
@click.option("--save-every", default=200, help="Optimiser steps between resumable states.")
@click.option("--limit", type=int, help="Use only the first N trajectories.")
@click.option("--threads", type=int, help="CPU threads.")
@click.option("--restart", is_flag=True, help="Begin again instead of continuing an interrupted run.")
def train(backbone: str, data: tuple[Path, ...], out: Path, threads: int | None, restart: bool, **options: Any) -> None:
    """Train a value model: BACKBONE (a Hugging Face folder) on the scored trajectories DATA.

    The defaults are the paper's recipe. An interrupted run of the same settings continues where it stopped.
    """
    # Before torch is imported: waiting threads that spin slow everything down once cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from ..train.loop import TrainConfig
    from ..train.loop import train as run
    from ..train.model import LoraSettings

    if threads:
        torch.set_num_threads(threads)
    template = options["template"]
    if template not in ("chat", "raw"):
        from sia_local.errors import DataError

        if not Path(template).is_file():
            raise DataError(f"--template {template}: expected chat, raw or the path of a jinja file")
        options["template"] = Path(template).read_text(encoding="utf-8")
    lora = LoraSettings(
        options.pop("lora_r"),
        options.pop("lora_alpha"),
        options.pop("lora_dropout"),
        tuple(name.strip() for name in options.pop("lora_targets").split(",")),
    )
    paths = tuple(str(path) for path in data)
    run(TrainConfig(backbone=backbone, data=paths, out=str(out), lora=lora, **options), resume=not restart)
