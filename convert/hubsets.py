"""Data sets of the Hub that a plan names: fetched once into its work folder, then the file's content decides."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sia_local.prompts import read_prompts
from sia_local.tables import HUB, is_hub

from .plan import CalibrateSection, DistillSection, Plan, RolloutSection
from .steps import Step

Section = TypeVar("Section", RolloutSection, DistillSection, CalibrateSection)


@dataclass(frozen=True)
class HubSet:
    """A set that a plan names, and where the rows with its first `limit` prompts are kept (all without a limit)."""

    name: str
    file: Path
    limit: int | None

    def step(self) -> Step:
        def run() -> None:
            from .data.rows import write_all

            rows = self.limit
            # Rows may share their prompt, as pairs of preferences do, or have none.
            while write_all([self.name], self.file, rows) == rows and len(read_prompts(self.file)) < (self.limit or 0):
                rows *= 2

        return Step(f"fetch {self.name}", run, {"set": self.name, "limit": self.limit}, (), (self.file,))


def hub_sets(plan: Plan) -> tuple[HubSet, ...]:
    """Every set once, as long as the section that reads most of it."""
    rollouts, unseen = plan.rollouts, plan.verify.unseen
    read: list[tuple[Path, int | None]] = [
        (section.prompts, None if section.pairs else section.limit) for section in (rollouts, unseen)
    ]
    if plan.distill is not None:
        read.append((plan.distill.prompts or rollouts.prompts, None))
    if plan.calibrate is not None:
        read.append((plan.calibrate.prompts or rollouts.prompts, plan.calibrate.limit))
    limits: dict[str, list[int | None]] = {}
    for prompts, limit in read:
        if is_hub(prompts):
            limits.setdefault(str(prompts), []).append(limit)
    return tuple(
        HubSet(name, plan.work / f"{_slug(name)}.jsonl", None if None in given else max(n or 0 for n in given))
        for name, given in limits.items()
    )


def from_files(plan: Plan, sets: tuple[HubSet, ...]) -> Plan:
    """The plan with the files in place of the sets."""
    files = {made.name: made.file for made in sets}

    def changed(section: Section) -> Section:
        return dataclasses.replace(section, prompts=files.get(str(section.prompts), section.prompts))

    return dataclasses.replace(
        plan,
        rollouts=changed(plan.rollouts),
        verify=dataclasses.replace(plan.verify, unseen=changed(plan.verify.unseen)),
        distill=plan.distill and changed(plan.distill),
        calibrate=plan.calibrate and changed(plan.calibrate),
    )


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name.removeprefix(HUB))
