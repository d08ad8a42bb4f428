"""Rows of several files and sets in one file: JSONL or Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from sia_local.errors import ConfigError
from sia_local.files import atomic_write
from sia_local.tables import is_table, write_rows

from .trajectories import read_jsonl


def write_all(sources: Iterable[str | os.PathLike[str]], out: Path, limit: int | None = None) -> int:
    """Writes the first `limit` rows to `out`, .jsonl or .parquet, whole or not at all; returns how many.

    Of a set of the Hub no more is fetched than `limit` asks for.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{out}: expected a name that ends in .jsonl or .parquet")
    found = islice((row for _, row in chain.from_iterable(map(read_jsonl, sources))), limit)
    if is_table(out):
        whole = list(found)
        write_rows(out, whole)
        return len(whole)
    count = 0
    with atomic_write(out) as handle:
        for row in found:
            handle.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    return count
