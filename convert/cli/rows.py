"""`sia-convert rows`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("rows")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows, from the first on.")
def rows(sources: tuple[Path, ...], out: Path, limit: int | None) -> None:
    """Write the rows of SOURCES to OUT, .jsonl or .parquet.

    A source is JSONL, Parquet or hub:owner/name[/config][:split][@revision], a data set of the Hub, of which no more is
    fetched than --limit asks for. Needs the datasets library for all but JSONL.
    """
    from ..data.rows import write_all

    click.echo(f"{write_all(sources, out, limit)} rows in {out}")
