"""`sia-convert estimate`."""

from __future__ import annotations

from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for

from ..costs.estimate import Work


@click.command("estimate")
@click.argument("base")
@options_for(Work)
def estimate(base: str, **options: Any) -> None:
    """What a value model for BASE costs: tokens, operations, memory, time of every step, and where the time goes.

    BASE is a GGUF, or a name such as qwen3-14b. Nothing is loaded or run; docs/scale.md has the arithmetic, and how far
    it was from what was measured.
    """
    from ..costs.estimate import estimate as run
    from ..costs.estimate import steered_speed, table

    work = build(Work, options)
    click.echo(table(run(base, work), work))
    unsteered, sparse = steered_speed(base, work, 0.0), steered_speed(base, work, 0.2)
    click.echo(f"steered afterwards: {unsteered:.3g} tokens/s of one text, {sparse:.3g} with a fifth of them steered")
