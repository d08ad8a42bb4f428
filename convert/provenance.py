"""A line that says what made an output file."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

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
