"""Files as they are, or packed with gzip or xz."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, DataError

OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open}


def unpacked(path: str | os.PathLike[str]) -> Path:
    """What a packed file holds is called: its name without the last ending."""
    source = Path(path)
    return source.with_suffix("") if source.suffix.lower() in OPENERS else source


def check_plain(path: str | os.PathLike[str]) -> None:
    """Raises ConfigError where what is written as it is would have the name of a packed file, as which it is read."""
    if (plain := unpacked(path)) != Path(path):
        raise ConfigError(f"{os.fspath(path)}: is written as plain text, not packed; name it {plain.name}")


def read(path: str | os.PathLike[str]) -> bytes:
    """The whole content. OSError where it cannot be read, DataError where a packed file is damaged."""
    with _opened(Path(path)) as handle:
        return bytes(handle.read())


def lines(path: str | os.PathLike[str], expected: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line that is not blank. DataError where there is no file, or a packed one is
    damaged."""
    source = Path(path)
    if not source.is_file():
        raise DataError(f"no file at {source}: expected {expected}")
    with _opened(source) as handle:
        yield from ((number, line) for number, line in enumerate(handle, 1) if line.strip())


@contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    try:
        with OPENERS.get(source.suffix.lower(), open)(source, "rb") as handle:
            yield handle
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source} cannot be unpacked ({error}): it is cut short or damaged; fetch it again") from None
