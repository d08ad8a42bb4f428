"""`sia-convert score`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("score", context_settings={"show_default": True})
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--reward",
    required=True,
    help="hf:NAME (a Hugging Face model), package.module:function, vader, plain or data (rewards already there).",
)
@click.option("--batch", default=64, help="Trajectories a call of the reward.")
@click.option("--shard", help="I/N: only every N-th prompt; the outputs of all shards concatenate.")
def score(sources: tuple[Path, ...], out: Path, reward: str, batch: int, shard: str | None) -> None:
    """Append the trajectories of SOURCES with their rewards to OUT (JSONL). Resumable like `rollouts`."""
    from ..data.score import score_files
    from ..data.trajectories import Shard

    click.echo(f"{score_files(sources, out, reward, batch, Shard.parse(shard))} newly scored in {out}")
