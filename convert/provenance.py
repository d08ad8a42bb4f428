"""A line that says what made an output file, and a mark that tells large files apart."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path

from sia_local.errors import ModelFileError

# What decides how a Hugging Face folder behaves; anything else in it may change freely.
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")
VERSIONED = ("sia-local", "torch", "transformers", "peft", "gguf", "llama-cpp-python", "numpy")


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
