"""A chain of steps: one is skipped when its outputs exist, and its settings and what its inputs hold, are as before."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sia_local.errors import DataError
from sia_local.files import atomic_write, model_files, parse_json, sha256_of
from sia_local.progress import duration

from .provenance import provenance


@dataclass(frozen=True)
class Step:
    """One link of the chain. `settings` and the content of `inputs`, files or model folders, decide whether it
    must run again. `resumes` are left in place for a run of the same key, or of one that differs in settings named in
    `amount` alone, none of which is less (None is the most); removed otherwise. `estimate`: seconds it will take, where
    its settings say so. `beside`: the file that its outputs are read with; they go before another is written in its
    place."""

    name: str
    run: Callable[[], object]
    settings: Any = None
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    resumes: tuple[Path, ...] = ()
    estimate: float | None = None
    amount: tuple[str, ...] = ()
    beside: Path | None = None


@dataclass
class State:
    """What was made from what, in `make.json` of the work folder; file hashes are cached by size and time.

    Of a step: key, kind (the key without its amounts), amount, finished, seconds (of all runs of this key), began (the
    clock when a run began that did not report its end), took (seconds when it was last finished, whatever its key).
    """

    path: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        if not path.exists():
            return cls(path)
        try:
            saved = parse_json(path.read_bytes())
            return cls(path, dict(saved.get("steps", {})), dict(saved.get("hashes", {})))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: is no record of steps ({error}); remove it to make each anew") from None

    def save(self) -> None:
        with atomic_write(self.path) as handle:
            json.dump({"steps": self.steps, "hashes": self.hashes, **provenance()}, handle, indent=1)

    def content(self, path: Path) -> str:
        """sha256 of a file, or of the files of a model folder and their names."""
        if path.is_dir():
            parts = [f"{file.name} {self.content(file)}" for file in model_files(path)]
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()
        if not path.is_file():
            raise DataError(f"nothing at {path}: it is an input of the chain")
        stat = path.stat()
        known = self.hashes.get(str(path))
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        found = sha256_of(path)
        self.hashes[str(path)] = [stat.st_size, stat.st_mtime_ns, found]
        return found

    def key(self, step: Step, amount: bool = True) -> str:
        settings = step.settings if amount or not step.amount else {**step.settings, **dict.fromkeys(step.amount)}
        parts = [step.name, json.dumps(settings, sort_keys=True, default=str)]
        parts += [self.content(path) for path in step.inputs]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def done(self, step: Step, key: str) -> bool:
        entry = self.steps.get(step.name, {})
        return entry.get("key") == key and bool(entry.get("finished")) and all(p.exists() for p in step.outputs)

    def continues(self, step: Step, key: str) -> bool:
        """Whether what the last run left is what this one begins with."""
        entry = self.steps.get(step.name, {})
        if entry.get("kind") != self.key(step, amount=False):
            return bool(entry.get("key") == key)
        pairs = [(before, step.settings[name]) for name, before in entry["amount"].items()]
        return all(now is None or (before is not None and before <= now) for before, now in pairs)

    def spent(self, step: Step, key: str) -> float:
        """Seconds that unfinished runs of this key took. A killed one counts to the last file it wrote."""
        entry = self.steps.get(step.name, {})
        if entry.get("key") != key or entry.get("finished"):
            return 0.0
        written = [path.stat().st_mtime for path in (*step.outputs, *step.resumes) if path.exists()]
        killed = max(written, default=0.0) - entry["began"] if "began" in entry else 0.0
        return float(entry["seconds"]) + max(0.0, killed)


def run_steps(steps: Sequence[Step], state: State, echo: Callable[[str], None] = print) -> float:
    """Runs what is not done and returns the seconds that all steps took when they ran."""
    for step in steps:
        key = state.key(step)
        before = state.steps.get(step.name, {})
        if state.done(step, key):
            echo(f"{step.name}: done before, in {duration(before['seconds'])}")
            continue
        spent = state.spent(step, key)
        if not state.continues(step, key):
            for path in step.resumes:
                path.unlink(missing_ok=True)
        entry: dict[str, Any] = {"key": key, "finished": False, "seconds": spent, "began": time.time()}
        entry |= {"kind": state.key(step, amount=False), "amount": {n: step.settings[n] for n in step.amount}}
        if (took := _took(before)) is not None:
            entry["took"] = took
        state.steps[step.name] = entry
        state.save()
        echo(f"{step.name} …" if not spent else f"{step.name} … continues after {duration(spent)}")
        for path in [path for other in steps if other.beside in step.outputs for path in other.outputs]:
            path.unlink(missing_ok=True)
        started = time.monotonic()
        try:
            step.run()
        finally:
            entry["seconds"] = round(spent + time.monotonic() - started, 1)
            del entry["began"]
            state.save()
        entry |= {"finished": True, "took": entry["seconds"]}
        state.save()
        echo(f"{step.name}: {duration(entry['seconds'])}")
    return float(sum(state.steps[step.name]["seconds"] for step in steps))


def preview(steps: Sequence[Step], state: State) -> list[str]:
    """A line a step: done, or to do and how long it may take; nothing is run or written."""
    lines, left, unknown, changed = [], 0.0, 0, set[Path]()
    for step in steps:
        # An input may be the folder of what is made, a model's.
        waits = any(path in changed or not path.exists() for path in step.inputs)
        key = "" if waits else state.key(step)
        entry = state.steps.get(step.name, {})
        if not waits and state.done(step, key):
            lines.append(f"{step.name}: done, in {duration(entry['seconds'])}")
            continue
        changed |= {made for path in step.outputs for made in (path, path.parent)}
        spent = 0.0 if waits else state.spent(step, key)
        before = _took(entry)
        whole = step.estimate if before is None else before
        begun = f", {duration(spent)} of it done" if spent else ""
        if whole is None:
            unknown += 1
            lines.append(f"{step.name}: to do{begun}")
            continue
        left += max(0.0, whole - spent)
        source = "by its settings" if before is None else "as last time"
        lines.append(f"{step.name}: to do, about {duration(whole)} {source}{begun}")
    if changed:
        rest = f", and {unknown} steps that never ran here" if unknown else ""
        known = unknown < sum(": to do" in line for line in lines)
        lines.append(f"about {duration(left)} to go{rest}" if known else f"{unknown} steps to go that never ran here")
    return lines


def _took(entry: dict[str, Any]) -> float | None:
    if "took" in entry:
        return float(entry["took"])
    return float(entry["seconds"]) if entry.get("finished") else None
