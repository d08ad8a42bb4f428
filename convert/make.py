"""The whole chain from TOML files: base, rollouts, rewards, training, export, quantization, proof."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sia_local.errors import SiaError
from sia_local.files import alone, discard
from sia_local.progress import duration
from sia_local.ray_workers import RayConfig, executor_for
from sia_local.shipped import PROFILE_SUFFIX

from .advice import in_plan
from .data.served import ServerConfig
from .formats.export import BaseConfig, ExportConfig
from .hubsets import from_files, hub_sets
from .paths import Artefact, Round
from .plan import CalibrateSection, Plan, RolloutSection, SteeredSection
from .reading import read_plan
from .settings import decisive, free, settings_of
from .steps import State, Step, preview, run_steps
from .train.config import TrainSettings, read_template


class VerificationError(SiaError):
    """A GGUF whose values are further from PyTorch's than its type may be."""


def make(
    *paths: Path, echo: Callable[[str], None] = print, dry_run: bool = False, ray: RayConfig | None = None
) -> None:
    """Brings everything that the TOML files describe up to date. Paths in them are relative to the first one.

    ray: where texts are sampled and scored; the same is made wherever that is, up to the rounding of batches.
    The plan is checked whole before the first step; with `dry_run` the steps are only told. Raises
    VerificationError when a finished file is beyond its tolerance.
    """
    plan = read_plan(*paths)
    plan.check()
    chain = Chain(plan, echo, ray or RayConfig())
    steps = chain.steps()
    state = State.load(chain.files.state)
    if dry_run:
        for line in preview(steps, state):
            echo(line)
        return
    try:
        with alone(chain.files.work):
            seconds = run_steps(steps, state, echo)
    except SiaError as error:
        error.args = (in_plan(str(error)), *error.args[1:])
        raise
    echo(f"everything made; the steps took {duration(seconds)} in all:")
    for path in (*(chain.files.base.finished if chain.files.base else (chain.base,)), *chain.files.value.finished):
        echo(f"  {path}, {path.stat().st_size / 1e6:.1f} MB")


class Chain:
    """The steps of one plan."""

    def __init__(self, plan: Plan, echo: Callable[[str], None] = print, ray: RayConfig | None = None):
        self.sets = hub_sets(plan)
        self.plan = plan = from_files(plan, self.sets)
        self.echo, self.files = echo, plan.files
        self.ray = ray or RayConfig()
        self.base = self.files.base.last if self.files.base else plan.base.gguf or Path()
        source = plan.backbone
        self.backbone = self.files.backbone(source) if source.suffix == ".gguf" else source

    def steps(self) -> list[Step]:
        steps, scored = [*(found.step() for found in self.sets), *self._base()], list[Path]()
        value: Path | None = None
        for i, at in enumerate(self.files.rounds):
            steps += [self._texts(i, at, value), self._score(at)]
            scored.append(at.scored)
            if i == 0:
                steps += self._backbone()
            steps.append(self._train(at, tuple(scored)))
            if i == 0:
                unseen = self.plan.verify.unseen
                steps.append(self._sample("unseen rollouts", self.files.unseen, unseen, None, None))
            if at is not self.files.rounds[-1]:
                name = at.name.removesuffix(" round")
                steps += [self._spread(f"{name} spread", at), self._export_round(f"{name} export", at)]
            value = at.gguf
        return [*steps, *self._finish(self.files.rounds[-1].value)]

    def _base(self) -> list[Step]:
        section, files = self.plan.base, self.files.base
        if files is None or section.hf is None:  # one that exists already
            return []
        hf, steps = section.hf, []
        if (maker := section.maker) is not None:
            outputs = (hf / "config.json", hf / "tokenizer.json")
            steps.append(Step(maker.name, maker.run, maker.settings, maker.inputs, outputs, estimate=maker.estimate))

        def convert() -> None:
            from .formats.export import export_base

            export_base(hf, files.full, **settings_of(BaseConfig, section))

        kept = settings_of(BaseConfig, section)
        steps.append(Step("base to GGUF", convert, kept, (hf,), (files.full,)))
        return [*steps, *self._quantize("base", files, None)]

    def _quantize(self, what: str, files: Artefact, rows: str | None) -> list[Step]:
        def step(name: str, target: Path) -> Step:
            def run() -> None:
                from .formats.quantize import quantize_gguf, rows_hint

                quantize_gguf(files.full, target, name, rows, self.plan.machine.threads)
                if hint := rows_hint(target):
                    self.echo(hint)

            return Step(f"{what} to {name}", run, {"rows": rows}, (files.full,), (target,))

        return [step(name, target) for name, target in files.quantized.items()]

    def _texts(self, index: int, at: Round, value: Path | None) -> Step:
        """What the base writes, or what it writes when the value model of the round before steers it."""
        section = self.plan.rollouts
        if not index:
            return self._sample(at.texts, at.rollouts, section, None, None)
        steered = self.plan.steered[index - 1]
        samples = section.samples if steered.samples is None else steered.samples
        changed = dataclasses.replace(section, samples=samples, seed=steered.seed, texts=None)
        return self._sample(at.texts, at.rollouts, changed, value, steered)

    def _sample(
        self, name: str, out: Path, section: RolloutSection, value: Path | None, steered: SteeredSection | None
    ) -> Step:
        def run() -> None:
            from .data.pairs import take_pairs, take_texts
            from .data.rollouts import load_prompts, sample

            if section.texts is not None:
                take_texts(section.texts, out, self.base, section, section.limit)
                return
            if section.pairs:
                take_pairs(section.prompts, out, self.base, None, section, section.limit)
                return
            prompts = load_prompts(section.prompts)[: section.limit]
            if section.servers.url and value is None:
                from .data.served import sample_served

                key, servers = os.environ.get("SIA_API_KEY"), section.servers
                sample_served(prompts, out, self.base, section, servers, key, self.plan.machine, echo=self.echo)
                return
            steering = steered.steering if steered else None
            machine = dataclasses.replace(self.plan.machine, threads=self.ray.threads(self.plan.machine.threads))
            executor = executor_for(self.ray)
            sample(prompts, out, self.base, section, machine, None, value, steering, executor)

        settings = dataclasses.asdict(section) | free(RolloutSection, "pace")
        settings.pop("prompts")
        settings["chat_template"] = section.template_mark
        texts = settings.pop("texts")
        served = settings.pop("servers")
        if served["url"]:
            settings |= decisive(ServerConfig, section.servers)
        if steered is not None:
            settings["steering"] = dataclasses.asdict(steered.steering)
        inputs = tuple(path for path in (self.base, section.prompts, value, texts) if path is not None)
        return Step(name, run, settings, inputs, (out,), (out,), amount=tuple(free(RolloutSection, "amount")))

    def _score(self, at: Round) -> Step:
        def run() -> None:
            from .data.score import score_files

            executor = executor_for(self.ray)
            score_files([at.rollouts], at.scored, self.plan.reward_spec, self.plan.reward.batch, None, executor)

        inputs = (at.rollouts, *self.plan.reward_files)
        return Step(f"score{at.suffix}", run, self.plan.reward.source, inputs, (at.scored,), (at.scored,))

    def _backbone(self) -> list[Step]:
        """Makes the folder that is trained of a GGUF."""
        source, folder = self.plan.backbone, self.backbone
        if source == folder:
            return []

        def convert() -> None:
            from .formats.gguf_to_hf import gguf_to_hf

            discard(folder)  # of another file: the step runs only when its input changed
            gguf_to_hf(source, folder)

        return [Step("backbone from GGUF", convert, None, (source,), (folder / "config.json",))]

    def _train(self, at: Round, data: tuple[Path, ...]) -> Step:
        plan = self.plan

        def run() -> None:
            from .train.config import TrainConfig

            config = TrainConfig(
                **{**plan.value.recipe, "template": read_template(plan.value.template)},
                backbone=str(self.backbone),
                data=tuple(map(str, data)),
                out=str(at.value),
                reward_name=plan.reward_name,
                base_name=self.base.stem,
            )
            if plan.value.accelerate is not None or (plan.value.processes or 1) > 1:
                from .train.launch import launch

                several = (plan.value.processes, plan.value.accelerate)
                launch(config, self.files.job(at), *several, threads=plan.machine.threads, anew=True)
                return
            import torch

            from .train.loop import train

            if plan.machine.threads:
                torch.set_num_threads(plan.machine.threads)
            train(config, anew=True)

        recipe = {**plan.value.recipe, "lora": dataclasses.asdict(plan.value.lora), **free(TrainSettings, "pace")}
        recipe["template"] = read_template(plan.value.template)
        # A learning rate that falls until the last epoch is another one in every step, where there are more of them.
        amount = tuple(free(TrainSettings, "amount")) if plan.value.schedule == "constant" else ()
        inputs, outputs = (*data, self.backbone), (at.value / "value.json", at.value / "training.json")
        return Step(at.name, run, recipe, inputs, outputs, (at.state,), amount=amount)

    def _walk(self, checkpoint: Path) -> Any:
        """The checkpoint and its one pass over the junctions, made or read."""
        from .formats.checkpoint import ValueCheckpoint
        from .proof.walk import walk

        found = ValueCheckpoint.open(checkpoint, self.backbone)
        return found, walk(found, self.base, [self.files.unseen], self.plan.verify.junctions, self.plan.machine)

    def _spread(self, name: str, at: Round) -> Step:
        def run() -> None:
            from .proof.walk import store_spread

            found, seen = self._walk(at.value)
            spread = store_spread(found, seen)
            self.echo(f"spread of V among candidates: {spread:.4g} in reward units, over {seen.junctions} junctions")

        inputs = (at.value / "training.json", self.files.unseen, self.base)
        return Step(name, run, dataclasses.asdict(self.plan.verify.junctions), inputs, (at.spread,))

    def _export(
        self, name: str, at: Round, out: Path, config: ExportConfig, called: tuple[str, str] | None = None
    ) -> Step:
        def run() -> None:
            from .formats.checkpoint import ValueCheckpoint
            from .formats.export import export_value

            found = ValueCheckpoint.open(at.value, self.backbone)
            export_value(found.called(*called) if called else found, out, self.base, config)

        inputs = (at.value / "training.json", at.value / "value.json", at.spread, self.base)
        settings = {**dataclasses.asdict(config), **({"called": called} if called else {})}
        return Step(name, run, settings, inputs, (out,))

    def _export_round(self, name: str, at: Round) -> Step:
        return self._export(name, at, at.gguf, ExportConfig("merged", "f32"))

    def _finish(self, checkpoint: Path) -> list[Step]:
        files, section, at = self.files.value, self.plan.export, self.files.rounds[-1]

        def verify() -> None:
            from .proof.verify import table, write_report
            from .proof.verify import verify as run

            made = [files.full, *files.quantized.values()]
            rows = run(self._walk(checkpoint)[1], made, self.base, self.plan.verify.also, self.plan.machine)
            self.echo(table(rows))
            write_report(rows, self.files.report)
            # The types under `also` are there to be compared; only what the chain made must hold.
            names = {file.name for file in made}
            if failed := [row.file for row in rows if row.failures and row.file in names]:
                report = self.files.report
                raise VerificationError(f"{', '.join(failed)}: beyond the tolerance of the type, see {report}")

        asked = {**dataclasses.asdict(self.plan.verify.junctions), "also": self.plan.verify.also}
        inputs = (files.full, *files.quantized.values(), self.base, self.files.unseen)
        return [
            self._spread("spread", at),
            self._export("export", at, files.full, section.config, (self.plan.reward_name, self.base.stem)),
            *self._quantize("value", files, section.quantize_rows),
            Step("verify", verify, asked, inputs, (self.files.report,)),
            *self._distill(files.last),
            *self._calibrate(self.plan.distill.out if self.plan.distill else files.last),
        ]

    def _distill(self, teacher: Path) -> list[Step]:
        section, plan = self.plan.distill, self.plan
        if section is None:
            return []
        prompts = section.prompts or plan.rollouts.prompts

        def run() -> None:
            from .data.distill import distill_file

            machine = dataclasses.replace(plan.machine, threads=self.ray.threads(plan.machine.threads))
            executor = executor_for(self.ray) if self.ray.ray is not None else None
            self.echo(
                distill_file(
                    teacher, self.base, prompts, section, self.files.junctions, machine, self.echo, executor=executor,
                    chat=plan.rollouts, anew=True,
                )
            )  # fmt: skip

        settings = {
            "texts": section.texts,
            "n_ctx": section.n_ctx,
            **section.collecting.decisive,
            "fit": dataclasses.asdict(section.fit),
            **plan.rollouts.unusual,
        }
        return [Step("distill", run, settings, (teacher, self.base, prompts), (section.out,))]

    def _calibrate(self, value: Path) -> list[Step]:
        section, plan = self.plan.calibrate, self.plan
        if section is None:
            return []
        prompts, out = section.prompts or plan.rollouts.prompts, value.with_name(value.stem + PROFILE_SUFFIX)

        def run() -> None:
            from .data.calibrate import calibrate_file

            reward = plan.reward_spec if section.weigh else None
            self.echo(calibrate_file(self.base, value, prompts, section, plan.rollouts, reward, out, plan.machine))

        usual = free(CalibrateSection, "pace")
        settings = {**dataclasses.asdict(section), **usual, "n_ctx": plan.rollouts.n_ctx, **plan.rollouts.unusual}
        if plan.rollouts.raw:
            settings["raw"] = True
        inputs = (value, self.base, prompts, *(plan.reward_files if section.weigh else ()))
        return [Step("calibrate", run, settings, inputs, (out,), beside=value)]
