"""Steps that a plan may name beside the chain's own: where their settings and their function are.

A room such as the story demo stays apart: nothing imports it until a plan names one of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sia_local.errors import ConfigError

from .settings import free, from_table

# name: module, dataclass of its settings, function that takes them and writes a Hugging Face folder to `out`
MAKERS = {"pretrain": (".demo.pretrain", "PretrainConfig", "pretrain")}


@dataclass(frozen=True)
class Maker:
    """A step that writes a Hugging Face folder."""

    name: str
    config: Any
    make: Callable[..., object]

    def run(self) -> None:
        """Goes on where a run of the same settings and inputs was stopped, and begins anew beside what others left."""
        self.make(self.config, anew=True)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files whose content decides what is made."""
        return tuple(self.config.inputs)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is made; what does not is as usual."""
        return asdict(self.config) | free(type(self.config), "pace")

    def check(self) -> None:
        """Raises what `run` would raise for want of its inputs."""
        self.config.check()

    @property
    def estimate(self) -> float | None:
        """Seconds it will take, where it knows."""
        minutes = getattr(self.config, "minutes", None)
        return None if minutes is None else 60.0 * minutes


def find_maker(name: str, section: str, table: Any, at: Callable[[str], Path], out: Path) -> Maker:
    """The step `name` with the settings of a plan's section."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{section}] is {table!r}; expected a section")
    module, kind, run = MAKERS[name]
    found = import_module(module, __package__)
    return Maker(name, from_table(getattr(found, kind), section, table, at, out=out), getattr(found, run))
