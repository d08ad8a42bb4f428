"""Rows of Parquet files and of data sets of the Hugging Face Hub, by the `datasets` library where one is named."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ConfigError, DataError

HUB = "hub:"
_SPEC = re.compile(r"hub:([\w.-]+(?:/[\w.-]+)?)(?:/([\w.-]+))?(?::([^@]+))?(?:@(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """What `hub:owner/name[/config][:split][@revision]` says; without a revision what the Hub has now is meant."""

    repo: str
    config: str | None
    split: str
    revision: str | None

    @classmethod
    def parse(cls, source: str | os.PathLike[str]) -> HubName:
        """Raises ConfigError for what is no such name."""
        if (found := _SPEC.fullmatch(os.fspath(source))) is None:
            raise ConfigError(
                f"{os.fspath(source)!r} was given; expected hub:owner/name, as in hub:owner/name/config:split@revision"
            )
        return cls(found[1], found[2], found[3] or "train", found[4])


def is_hub(source: str | os.PathLike[str]) -> bool:
    """Whether it names a data set of the Hub."""
    return os.fspath(source).startswith(HUB)


def is_table(source: str | os.PathLike[str]) -> bool:
    """Whether `rows` reads it: a Parquet file, or a name of the Hub."""
    return is_hub(source) or os.fspath(source).lower().endswith(".parquet")


def exists(source: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder; of the Hub nothing is asked."""
    return is_hub(source) or Path(source).exists()


def check(source: str | os.PathLike[str]) -> None:
    """Raises ConfigError for what is no name of the Hub, and where a library is missing that `rows` needs for it."""
    if is_hub(source):
        HubName.parse(source)
    if is_table(source):
        _library(source)


def pinned(source: str | os.PathLike[str]) -> str:
    """The source with the commit that the Hub has of it now, so that it means the same rows later; files as they are.

    Asks the Hub unless a commit is named already. Raises ConfigError, DataError.
    """
    name = os.fspath(source)
    if not is_hub(source) or _COMMIT.fullmatch((spec := HubName.parse(source)).revision or ""):
        return name
    _library(source)
    from huggingface_hub import HfApi  # datasets needs it

    try:
        commit = HfApi().dataset_info(spec.repo, revision=spec.revision).sha
    except Exception as error:  # whatever the network and the Hub raise
        raise DataError(
            f"{name}: the Hub does not say which commit that is ({_said(error)}); name one, as in hub:o/name@COMMIT"
        ) from error
    return f"{name.partition('@')[0]}@{commit}"


def rows(source: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Rows as they come, so that a large set is neither kept whole nor fetched further than it is read.

    Raises ConfigError without the library, DataError for what it cannot read.
    """
    datasets, name = _library(source), os.fspath(source)
    try:
        if is_hub(source):
            spec = HubName.parse(source)
            found = datasets.load_dataset(
                spec.repo, spec.config, split=spec.split, revision=spec.revision, streaming=True
            )
        elif not Path(name).is_file():
            raise DataError(f"no file at {name}: expected Parquet")
        else:
            found = datasets.load_dataset("parquet", data_files=name, split="train", streaming=True)
        yield from map(dict, found)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # whatever its readers and the network raise
        raise DataError(f"{name}: the datasets library cannot read it ({_said(error)})") from error


def write_rows(path: str | os.PathLike[str], found: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same fields as a Parquet file, whole or not at all."""
    from .files import aside

    datasets = _library(path)
    names = dict.fromkeys(name for row in found for name in row)
    with aside(path) as temporary:
        datasets.Dataset.from_dict({n: [row.get(n) for row in found] for n in names}).to_parquet(str(temporary))


def _said(error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {first[:200]}"


def _library(source: str | os.PathLike[str]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{os.fspath(source)} needs the datasets library, which is not installed: pip install 'sia-local[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    return datasets
