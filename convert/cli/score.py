"""`sia-convert score`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for
from sia_local.ray_workers import RayConfig, executor_for

from ..data.score import ScoreConfig


@click.command("score")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--reward",
    required=True,
    help="hf:NAME (a Hugging Face model), url:ADDRESS (one that is served), package.module:function, vader, plain or "
    "data (rewards already there).",
)
@options_for(ScoreConfig)
@options_for(RayConfig)
@click.option("--shard", help="I/N: only every N-th prompt; the outputs of all shards concatenate.")
def score(sources: tuple[Path, ...], out: Path, reward: str, shard: str | None, **options: Any) -> None:
    """Append the trajectories of SOURCES with their rewards to OUT (JSONL). Resumable like `rollouts`."""
    from ..data.score import score_files
    from ..data.trajectories import Shard

    config, executor = build(ScoreConfig, options), executor_for(build(RayConfig, options))
    new = score_files(sources, out, reward, config.batch, Shard.parse(shard), executor)
    click.echo(f"{new} newly scored in {out}")
