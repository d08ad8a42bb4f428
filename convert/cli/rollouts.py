"""`sia-convert rollouts`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("rollouts", context_settings={"show_default": True})
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF.")
@click.option("--pairs", is_flag=True, help="PROMPTS is JSONL of prompt/response pairs; sample nothing.")
@click.option("--samples", default=4, help="Responses a prompt.")
@click.option("--max-tokens", default=128)
@click.option("--k", default=10, help="Sample from the k likeliest tokens, as steering will.")
@click.option("--temperature", default=1.0)
@click.option("--slots", default=16, help="Sequences decoded at once.")
@click.option("--ctx", default=512, help="Tokens a sequence may hold, prompt included.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--seed", default=0)
@click.option("--shard", help="I/N: only every N-th prompt; the outputs of all shards concatenate.")
@click.option("--value", type=click.Path(path_type=Path), help="Sample from the policy this value GGUF steers.")
@click.option("--gate", default="entropy", help="With --value: when to steer.")
@click.option("--threshold", default=1.0, help="With --value: entropy threshold in nats.")
@click.option("--rate", default=0.2, help="With --value: share of steered tokens for the gates rate and random.")
@click.option("--beta", default=1.0, help="With --value: strength.")
@click.option("--beta-unit", type=click.Choice(["raw", "spread"]), default="raw", help="With --value.")
@click.option("--threads", default=0, show_default="all")
@click.option("--gpu-layers", default=0)
def rollouts(
    prompts: Path,
    out: Path,
    base: Path,
    pairs: bool,
    samples: int,
    max_tokens: int,
    k: int,
    temperature: float,
    slots: int,
    ctx: int,
    raw: bool,
    seed: int,
    shard: str | None,
    value: Path | None,
    gate: str,
    threshold: float,
    rate: float,
    beta: float,
    beta_unit: str,
    threads: int,
    gpu_layers: int,
) -> None:
    """Sample trajectories for the prompts in PROMPTS (text, JSONL, JSON, CSV) and append them to OUT (JSONL).

    Run again after an interruption: it continues with what is missing.
    """
    from sia_local import SiaConfig
    from sia_local.config import SamplingConfig

    from ..data.rollouts import RolloutConfig, load_prompts, sample, take_pairs
    from ..data.trajectories import Shard

    part = Shard.parse(shard)
    if pairs:
        click.echo(f"{take_pairs(prompts, out, str(base), part)} new trajectories in {out}")
        return
    sampling = SiaConfig(
        k=k,
        gate=gate if value else "off",
        threshold=threshold,
        rate=rate,
        beta=beta,
        beta_unit=beta_unit,
        sampling=SamplingConfig(temperature=temperature),
    )
    config = RolloutConfig(
        base=str(base),
        samples=samples,
        max_tokens=max_tokens,
        slots=slots,
        n_ctx=ctx,
        n_threads=threads,
        n_gpu_layers=gpu_layers,
        value=str(value) if value else None,
        sampling=sampling,
        raw=raw,
        seed=seed,
    )
    click.echo(f"{sample(load_prompts(prompts), out, config, part)} new trajectories in {out}")
