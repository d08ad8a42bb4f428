"""`sia-convert spread`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("spread", context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF: it decides the junctions.")
@click.option("--backbone", type=click.Path(path_type=Path), help="Hugging Face folder, if it has moved.")
@click.option("--k", default=10, help="Candidates.")
@click.option("--threshold", default=1.0, help="Entropy of a junction, in nats over the candidates.")
@click.option("--limit", default=60, help="Trajectories to measure.")
@click.option("--ctx", default=1024, help="Tokens a sequence may hold.")
@click.option("--threads", default=0, show_default="all")
@click.option("--gpu-layers", default=0, help="Layers of the base on the GPU.")
def spread(
    checkpoint: Path,
    data: tuple[Path, ...],
    base: Path,
    backbone: Path | None,
    k: int,
    threshold: float,
    limit: int,
    ctx: int,
    threads: int,
    gpu_layers: int,
) -> None:
    """Measure how far V differs among the candidates of a junction and store it for `export`.

    CHECKPOINT is a trained value model, DATA trajectories that it was not trained on.
    """
    from ..formats.checkpoint import ValueCheckpoint
    from ..proof.junctions import Runtime
    from ..proof.spread import measure_spread, store_spread

    found = ValueCheckpoint.open(checkpoint, backbone)
    value, count = measure_spread(found, base, data, k, threshold, limit, Runtime(ctx, threads, gpu_layers))
    store_spread(found, value)
    click.echo(f"spread {value:.4g} in reward units, over {count} junctions")
