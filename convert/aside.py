"""Output files that appear whole or not at all, and a line that says what made them."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from sia_local.errors import ModelFileError

VERSIONED = ("sia-local", "torch", "transformers", "peft", "gguf", "llama-cpp-python", "numpy")


def hold(handle: int | IO[Any]) -> bool:
    """Takes the lock of an open file until it is closed or the process ends; False if another process holds it.

    True without a lock where there are none: on Windows, on some network file systems.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def held(path: Path) -> bool:
    """Whether a running process holds the file or folder."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not hold(fd)
    finally:
        os.close(fd)


def sweep(path: str | os.PathLike[str]) -> None:
    """Removes the temporary files and folders that killed writers of `path` left; those of a running one are held."""
    target = Path(path)
    name = glob.escape(target.name)
    inner = list(target.parent.glob(f"..{name}.*.tmp.tmp"))  # a writer that puts its own file aside of ours
    for left in [*inner, *target.parent.glob(f".{name}.*.tmp")]:
        owner = left.with_name(left.name[1:].removesuffix(".tmp")) if left in inner else left
        if held(owner):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, moved into place when the block ends without an error.

    For writers that open their file themselves; `sia_local.files.atomic_write` serves the others. What killed runs
    left of the same file is removed. Raises ModelFileError when the disk is full; nothing is left behind then.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    hold(fd)
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
    finally:
        os.close(fd)


@contextmanager
def folder_beside(temporary: Path) -> Iterator[Path]:
    """Yields a folder beside what `aside` yields, gone when the block ends; that of a killed run is swept with it."""
    made = temporary.with_name(f".{temporary.name}.tmp")
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


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


def file_mark(path: str | os.PathLike[str]) -> str:
    """Tells large files apart without reading them: size, and a hash of the first and last MiB."""
    source, part = Path(path), 1 << 20
    if not source.is_file():
        raise ModelFileError(f"no file at {source}; check the path")
    size = source.stat().st_size
    with source.open("rb") as handle:
        digest = hashlib.sha256(handle.read(part))
        handle.seek(max(0, size - part))
        digest.update(handle.read(part))
    return f"{size}-{digest.hexdigest()[:12]}"
