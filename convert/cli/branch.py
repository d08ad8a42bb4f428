"""`sia-convert branch`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for
from sia_local.ray_workers import RayConfig, executor_for

from ..data.branch import BranchConfig
from ..settings import Machine


@click.command("branch")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF.")
@click.option("--reward", required=True, help="What a text earns: as for `score`.")
@options_for(BranchConfig)
@click.option("--shard", help="I/N: only every N-th prompt; the outputs of all shards concatenate.")
@options_for(RayConfig)
@options_for(Machine)
def branch(prompts: Path, out: Path, base: Path, reward: str, shard: str | None, **options: Any) -> None:
    """Try several candidates at junctions: continue each to the end, several times, and score the texts.

    OUT (JSONL) holds the base's texts with their rewards, as `score` writes them, and beside each its branches: mean
    reward and count a candidate, which `sia-local learn --targets` and `train --loss branched` read. Run again after an
    interruption: it continues with the texts that are missing.
    """
    from ..data.branch import branch as run
    from ..data.rollouts import load_prompts
    from ..data.trajectories import Shard

    config, machine = build(BranchConfig, options), build(Machine, options)
    ray = build(RayConfig, options)
    machine = replace(machine, threads=ray.threads(machine.threads))
    new = run(load_prompts(prompts), out, base, reward, config, machine, Shard.parse(shard), executor_for(ray))
    click.echo(f"{new} newly branched texts in {out}")
