"""Output files that appear whole or not at all, and a line that says what made them."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from sia_local.errors import ModelFileError

VERSIONED = ("sia-local", "torch", "transformers", "peft", "gguf", "llama-cpp-python", "numpy")


@contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, moved into place when the block ends without an error.

    For writers that open their file themselves; `sia_local.files.atomic_write` serves the others.
    Raises ModelFileError when the disk is full; nothing is left behind then.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelFileError(
                f"the disk filled up while writing {target}; nothing of it was kept: free space and run again"
            ) from error
        raise


def provenance() -> dict[str, object]:
    """Command line and package versions, written into every output. Paths are cut to their last part."""
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv]
    return {"command": " ".join(words), "versions": versions}


def provenance_json() -> str:
    """`provenance` as one line of JSON, for a metadata key."""
    return json.dumps(provenance(), sort_keys=True)
