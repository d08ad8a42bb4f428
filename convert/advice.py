"""What the options that a sentence names are called in a plan, whose steps say the same as the commands."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator

from .plan import (
    BaseSection,
    CalibrateSection,
    DistillSection,
    ExportSection,
    RewardSection,
    RolloutSection,
    SteeredSection,
    ValueSection,
)
from .proof.junctions import JunctionConfig

SECTIONS = {
    "base": BaseSection,
    "rollouts": RolloutSection,
    "reward": RewardSection,
    "steered": SteeredSection,
    "value": ValueSection,
    "export": ExportSection,
    "verify": JunctionConfig,
    "distill": DistillSection,
    "calibrate": CalibrateSection,
}
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*\b(?![-{\w])")


def settings() -> dict[str, list[str]]:
    """Options and their settings, such as `lr in [value]`."""
    found: dict[str, list[str]] = {}
    for section, kind in SECTIONS.items():
        for option, setting in _settings(kind, section):
            found.setdefault(option, []).append(setting)
    return found


def _settings(kind: type, section: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(inner := hints[field.name]):
            yield from _settings(typing.cast(type, inner), f"{section}.{field.name}", field.metadata.get("prefix", ""))
            continue
        named = field.metadata.get("option") or "--" + (prefix + field.name).replace("_", "-")
        for option in (named,) if isinstance(named, str) else named:
            yield option, f"{field.name} in [{section}]"


def in_plan(said: str) -> str:
    """The sentence, and the settings that its options are."""
    names = settings()
    told = [f"{o} is {' or '.join(names[o])}" for o in dict.fromkeys(OPTION.findall(said)) if o in names]
    return f"{said}; in a plan {', '.join(told)}" if told else said
