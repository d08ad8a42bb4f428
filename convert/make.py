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
    "steered": ("samples", "gate", "threshold", "rate", "beta", "seed"),
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
        return (self.folder / Path(name).expanduser()).resolve()

    def section(self, name: str) -> dict[str, Any]:
        return dict(self.plan.get(name, {}))

    def need(self, section: str, key: str) -> Any:
        if key not in self.plan[section]:
            raise ConfigError(f"[{section}] lacks the setting {key!r}")
        return self.plan[section][key]

    def steps(self) -> list[Step]:
        base, base_steps = self._base()
        data, data_steps = self._data("rollouts", self._rollouts("rollouts", base, self.section("rollouts")))
        backbone, backbone_steps = self._backbone(base)
        unseen = self._unseen(base)
        steps = [*base_steps, *data_steps, *backbone_steps]
        if "steered" not in self.plan:
            checkpoint, train = self._train("train", backbone, base, [data], self.work / "value")
            return [*steps, train, unseen, *self._export(base, checkpoint)]
        first, train = self._train("first round", backbone, base, [data], self.work / "first")
        more, more_steps = self._steered(base, first)
        checkpoint, second = self._train("second round", backbone, base, [data, more], self.work / "value")
        return [*steps, train, unseen, *more_steps, second, *self._export(base, checkpoint)]

    def _unquantized(self, out: Path, dtype: str, types: list[str]) -> Path:
        """Where the file before quantization goes: a by-product if there are types to quantize to, else the product."""
        if out.suffix == ".gguf" and not types:
            return out
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
            from .formats.export import export_base

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
            from .demo.pretrain import PretrainConfig, pretrain

            pretrain(_checked("base.pretrain", PretrainConfig, out=hf, **settings))

        return Step("pretrain", run, settings, (), (hf / "config.json", hf / "tokenizer.json"))

    def _quantize(self, what: str, source: Path, target: Path, name: str, rows: str | None = None) -> Step:
        def run() -> None:
            from .formats.quantize import quantize_gguf

            quantize_gguf(source, target, name, rows, self.threads)

        return Step(f"{what} to {name}", run, {"rows": rows}, (source,), (target,))

    def _rollouts(
        self, name: str, base: Path, settings: dict[str, Any], value: Path | None = None, **steering: Any
    ) -> Step:
        """Samples from the base, or from the base as `value` steers it."""
        out = self.work / f"{name.replace(' rollouts', '')}.jsonl"
        if "prompts" not in settings:
            raise ConfigError("[rollouts] lacks the setting 'prompts'")
        prompts = self.at(settings.pop("prompts"))
        limit = settings.pop("limit", None)
        pairs = settings.pop("pairs", False)

        def run() -> None:
            from sia_local import SiaConfig
            from sia_local.config import SamplingConfig

            from .data.rollouts import RolloutConfig, load_prompts, sample, take_pairs

            if pairs:
                take_pairs(prompts, out, str(base))
                return
            chosen = dict(settings)
            plain = SamplingConfig(temperature=chosen.pop("temperature", 1.0))
            sampling = SiaConfig(k=chosen.pop("k", 10), sampling=plain, **(steering or {"gate": "off"}))
            chosen["value"] = None if value is None else str(value)
            machine = {"n_threads": self.threads, "n_gpu_layers": self.gpu_layers}
            config = _checked("rollouts", RolloutConfig, base=str(base), sampling=sampling, **machine, **chosen)
            sample(load_prompts(prompts)[:limit], out, config)

        kept = {**settings, "limit": limit, "pairs": pairs, **steering}
        inputs = (base, prompts) if value is None else (base, prompts, value)
        return Step(name, run, kept, inputs, (out,), (out,))

    def _data(self, name: str, rollouts: Step) -> tuple[Path, list[Step]]:
        """Rollouts and their rewards."""
        raw = rollouts.outputs[0]
        scored = self.work / ("scored.jsonl" if name == "rollouts" else f"{name}-scored.jsonl")
        source, folder = self._reward()
        batch = int(self.plan["reward"].get("batch", 64))

        def score() -> None:
            from .data.score import score_files

            score_files([raw], scored, source, batch)

        inputs = (raw,) if folder is None else (raw, folder)
        what = "score" if name == "rollouts" else f"score {name}"
        return scored, [rollouts, Step(what, score, self.plan["reward"]["source"], inputs, (scored,), (scored,))]

    def _steered(self, base: Path, first: Path) -> tuple[Path, list[Step]]:
        """What the base writes when the value model of the first round steers it, with rewards."""
        settings = {**self.section("rollouts"), "seed": 1}
        if settings.get("pairs"):
            raise ConfigError("[steered] samples texts, but [rollouts] takes pairs: name prompts, or drop [steered]")
        steering = self.section("steered")
        settings |= {key: steering.pop(key) for key in ("samples", "seed") if key in steering}
        steering = {"gate": "rate", "beta": 2.0, **steering, "beta_unit": "spread"}
        value = self.work / "first.gguf"

        def export() -> None:
            from .formats.export import export_value
            from .train.head import ValueCheckpoint

            export_value(ValueCheckpoint.open(first), value, "merged", base, "f32")

        inputs = (first / "training.json", first / "value.json", base)
        rollouts = self._rollouts("steered rollouts", base, settings, value, **steering)
        scored, steps = self._data("steered", rollouts)
        spread = self._spread("first spread", base, first)
        return scored, [spread, Step("first export", export, None, inputs, (value,)), *steps]

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
            from .formats.gguf_to_hf import gguf_to_hf

            shutil.rmtree(folder, ignore_errors=True)  # of another file: the step runs only when its input changed
            gguf_to_hf(source, folder)

        return folder, [Step("backbone from GGUF", convert, None, (source,), (folder / "config.json",))]

    def _train(self, name: str, backbone: Path, base: Path, data: list[Path], out: Path) -> tuple[Path, Step]:
        settings = self.section("value")
        settings.pop("backbone", None)
        processes = int(settings.pop("processes", 1))
        kind, _, argument = str(self.plan["reward"]["source"]).partition(":")
        reward = self.plan["reward"].get("name") or (f"{kind}:{Path(argument).name}" if argument else kind)

        def run() -> None:
            from .train.loop import TrainConfig, train
            from .train.model import LoraSettings

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
                data=tuple(map(str, data)),
                out=str(out),
                lora=_checked("value.lora", LoraSettings, **lora),
                reward_name=reward,
                base_name=base.stem,
                **chosen,
            )
            if processes > 1:
                from .train.launch import launch

                launch(config, processes, self.work / f"{out.name}-train.json")
                return
            import torch

            if self.threads:
                torch.set_num_threads(self.threads)
            train(config)

        outputs = (out / "value.json", out / "training.json")
        return out, Step(name, run, settings, (*data, backbone), outputs, (out / "state.pt",))

    def _check(self) -> dict[str, Any]:
        """The settings of [verify] with their defaults, and those of its rollouts under `seen`."""
        check = self.section("verify")
        settings = {
            "limit": int(check.pop("limit", 40)),
            "also": list(check.pop("also", [])),
            "k": int(check.pop("k", 10)),
            "threshold": float(check.pop("threshold", 1.0)),
            "per_trajectory": int(check.pop("per_trajectory", 24)),
        }
        seen = {**self.section("rollouts"), "samples": 1, "seed": 1, "limit": settings["limit"], **check}
        # Room for the value model's longer rendering of the prompt.
        return {**settings, "seen": seen, "n_ctx": int(seen.get("n_ctx", 512)) + 64}

    def _unseen(self, base: Path) -> Step:
        return self._rollouts("unseen rollouts", base, self._check()["seen"])

    def _spread(self, name: str, base: Path, checkpoint: Path) -> Step:
        check, unseen = self._check(), self.work / "unseen.jsonl"
        junctions = {key: check[key] for key in ("k", "threshold", "limit")}

        def spread() -> None:
            from .proof.spread import measure_spread, store_spread
            from .train.head import ValueCheckpoint

            found, runtime = ValueCheckpoint.open(checkpoint), self._runtime(check["n_ctx"])
            value, count = measure_spread(found, base, [unseen], runtime=runtime, **junctions)
            self.echo(f"spread of V among candidates: {value:.4g} in reward units, over {count} junctions")
            store_spread(found, value)

        inputs = (checkpoint / "training.json", unseen, base)
        return Step(name, spread, junctions, inputs, (checkpoint / "value.json",))

    def _export(self, base: Path, checkpoint: Path) -> list[Step]:
        settings, check = self.section("export"), self._check()
        out = self.at(self.need("export", "out"))
        layout, dtype = settings.get("layout"), settings.get("dtype", "f32")
        types = list(settings.get("quantize", []))
        full = self._unquantized(out, dtype, types)
        unseen, report = self.work / "unseen.jsonl", self.work / "verify.json"
        finished = [finished_name(out, name, types) for name in types]
        junctions = {key: check[key] for key in ("k", "threshold", "limit")}

        def export() -> None:
            from .formats.export import export_value
            from .train.head import ValueCheckpoint

            found = ValueCheckpoint.open(checkpoint)
            rows, name, pre = (settings.get(key) for key in ("rows", "name", "pre"))
            export_value(found, full, layout, base, dtype, rows, name, pre)

        def verify() -> None:
            from .proof.verify import table, write_report
            from .proof.verify import verify as run
            from .train.head import ValueCheckpoint

            found, files = ValueCheckpoint.open(checkpoint), [full, *finished]
            asked = {**junctions, "per_trajectory": check["per_trajectory"]}
            rows = run(found, files, base, [unseen], check["also"], runtime=self._runtime(check["n_ctx"]), **asked)
            self.echo(table(rows))
            write_report(rows, report)
            # The types under `also` are there to be compared; only what the chain made must hold.
            made_here = {file.name for file in files}
            if failed := [row.file for row in rows if row.failures and row.file in made_here]:
                raise VerificationError(f"{', '.join(failed)}: beyond the tolerance of the type, see {report}")

        trained = checkpoint / "training.json"
        made = {"layout": layout, "dtype": dtype, **{key: settings.get(key) for key in ("rows", "name", "pre")}}
        steps = [
            self._spread("spread", base, checkpoint),
            Step("export", export, made, (trained, checkpoint / "value.json", base), (full,)),
        ]
        for name, path in zip(types, finished, strict=True):
            steps.append(self._quantize("value", full, path, name, settings.get("quantize_rows")))
        asked = {**junctions, "also": check["also"], "per_trajectory": check["per_trajectory"]}
        return [*steps, Step("verify", verify, asked, (full, *finished, base, unseen), (report,))]

    def _runtime(self, n_ctx: int) -> Any:
        from .proof.junctions import Runtime

        return Runtime(n_ctx, self.threads, self.gpu_layers)


def _checked(section: str, kind: Any, **settings: Any) -> Any:
    """A configuration object; ConfigError names a setting that it does not have."""
    known = {f.name for f in dataclasses.fields(kind)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"[{section}] has no setting {name!r}; expected one of {', '.join(sorted(known))}")
    return kind(**settings)
