"""The whole chain from TOML files: base, rollouts, rewards, training, export, quantization, proof."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sia_local.errors import ConfigError, DataError, SiaError

from .progress import duration
from .steps import State, Step, run_steps

_ROLLOUTS = ("prompts", "limit", "pairs", "samples", "max_tokens", "k", "temperature", "slots", "n_ctx", "raw", "seed")
SECTIONS: dict[str, tuple[str, ...]] = {
    "base": ("gguf", "hf", "out", "dtype", "quantize", "name", "pre", "pretrain"),
    "rollouts": _ROLLOUTS,
    "reward": ("source", "name", "batch"),
    "value": (),  # whatever TrainConfig has, and backbone, lora, processes
    "export": ("out", "layout", "dtype", "rows", "quantize", "quantize_rows", "name", "pre"),
    "verify": ("also", "threshold", "per_trajectory", *_ROLLOUTS),
}
SCALARS = ("work", "threads", "gpu_layers")
REQUIRED = ("work", "base", "rollouts", "reward", "value", "export")


class VerificationError(SiaError):
    """A GGUF whose values are further from PyTorch's than its type may be."""


def read_plan(*paths: Path) -> dict[str, Any]:
    """The TOML files as one, later ones overriding single keys of earlier ones; names of keys are checked."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    plan: dict[str, Any] = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"no file at {path}: expected a TOML file such as models/demo.toml")
        try:
            read = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"{path} is not valid TOML ({error})") from error
        _check_keys(path, read)
        for key, value in read.items():
            plan[key] = {**plan.get(key, {}), **value} if isinstance(value, dict) else value
    missing = [name for name in REQUIRED if name not in plan]
    if missing:
        raise ConfigError(f"{paths[0]} lacks {', '.join(missing)}: expected {', '.join((*SCALARS, *SECTIONS))}")
    return plan


def _check_keys(path: Path, plan: dict[str, Any]) -> None:
    for key, value in plan.items():
        if key in SCALARS:
            continue
        if key not in SECTIONS or not isinstance(value, dict):
            raise ConfigError(f"{path}: unknown {key!r}; expected {', '.join((*SCALARS, *SECTIONS))}")
        allowed = SECTIONS[key]
        for name in value:
            if allowed and name not in allowed:
                raise ConfigError(f"{path}: [{key}] has no setting {name!r}; expected {', '.join(allowed)}")


def make(*paths: Path, echo: Callable[[str], None] = print) -> None:
    """Brings everything that the TOML files describe up to date. Paths in them are relative to the first one.

    Raises VerificationError when a finished file is beyond its tolerance.
    """
    chain = Chain(paths[0].resolve().parent, read_plan(*paths), echo)
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
    """The steps of one plan; relative paths in it start from `folder`."""

    def __init__(self, folder: Path, plan: dict[str, Any], echo: Callable[[str], None] = print):
        self.folder, self.plan, self.echo = folder, plan, echo
        self.work = self.at(plan["work"])
        self.threads = int(plan.get("threads", 0))
        self.gpu_layers = int(plan.get("gpu_layers", 0))

    def at(self, name: str) -> Path:
        return (self.folder / name).resolve()

    def section(self, name: str) -> dict[str, Any]:
        return dict(self.plan.get(name, {}))

    def need(self, section: str, key: str) -> Any:
        if key not in self.plan[section]:
            raise ConfigError(f"[{section}] lacks the setting {key!r}")
        return self.plan[section][key]

    def steps(self) -> list[Step]:
        base, base_steps = self._base()
        data, data_steps = self._data(base)
        backbone, backbone_steps = self._backbone(base)
        checkpoint, train_steps = self._train(backbone, base, data)
        return [*base_steps, *data_steps, *backbone_steps, *train_steps, *self._export(base, checkpoint)]

    def _unquantized(self, out: Path, dtype: str, types: list[str]) -> Path:
        """Where the file before quantization goes: it is a by-product if there are types to quantize to."""
        name = out.stem if out.suffix == ".gguf" else out.name
        return (self.work if types else out.parent) / f"{name}-{dtype.upper()}.gguf"

    def _base(self) -> tuple[Path, list[Step]]:
        settings = self.section("base")
        if "gguf" in settings:  # one that exists already
            return self.at(settings["gguf"]), []
        hf, out = self.at(self.need("base", "hf")), self.at(self.need("base", "out"))
        dtype, types = settings.get("dtype", "f16"), list(settings.get("quantize", []))
        steps = [self._pretrain(dict(settings["pretrain"]), hf)] if "pretrain" in settings else []
        full = self._unquantized(out, dtype, types)

        def convert() -> None:
            from .export import export_base

            export_base(hf, full, dtype, settings.get("pre"), settings.get("name"))

        kept = {key: settings.get(key) for key in ("dtype", "pre", "name")}
        steps.append(Step("base to GGUF", convert, kept, (hf,), (full,)))
        last = full
        for name in types:
            last = finished_name(out, name, types)
            steps.append(self._quantize("base", full, last, name))
        return last, steps

    def _pretrain(self, settings: dict[str, Any], hf: Path) -> Step:
        for key in ("data", "work"):
            if key in settings:
                settings[key] = self.at(settings[key])

        def run() -> None:
            from .pretrain import PretrainConfig, pretrain

            pretrain(_checked("base.pretrain", PretrainConfig, out=hf, **settings))

        return Step("pretrain", run, settings, (), (hf / "config.json", hf / "tokenizer.json"))

    def _quantize(self, what: str, source: Path, target: Path, name: str, rows: str | None = None) -> Step:
        def run() -> None:
            from .quantize import quantize_gguf

            quantize_gguf(source, target, name, rows, self.threads)

        return Step(f"{what} to {name}", run, {"rows": rows}, (source,), (target,))

    def _rollouts(self, name: str, base: Path, settings: dict[str, Any], out: Path) -> Step:
        if "prompts" not in settings:
            raise ConfigError("[rollouts] lacks the setting 'prompts'")
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
            machine = {"n_threads": self.threads, "n_gpu_layers": self.gpu_layers}
            config = _checked("rollouts", RolloutConfig, base=str(base), sampling=sampling, **machine, **chosen)
            sample(load_prompts(prompts)[:limit], out, config)

        return Step(name, run, {**settings, "limit": limit, "pairs": pairs}, (base, prompts), (out,), (out,))

    def _data(self, base: Path) -> tuple[Path, list[Step]]:
        raw, scored = self.work / "rollouts.jsonl", self.work / "scored.jsonl"
        source, folder = self._reward()
        batch = int(self.plan["reward"].get("batch", 64))

        def score() -> None:
            from .score import score_files

            score_files([raw], scored, source, batch)

        inputs = (raw,) if folder is None else (raw, folder)
        steps = [
            self._rollouts("rollouts", base, self.section("rollouts"), raw),
            Step("score", score, self.plan["reward"]["source"], inputs, (scored,), (scored,)),
        ]
        return scored, steps

    def _reward(self) -> tuple[str, Path | None]:
        """The reward as `load_reward` takes it, and its folder or file where it names one beside the plan."""
        source = str(self.need("reward", "source"))
        kind, _, argument = source.partition(":")
        if not argument.startswith((".", "/")):
            return source, None
        path = self.at(argument)
        return f"{kind}:{path}", path

    def _backbone(self, base: Path) -> tuple[Path, list[Step]]:
        """The folder that is trained: [value] backbone, else the base's; a GGUF is turned into one first."""
        named = self.plan["value"].get("backbone") or self.plan["base"].get("hf")
        source = base if named is None else self.at(named)
        if source.suffix != ".gguf":
            return source, []
        folder = self.work / f"{source.stem}-hf"

        def convert() -> None:
            from .gguf_to_hf import gguf_to_hf

            shutil.rmtree(folder, ignore_errors=True)  # of another file: the step runs only when its input changed
            gguf_to_hf(source, folder)

        return folder, [Step("backbone from GGUF", convert, None, (source,), (folder / "config.json",))]

    def _train(self, backbone: Path, base: Path, data: Path) -> tuple[Path, list[Step]]:
        settings = self.section("value")
        settings.pop("backbone", None)
        out = self.work / "value"
        processes = int(settings.pop("processes", 1))
        kind, _, argument = str(self.plan["reward"]["source"]).partition(":")
        reward = self.plan["reward"].get("name") or (f"{kind}:{Path(argument).name}" if argument else kind)

        def run() -> None:
            from .train import TrainConfig, train
            from .value_model import LoraSettings

            chosen = dict(settings)
            lora = dict(chosen.pop("lora", {}))
            if "targets" in lora:
                lora["targets"] = tuple(lora["targets"])
            if chosen.get("template", "chat") not in ("chat", "raw"):
                chosen["template"] = self.at(chosen["template"]).read_text(encoding="utf-8")
            config = _checked(
                "value",
                TrainConfig,
                backbone=str(backbone),
                data=(str(data),),
                out=str(out),
                lora=_checked("value.lora", LoraSettings, **lora),
                reward_name=reward,
                base_name=base.stem,
                **chosen,
            )
            if processes > 1:
                from .launch import launch

                launch(config, processes, self.work / "train.json")
                return
            import torch

            if self.threads:
                torch.set_num_threads(self.threads)
            train(config)

        outputs = (out / "value.json", out / "training.json")
        return out, [Step("train", run, settings, (data, backbone), outputs, (out / "state.pt",))]

    def _export(self, base: Path, checkpoint: Path) -> list[Step]:
        settings, check = self.section("export"), self.section("verify")
        out = self.at(self.need("export", "out"))
        layout, dtype = settings.get("layout"), settings.get("dtype", "f32")
        types = list(settings.get("quantize", []))
        full = self._unquantized(out, dtype, types)
        unseen, report = self.work / "unseen.jsonl", self.work / "verify.json"
        finished = [finished_name(out, name, types) for name in types]
        limit, also = int(check.pop("limit", 40)), list(check.pop("also", []))
        k, threshold = int(check.pop("k", 10)), float(check.pop("threshold", 1.0))
        per_trajectory = int(check.pop("per_trajectory", 24))
        seen = {**self.section("rollouts"), "samples": 1, "seed": 1, "limit": limit, **check}
        n_ctx = int(seen.get("n_ctx", 512)) + 64  # room for the value model's longer rendering of the prompt
        junctions = {"k": k, "threshold": threshold, "limit": limit}

        def spread() -> None:
            from .head import ValueCheckpoint
            from .spread import measure_spread, store_spread

            found = ValueCheckpoint.open(checkpoint)
            runtime = self._runtime(n_ctx)
            value, count = measure_spread(found, base, [unseen], k, threshold, limit, runtime)
            self.echo(f"spread of V among candidates: {value:.4g} in reward units, over {count} junctions")
            store_spread(found, value)

        def export() -> None:
            from .export import export_value
            from .head import ValueCheckpoint

            found = ValueCheckpoint.open(checkpoint)
            rows, name, pre = (settings.get(key) for key in ("rows", "name", "pre"))
            export_value(found, full, layout, base, dtype, rows, name, pre)

        def verify() -> None:
            from .head import ValueCheckpoint
            from .verify import table, write_report
            from .verify import verify as run

            found, files = ValueCheckpoint.open(checkpoint), [full, *finished]
            rows = run(
                found, files, base, [unseen], also, k, threshold, limit, per_trajectory, self._runtime(n_ctx)
            )
            self.echo(table(rows))
            write_report(rows, report)
            # The types under `also` are there to be compared; only what the chain made must hold.
            made_here = {file.name for file in files}
            if failed := [row.file for row in rows if row.failures and row.file in made_here]:
                raise VerificationError(f"{', '.join(failed)}: beyond the tolerance of the type, see {report}")

        trained = checkpoint / "training.json"
        made = {"layout": layout, "dtype": dtype, **{key: settings.get(key) for key in ("rows", "name", "pre")}}
        steps = [
            self._rollouts("unseen rollouts", base, seen, unseen),
            Step("spread", spread, junctions, (trained, unseen, base), (checkpoint / "value.json",)),
            Step("export", export, made, (trained, checkpoint / "value.json", base), (full,)),
        ]
        for name, path in zip(types, finished, strict=True):
            steps.append(self._quantize("value", full, path, name, settings.get("quantize_rows")))
        asked = {**junctions, "also": also, "per_trajectory": per_trajectory}
        return [*steps, Step("verify", verify, asked, (full, *finished, base, unseen), (report,))]

    def _runtime(self, n_ctx: int) -> Any:
        from .junctions import Runtime

        return Runtime(n_ctx, self.threads, self.gpu_layers)


def _checked(section: str, kind: Any, **settings: Any) -> Any:
    """A configuration object; ConfigError names a setting that it does not have."""
    known = {f.name for f in dataclasses.fields(kind)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"[{section}] has no setting {name!r}; expected one of {', '.join(sorted(known))}")
    return kind(**settings)
