"""`sia-convert rows`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("rows")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows, from the first on.")
def rows(sources: tuple[Path, ...], out: Path, limit: int | None) -> None:
    """Write the rows of SOURCES, JSONL, Parquet or hub:owner/name[/config][:split], to OUT: .jsonl or .parquet.

    Of a set of the Hub no more is fetched than --limit asks for. Needs the datasets library for all but JSONL.
    """
    from itertools import chain, islice

    from sia_local.errors import ConfigError
    from sia_local.files import atomic_write
    from sia_local.tables import is_table, write_rows

    from ..data.trajectories import read_jsonl

    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{out}: expected a name that ends in .jsonl or .parquet")
    found = islice((row for _, row in chain.from_iterable(map(read_jsonl, sources))), limit)
    if is_table(out):
        whole = list(found)
        write_rows(out, whole)
        count = len(whole)
    else:
        count = 0
        with atomic_write(out) as handle:
            for row in found:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    click.echo(f"{count} rows in {out}")
