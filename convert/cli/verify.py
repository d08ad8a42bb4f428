"""`sia-convert verify`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify", context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Base GGUF: it decides the junctions.")
@click.option("--data", required=True, multiple=True, type=click.Path(path_type=Path), help="Trajectories (JSONL).")
@click.option("--quantize", default="", help="Also verify these quantizations of the first file: Q8_0,Q4_K_M,…")
@click.option("--backbone", type=click.Path(path_type=Path), help="Hugging Face folder, if it has moved.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON report.")
@click.option("--k", default=10, help="Candidates.")
@click.option("--threshold", default=1.0, help="Entropy of a junction, in nats over the candidates.")
@click.option("--limit", default=40, help="Trajectories.")
@click.option("--per-trajectory", default=24, help="Junctions of a trajectory at most.")
@click.option("--ctx", default=1024, help="Tokens a sequence may hold.")
@click.option("--threads", default=0, show_default="all")
@click.option("--gpu-layers", default=0, help="Layers of the base on the GPU while it decides the junctions.")
@click.pass_context
def verify(
    ctx_: click.Context,
    checkpoint: Path,
    files: tuple[Path, ...],
    base: Path,
    data: tuple[Path, ...],
    quantize: str,
    backbone: Path | None,
    out: Path | None,
    k: int,
    threshold: float,
    limit: int,
    per_trajectory: int,
    ctx: int,
    threads: int,
    gpu_layers: int,
) -> None:
    """Compare the values of the GGUF FILES with those of CHECKPOINT in PyTorch, on the same token sequences.

    The GGUF runs as in use: queue, candidates, commits. Exits with 1 when a file is beyond its tolerance
    (float32: max |dV| 1e-3; Q8_0: the same best candidate at 95 % of junctions; Q4_K_M: at 90 %).
    """
    from ..formats.checkpoint import ValueCheckpoint
    from ..proof.junctions import Runtime
    from ..proof.verify import table, write_report
    from ..proof.verify import verify as run

    rows = run(
        ValueCheckpoint.open(checkpoint, backbone),
        files,
        base,
        data,
        [name.strip() for name in quantize.split(",") if name.strip()],
        k,
        threshold,
        limit,
        per_trajectory,
        Runtime(ctx, threads, gpu_layers),
    )
    click.echo(table(rows))
    if out is not None:
        write_report(rows, out)
    if any(row.failures for row in rows):
        ctx_.exit(1)
