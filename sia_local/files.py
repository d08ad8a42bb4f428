"""Files that are either whole or absent, and text that is read with a sentence where it cannot be."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, ModelFileError
from .packed import check_plain

# A full disk, a quota, a limit of the process on a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What decides how a Hugging Face folder behaves; anything else in it may change freely.
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path whose `~` is written out. Raises ConfigError where no home folder is known, as in some containers, and for
    a path that no file can have."""
    if "\0" in str(path):
        raise ConfigError(f"{path}: holds a null character; expected a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{path}: no home folder is known to this process; set HOME to a folder that it may use"
        ) from None


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/sia_local`, or `~/.cache/sia_local`. Raises ConfigError as at_home() does."""
    return at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sia_local"


def parse_json(text: str | bytes) -> Any:
    """json.loads, whose only error is ValueError, of text nested too deeply, too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def settings_json(data: Any) -> Any:
    """Settings as JSON can hold them: infinities in words, which float() and JavaScript read."""
    if isinstance(data, Mapping):
        return {str(key): settings_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [settings_json(value) for value in data]
    if isinstance(data, float) and math.isinf(data):
        return "Infinity" if data > 0 else "-Infinity"
    return data


def settings_of(data: Any) -> Any:
    """What settings_json() was given, sequences as lists."""
    if isinstance(data, dict):
        return {key: settings_of(value) for key, value in data.items()}
    if isinstance(data, list):
        return [settings_of(value) for value in data]
    return float(data) if data in ("Infinity", "-Infinity") else data


def finite(data: Any) -> Any:
    """What JSON can hold: figures that are not known (NaN, infinite) as None, in mappings and sequences too."""
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def parse_toml(text: bytes) -> dict[str, Any]:
    """tomllib.loads of UTF-8, whose only error is ValueError, of text nested too deeply, too."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Of the whole content, in hex digits: some two seconds a gigabyte."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def model_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Of a Hugging Face folder, by name."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix in MODEL_FILES)


def path_mark(path: str | os.PathLike[str]) -> str:
    """file_mark of a file, or of the files of a model folder and their names; empty where there is neither, as for an
    empty path, which is no name of the current folder."""
    if not os.fspath(path):
        return ""
    if not Path(path).is_dir():
        return file_mark(path) if Path(path).is_file() else ""
    parts = [f"{file.name} {file_mark(file)}" for file in model_files(path)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def alone(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Around what writes a folder, which is made where there is none. Raises ConfigError while another process does.

    Without a lock where hold() has none.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folder
        yield
        return
    try:
        if not hold(fd):
            raise ConfigError(
                f"{folder} is being written by another process: let it end, or name another folder for this one"
            )
        yield
    finally:
        os.close(fd)


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
    # With two dots: a folder beside the file that is being written beside the target.
    for left in [*target.parent.glob(f".{name}.*.tmp"), *target.parent.glob(f"..{name}.*.tmp")]:
        if not held(left):
            with suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def put(made: Path, target: Path) -> None:
    """Moves a finished file or folder to `target`, so that a loss of power leaves it whole or not at all: what it holds
    is on the disk before its name is, and its name when this returns."""
    for part in [*made.rglob("*"), made] if made.is_dir() else [made]:
        _to_disk(part)
    os.replace(made, target)
    _to_disk(target.parent)


def _to_disk(path: Path) -> None:
    try:
        # Windows writes out only what is open for writing, and opens no folders.
        fd = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems do not sync folders.
        if error.errno in FULL or not path.is_dir():
            raise
    finally:
        os.close(fd)


@contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, moved into place when the block ends without an error.

    For writers that open their file themselves; `atomic_write` serves the others. What killed runs left of the same
    file is removed. Raises ModelFileError when the disk is full. After an error nothing of the new content is left and
    an older file at `path` is untouched.
    """
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; expected the path of a file that is to be written")
    if target.exists() and not target.is_file():
        # A device or a pipe is written to; a file in its place would be another thing.
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    if os.name == "nt":
        # No lock is held there, and an open file can be neither moved nor removed.
        os.close(fd)
        fd = -1
    try:
        if fd >= 0:
            hold(fd)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        put(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _if_full(error, target)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


@contextmanager
def scratch(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`, for what becomes a folder or needs room on the way. Gone in the end, and what
    killed runs left of it at the next run. Raises ModelFileError when the disk is full."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    fd = os.open(made, os.O_RDONLY) if os.name != "nt" else None
    try:
        if fd is not None:
            hold(fd)
        yield made
    except OSError as error:
        _if_full(error, target)
        raise
    finally:
        if fd is not None:
            os.close(fd)
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def together(folder: str | os.PathLike[str], mark: str) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` when the block ends without an error; others stay there.

    mark: one of them, without which `folder` is nothing to any reader. It goes first and comes last, so that a kill
    leaves the older files, the new ones, or no mark. Raises ModelFileError when the disk is full.
    """
    target = Path(folder)
    with scratch(target / mark) as room:  # inside, for `folder` may be a file system of its own
        yield room
        made = sorted((path for path in room.rglob("*") if path.is_file()), key=lambda path: path == room / mark)
        for path in made:
            _to_disk(path)
        (target / mark).unlink(missing_ok=True)
        _to_disk(target)
        for path in made:
            place = target / path.relative_to(room)
            place.parent.mkdir(parents=True, exist_ok=True)
            put(path, place)


def discard(folder: str | os.PathLike[str]) -> None:
    """Removes a folder, where there is one: a kill leaves it whole or not at all."""
    with scratch(folder) as room, suppress(FileNotFoundError):
        os.replace(folder, room / "old")


def _if_full(error: BaseException, target: Path) -> None:
    if isinstance(error, OSError) and error.errno in FULL:
        raise ModelFileError(
            f"the disk filled up while writing {target}; nothing of it was kept: free space and run again"
        ) from error


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """An open temporary file beside `path`, moved into place when the block ends without an error: see aside().

    ConfigError for text under the name of a packed file."""
    if "b" not in mode:
        check_plain(path)
    with aside(path) as temporary, temporary.open(mode, encoding=None if "b" in mode else "utf-8") as handle:
        yield handle


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """A UTF-8 file's content. Raises ConfigError with a sentence that names `what` was expected."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected {what}, check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; expected {what}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected {what}") from None
