"""`sia-convert rollouts`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for
from sia_local.errors import ConfigError
from sia_local.ray_workers import RayConfig, executor_for

from ..data.rollouts import RolloutConfig, Steering
from ..data.served import ServerConfig
from ..settings import Machine


@click.command("rollouts")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF.")
@click.option("--pairs", is_flag=True, help="PROMPTS is JSONL of prompt/response pairs; sample nothing.")
@options_for(RolloutConfig)
@click.option("--shard", help="I/N: only every N-th prompt; the outputs of all shards concatenate.")
@click.option("--value", type=click.Path(path_type=Path), help="Sample from the policy this value GGUF steers.")
@options_for(Steering)
@options_for(ServerConfig)
@click.option("--api-key", envvar="SIA_API_KEY", help="Key for the servers at --url.")
@options_for(RayConfig)
@options_for(Machine)
def rollouts(
    prompts: Path,
    out: Path,
    base: Path,
    pairs: bool,
    shard: str | None,
    value: Path | None,
    api_key: str | None,
    **options: Any,
) -> None:
    """Sample trajectories for the prompts in PROMPTS (text, JSONL, JSON, CSV) and append them to OUT (JSONL).

    Run again after an interruption: it continues with what is missing.
    """
    from ..data.pairs import take_pairs
    from ..data.rollouts import load_prompts, sample
    from ..data.served import sample_served
    from ..data.trajectories import Shard

    part = Shard.parse(shard)
    config, machine = build(RolloutConfig, options), build(Machine, options)
    steering, servers, ray = build(Steering, options), build(ServerConfig, options), build(RayConfig, options)
    if pairs and (servers.url or value is not None):
        other = "--url" if servers.url else "--value"
        raise ConfigError(f"--pairs takes answers that are there, {other} samples new ones: give one of them")
    if pairs:
        click.echo(f"{take_pairs(prompts, out, base, part, config)} new trajectories in {out}")
        return
    if servers.url and value is not None:
        raise ConfigError("--url samples from what a server runs, --value steers on this machine: give one of them")
    if servers.url and ray.ray is not None:
        raise ConfigError("--url already shares the work among servers: leave out --ray")
    if servers.url:
        new = sample_served(load_prompts(prompts), out, base, config, servers, api_key, machine, part)
    else:
        machine = replace(machine, threads=ray.threads(machine.threads))
        texts = load_prompts(prompts)
        new = sample(texts, out, base, config, machine, part, value, steering, executor_for(ray))
    click.echo(f"{new} new trajectories in {out}")
