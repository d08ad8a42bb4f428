"""Rows of Parquet files and of data sets of the Hugging Face Hub, by the `datasets` library where one is named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError

HUB = "hub:"  # hub:owner/name, hub:owner/name:split, hub:owner/name/config:split


def is_table(source: str | os.PathLike[str]) -> bool:
    """Whether `rows` reads it: a Parquet file, or a name of the Hub."""
    return os.fspath(source).startswith(HUB) or os.fspath(source).lower().endswith(".parquet")


def exists(source: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder; of the Hub nothing is asked."""
    return os.fspath(source).startswith(HUB) or Path(source).exists()


def rows(source: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Rows as they come, so that a large set is neither kept whole nor fetched further than it is read.

    Raises ConfigError without the library, DataError for what it cannot read.
    """
    datasets, name = _library(source), os.fspath(source)
    try:
        if name.startswith(HUB):
            path, _, split = name.removeprefix(HUB).partition(":")
            owner, _, rest = path.partition("/")
            repo, _, config = rest.partition("/")
            found = datasets.load_dataset(
                f"{owner}/{repo}" if repo else owner, config or None, split=split or "train", streaming=True
            )
        elif not Path(name).is_file():
            raise DataError(f"no file at {name}: expected Parquet")
        else:
            found = datasets.load_dataset("parquet", data_files=name, split="train", streaming=True)
        yield from map(dict, found)
    except DataError:
        raise
    except Exception as error:  # whatever its readers and the network raise
        said = str(error).splitlines()[0] if str(error) else ""
        raise DataError(
            f"{name}: the datasets library cannot read it ({type(error).__name__}: {said[:200]})"
        ) from error


def write_rows(path: str | os.PathLike[str], found: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same fields as a Parquet file, whole or not at all."""
    from .files import aside

    datasets = _library(path)
    names = dict.fromkeys(name for row in found for name in row)
    with aside(path) as temporary:
        datasets.Dataset.from_dict({n: [row.get(n) for row in found] for n in names}).to_parquet(str(temporary))


def _library(source: str | os.PathLike[str]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{os.fspath(source)} needs the datasets library, which is not installed: pip install 'sia-local[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    return datasets
