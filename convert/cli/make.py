"""`sia-convert make`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sia_local.cli.from_dataclass import build, options_for
from sia_local.ray_workers import RayConfig


@click.command("make")
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the plan and tell the steps: what is done, what is to do.")
@options_for(RayConfig)
def make(plan: Path, overrides: tuple[Path, ...], dry_run: bool, **options: Any) -> None:
    """Run the whole chain that the TOML file PLAN describes, skipping what is done.

    Settings in the TOML files OVERRIDES replace those of PLAN; paths in all of them are relative to PLAN. A step
    runs again when its settings or the content of its inputs changed. Stop it with Ctrl-C and give the command
    again to continue.
    """
    # Before torch is imported: waiting threads that spin slow everything down once cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..make import make as run

    run(plan, *overrides, echo=click.echo, dry_run=dry_run, ray=build(RayConfig, options))
