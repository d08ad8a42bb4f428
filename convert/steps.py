"""A chain of steps: one is skipped when its outputs exist, and its settings and what its inputs hold, are as before."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sia_local.errors import DataError
from sia_local.files import atomic_write

from .aside import provenance
from .progress import duration

# What decides how a Hugging Face folder behaves; anything else in it may change freely.
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")


@dataclass(frozen=True)
class Step:
    """One link of the chain. `settings` and the content of `inputs`, files or model folders, decide whether it
    must run again. `resumes` are left in place for an interrupted run of the same key, removed otherwise."""

    name: str
    run: Callable[[], object]
    settings: Any = None
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    resumes: tuple[Path, ...] = ()


@dataclass
class State:
    """What was made from what, in `make.json` of the work folder; file hashes are cached by size and time."""

    path: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        if not path.exists():
            return cls(path)
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, saved.get("steps", {}), saved.get("hashes", {}))

    def save(self) -> None:
        with atomic_write(self.path) as handle:
            json.dump({"steps": self.steps, "hashes": self.hashes, **provenance()}, handle, indent=1)

    def content(self, path: Path) -> str:
        """sha256 of a file, or of the files of a model folder and their names."""
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in MODEL_FILES)
            parts = [f"{file.name} {self.content(file)}" for file in files]
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()
        if not path.is_file():
            raise DataError(f"nothing at {path}: it is an input of the chain")
        stat = path.stat()
        known = self.hashes.get(str(path))
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        digest = hashlib.sha256()
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        self.hashes[str(path)] = [stat.st_size, stat.st_mtime_ns, digest.hexdigest()]
        return digest.hexdigest()

    def key(self, step: Step) -> str:
        parts = [step.name, json.dumps(step.settings, sort_keys=True, default=str)]
        parts += [self.content(path) for path in step.inputs]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_steps(steps: list[Step], state: State, echo: Callable[[str], None] = print) -> float:
    """Runs what is not done and returns the seconds that all steps took when they ran."""
    for step in steps:
        key = state.key(step)
        done = state.steps.get(step.name, {})
        if done.get("key") == key and done.get("finished") and all(p.exists() for p in step.outputs):
            echo(f"{step.name}: done before, in {duration(done['seconds'])}")
            continue
        before = done.get("seconds", 0.0) if done.get("key") == key and not done.get("finished") else 0.0
        if done.get("key") != key:
            for path in step.resumes:
                path.unlink(missing_ok=True)
        state.steps[step.name] = {"key": key, "finished": False, "seconds": before}
        state.save()
        echo(f"{step.name} …")
        started = time.monotonic()
        try:
            step.run()
        finally:
            state.steps[step.name]["seconds"] = round(before + time.monotonic() - started, 1)
            state.save()
        state.steps[step.name]["finished"] = True
        state.save()
        echo(f"{step.name}: {duration(state.steps[step.name]['seconds'])}")
    return float(sum(state.steps[step.name]["seconds"] for step in steps))
