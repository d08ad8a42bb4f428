"""The whole chain from one TOML file: base, rollouts, rewards, training, export, quantization, proof.

A step is skipped when its outputs exist and its settings and the content of its inputs are what they were.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sia_local.errors import ConfigError, DataError, SiaError
from sia_local.files import atomic_write

from .aside import provenance
from .progress import duration

SECTIONS = ("work", "threads", "base", "rollouts", "reward", "value", "export", "verify")


class VerificationError(SiaError):
    """A GGUF whose values are further from PyTorch's than its type may be."""


@dataclass(frozen=True)
class Step:
    """One link of the chain. `settings` and the content of `inputs` decide whether it must run again."""

    name: str
    run: Callable[[], object]
    settings: Any = None
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    resumes: tuple[Path, ...] = ()  # left in place for an interrupted run of the same key, removed otherwise


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
        """sha256 of a file."""
        if not path.is_file():
            raise DataError(f"no file at {path}: it is an input of the chain")
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
        before = done.get("seconds", 0.0) if done.get("key") == key else 0.0
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


def read_plan(path: Path) -> dict[str, Any]:
    """The TOML file, its sections checked."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if not path.is_file():
        raise DataError(f"no file at {path}: expected a TOML file such as models/demo.toml")
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML ({error})") from error
    unknown = set(plan) - set(SECTIONS)
    missing = {"work", "base", "rollouts", "reward", "value", "export"} - set(plan)
    if unknown or missing:
        raise ConfigError(
            f"{path}: {'unknown ' + ', '.join(sorted(unknown)) if unknown else ''}"
            f"{' and ' if unknown and missing else ''}{'missing ' + ', '.join(sorted(missing)) if missing else ''}; "
            f"expected {', '.join(SECTIONS)}"
        )
    return plan


def make(path: Path, echo: Callable[[str], None] = print) -> None:
    """Brings everything that the TOML file describes up to date. Paths in it are relative to its folder.

    Raises VerificationError when a finished file is beyond its tolerance.
    """
    chain = Chain(path, read_plan(path), echo)
    state = State.load(chain.work / "make.json")
    seconds = run_steps(chain.steps(), state, echo)
    echo(f"everything made; the steps took {duration(seconds)} in all")


def finished_name(out: Path, name: str, types: list[str]) -> Path:
    """`out` itself where it names a file, otherwise `out` with the type, as GGUF files are usually called."""
    if out.suffix != ".gguf":
        return out.with_name(f"{out.name}-{name}.gguf")
    if len(types) > 1:
        raise ConfigError(f"{out.name} is one file, but {len(types)} types were asked for: leave off .gguf")
    return out


class Chain:
    """The steps of one plan."""

    def __init__(self, path: Path, plan: dict[str, Any], echo: Callable[[str], None] = print):
        self.folder, self.plan, self.echo = path.resolve().parent, plan, echo
        self.work = self.at(plan["work"])
        self.threads = int(plan.get("threads", 0))

    def at(self, name: str) -> Path:
        return (self.folder / name).resolve()

    def section(self, name: str) -> dict[str, Any]:
        """A section without the keys that the chain itself reads."""
        return dict(self.plan.get(name, {}))

    def steps(self) -> list[Step]:
        base, base_steps = self._base()
        hf = self.at(self.plan["base"]["hf"]) if "hf" in self.plan["base"] else None
        data, data_steps = self._data(base)
        checkpoint, train_steps = self._train(hf, base, data)
        return [*base_steps, *data_steps, *train_steps, *self._export(hf, base, checkpoint)]

    def _base(self) -> tuple[Path, list[Step]]:
        settings = self.section("base")
        if "gguf" in settings:  # one that exists already
            return self.at(settings["gguf"]), []
        hf, out = self.at(settings["hf"]), self.at(settings["out"])
        dtype = settings.get("dtype", "f16")
        steps = []
        if "pretrain" in settings:
            steps.append(self._pretrain(dict(settings["pretrain"]), hf))
        full = (self.work if settings.get("quantize") else out.parent) / f"{out.stem}-{dtype.upper()}.gguf"

        def convert() -> None:
            from .export import export_base

            export_base(hf, full, dtype, settings.get("pre"), settings.get("name"))

        inputs = (hf / "config.json", *sorted(hf.glob("*.safetensors")), hf / "tokenizer.json")
        if not inputs[1:-1]:  # before pretraining: what it will write
            inputs = (hf / "config.json", hf / "model.safetensors", hf / "tokenizer.json")
        steps.append(Step("base to GGUF", convert, settings, inputs, (full,)))
        last = full
        for name in settings.get("quantize", []):
            last = finished_name(out, name, settings["quantize"])
            steps.append(self._quantize("base", full, last, name))
        return last, steps

    def _pretrain(self, settings: dict[str, Any], hf: Path) -> Step:
        for key in ("data", "work"):
            if key in settings:
                settings[key] = self.at(settings[key])

        def run() -> None:
            from .pretrain import PretrainConfig, pretrain

            pretrain(PretrainConfig(out=hf, **settings))

        return Step("pretrain", run, settings, (), (hf / "config.json", hf / "tokenizer.json"))

    def _quantize(self, what: str, source: Path, target: Path, name: str, rows: str | None = None) -> Step:
        def run() -> None:
            from .quantize import quantize_gguf

            quantize_gguf(source, target, name, rows, self.threads)

        return Step(f"{what} to {name}", run, {"rows": rows}, (source,), (target,))

    def _rollouts(self, name: str, base: Path, settings: dict[str, Any], out: Path) -> Step:
        prompts = self.at(settings.pop("prompts"))
        limit = settings.pop("limit", None)
        pairs = settings.pop("pairs", False)

        def run() -> None:
            from sia_local import SiaConfig
            from sia_local.config import SamplingConfig

            from .rollouts import RolloutConfig, load_prompts, sample, take_pairs

            if pairs:
                take_pairs(prompts, out, str(base))
                return
            chosen = dict(settings)
            sampling = SiaConfig(
                k=chosen.pop("k", 10),
                gate="off",
                sampling=SamplingConfig(temperature=chosen.pop("temperature", 1.0)),
            )
            config = RolloutConfig(base=str(base), sampling=sampling, n_threads=self.threads, **chosen)
            sample(load_prompts(prompts)[:limit], out, config)

        return Step(name, run, {**settings, "limit": limit, "pairs": pairs}, (base, prompts), (out,), (out,))

    def _data(self, base: Path) -> tuple[Path, list[Step]]:
        raw, scored = self.work / "rollouts.jsonl", self.work / "scored.jsonl"
        reward = self.plan["reward"]

        def score() -> None:
            from .score import score_files

            score_files([raw], scored, reward["source"], int(reward.get("batch", 64)))

        steps = [
            self._rollouts("rollouts", base, self.section("rollouts"), raw),
            Step("score", score, reward, (raw,), (scored,), (scored,)),
        ]
        return scored, steps

    def _train(self, hf: Path | None, base: Path, data: Path) -> tuple[Path, list[Step]]:
        settings = self.section("value")
        out = self.work / "value"
        if "backbone" not in settings and hf is None:
            raise ConfigError("[value] needs backbone, a Hugging Face folder, when [base] names a finished GGUF")
        backbone = self.at(settings.pop("backbone")) if "backbone" in settings else hf
        threads = self.threads

        def run() -> None:
            import torch

            from .train import TrainConfig, train
            from .value_model import LoraSettings

            if threads:
                torch.set_num_threads(threads)
            chosen = dict(settings)
            lora = dict(chosen.pop("lora", {}))
            if "targets" in lora:
                lora["targets"] = tuple(lora["targets"])
            try:
                config = TrainConfig(
                    backbone=str(backbone),
                    data=(str(data),),
                    out=str(out),
                    lora=LoraSettings(**lora),
                    reward_name=self.plan["reward"]["source"],
                    base_name=base.stem,
                    **chosen,
                )
            except TypeError as error:
                raise ConfigError(f"[value]: {error}") from error
            train(config)

        weights = (Path(str(backbone)) / "config.json", Path(str(backbone)) / "model.safetensors")
        inputs = (data, *(path for path in weights if path.exists() or path == weights[0]))
        outputs = (out / "value.json", out / "training.json")
        return out, [Step("train", run, settings, inputs, outputs, (out / "state.pt",))]

    def _export(self, hf: Path | None, base: Path, checkpoint: Path) -> list[Step]:
        settings, check = self.section("export"), self.section("verify")
        out = self.at(settings["out"])
        layout, dtype = settings.get("layout", "merged"), settings.get("dtype", "f32")
        types = list(settings.get("quantize", []))
        full = (self.work if types else out.parent) / f"{out.stem}-{dtype.upper()}.gguf"
        unseen = self.work / "unseen.jsonl"
        limit = int(check.pop("limit", 40))
        extra = list(check.pop("also", []))
        k, threshold = int(check.pop("k", 10)), float(check.pop("threshold", 1.0))
        seen = {**self.section("rollouts"), "samples": 1, "seed": 1, "limit": limit, **check}

        def spread() -> None:
            from .head import ValueCheckpoint
            from .spread import measure_spread, store_spread

            found = ValueCheckpoint.open(checkpoint)
            store_spread(found, measure_spread(found, base, [unseen], k, threshold, limit, self.threads)[0])

        def export() -> None:
            from .export import export_value
            from .head import ValueCheckpoint

            export_value(
                ValueCheckpoint.open(checkpoint),
                full,
                layout,
                base,
                dtype,
                settings.get("rows"),
                settings.get("name"),
                settings.get("pre"),
            )

        weights = (checkpoint / "training.json",)
        finished = [finished_name(out, name, types) for name in types]
        report = self.work / "verify.json"

        def verify() -> None:
            from .head import ValueCheckpoint
            from .verify import table, write_report
            from .verify import verify as run

            found = ValueCheckpoint.open(checkpoint)
            files = [full, *finished]
            rows = run(found, files, base, [unseen], extra, k, threshold, limit, n_threads=self.threads)
            self.echo(table(rows))
            write_report(rows, report)
            failed = [row.file for row in rows if row.failures]
            if failed:
                raise VerificationError(f"{', '.join(failed)}: beyond the tolerance of the type, see {report}")

        settings_of_spread = {"k": k, "threshold": threshold, "limit": limit}
        steps = [
            self._rollouts("unseen rollouts", base, seen, unseen),
            Step("spread", spread, settings_of_spread, (*weights, unseen, base), (checkpoint / "value.json",)),
            Step("export", export, settings, (*weights, checkpoint / "value.json", base), (full,)),
        ]
        for name, path in zip(types, finished, strict=True):
            steps.append(self._quantize("value", full, path, name, settings.get("quantize_rows")))
        inputs = (full, *finished, base, unseen)
        steps.append(Step("verify", verify, {**settings_of_spread, "also": extra}, inputs, (report,)))
        return steps
