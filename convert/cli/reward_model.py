"""`sia-convert reward-model`: a small reward model from preference pairs."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("reward-model", context_settings={"show_default": True})
@click.argument("backbone", type=str)
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the reward model.")
@click.option("--turns", type=click.IntRange(min=1), default=1, help="Answers a dialogue has at most.")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first so many pairs.")
@click.option("--held-out", default=0.2, help="Share of the dialogues that is held out.")
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=512,
    help="Tokens of a dialogue that are read: the first, and its end.",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, help="Dialogues a forward pass.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
def reward_model(
    backbone: str,
    pairs: Path,
    out: Path,
    turns: int,
    limit: int | None,
    held_out: float,
    max_length: int,
    batch: int,
    seed: int,
    threads: int | None,
) -> None:
    """Train a reward model on PAIRS (JSONL with `chosen` and `rejected`, also .gz): a linear score on the frozen
    BACKBONE, a Hugging Face folder.

    `sia-convert score --reward hf:OUT` and `sia-local eval --reward hf:OUT` read it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
    import torch

    from ..data.preferences import read_pairs
    from ..train.preference import train_reward_model

    if threads:
        torch.set_num_threads(threads)
    f = train_reward_model(backbone, read_pairs(pairs, turns)[:limit], out, held_out, max_length, batch, seed)
    click.echo(
        f"wrote {out}: {f['pairs']:.0f} training pairs, {f['accuracy_train']:.1%} right; held out {f['held_out']:.0f}, "
        f"{f['accuracy']:.1%} right (length alone: {f['accuracy_longer']:.1%})"
    )
