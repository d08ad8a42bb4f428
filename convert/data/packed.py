"""Lines of a file as it is, or packed with gzip or xz."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sia_local.errors import DataError

OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open}


def lines(path: str | os.PathLike[str], expected: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line that is not blank. DataError where there is no file, or a packed one is
    damaged."""
    source = Path(path)
    if not source.is_file():
        raise DataError(f"no file at {source}: expected {expected}")
    try:
        with OPENERS.get(source.suffix, open)(source, "rb") as handle:
            yield from ((number, line) for number, line in enumerate(handle, 1) if line.strip())
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source} cannot be unpacked ({error}): it is cut short or damaged; fetch it again") from None
