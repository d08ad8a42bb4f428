"""A plan from the TOML files of `sia-convert make`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sia_local.errors import ConfigError, DataError
from sia_local.files import at_home, parse_toml
from sia_local.tables import is_hub

from .plan import (
    BaseSection,
    CalibrateSection,
    DistillSection,
    ExportSection,
    Plan,
    RewardSection,
    RolloutSection,
    SteeredSection,
    ValueSection,
    VerifySection,
)
from .proof.junctions import JunctionConfig
from .registry import find_maker
from .settings import Machine, from_table, settings_of


def read_plan(*paths: Path) -> Plan:
    """The TOML files as one plan, later ones overriding single keys of earlier ones; paths are relative to the first.

    DataError for a file that is missing or no TOML; ConfigError for an unknown, missing or wrong setting.
    """
    tables: dict[str, Any] = {}
    for path in paths:
        now = _read_toml(path)
        tables = _over(tables, now)
        _check_base(path, now.get("base"), tables.get("base"))
    folder = paths[0].resolve().parent

    def at(name: str) -> Path:
        return Path(name) if is_hub(name) else (folder / at_home(name)).resolve()

    sections = ("base", "rollouts", "reward", "steered", "value", "export", "verify", "distill", "calibrate")
    known = ("work", "threads", "gpu_layers", *sections)
    for key in tables:
        if key not in known:
            raise ConfigError(f"{paths[-1]}: unknown {key!r}; expected {', '.join(known)}")
    required = ("work", "base", "rollouts", "reward", "value", "export")
    if missing := [name for name in required if name not in tables]:
        raise ConfigError(f"{paths[0]} lacks {', '.join(missing)}: expected {', '.join(known)}")
    return _plan(tables, at)


def _over(before: Any, now: Any) -> Any:
    """`before` with the keys of `now`, in tables within tables, too."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return now
    return {**before, **{key: _over(before.get(key), value) for key, value in now.items()}}


def _check_base(path: Path, now: Any, whole: Any) -> None:
    """ConfigError for what makes a base where there is one; it may stand in a file that this one is laid over."""
    if isinstance(now, dict) and isinstance(whole, dict) and "gguf" in whole:
        made = ("pretrain", "out", "dtype", "pre", "name", "quantize")
        if idle := [name for name in made if name in now]:
            raise ConfigError(
                f"{path}: [base] gguf is a base that is made already, so nothing reads {', '.join(idle)}: leave off "
                "one or the other"
            )


def _plan(tables: dict[str, Any], at: Callable[[str], Path]) -> Plan:
    for name in ("base", "rollouts", "value", "verify", "distill"):  # which are changed before they are read
        if not isinstance(tables.get(name, {}), dict):
            raise ConfigError(f"[{name}] is {tables[name]!r}; expected a section")
    take = partial(from_table, at=at)
    steered = tables.get("steered", [])
    rounds = steered if isinstance(steered, list) else [steered]
    value = dict(tables["value"])
    if value.get("template", "chat") not in ("chat", "raw"):
        value["template"] = str(at(str(value["template"])))
    base = dict(tables["base"])
    pretrain, maker = base.pop("pretrain", None), None
    if pretrain is not None and "hf" in base:
        maker = find_maker("pretrain", "base.pretrain", pretrain, at, at(str(base["hf"])))
    rollouts = take(RolloutSection, "rollouts", _placed(tables["rollouts"], at))
    distill = {"raw": rollouts.raw, **tables.get("distill", {})}
    machine = take(Machine, "top", {key: tables[key] for key in ("threads", "gpu_layers") if key in tables})
    return Plan(
        folder=at("."),
        work=at(str(tables["work"])),
        base=take(BaseSection, "base", base, maker=maker),
        rollouts=rollouts,
        reward=take(RewardSection, "reward", tables["reward"]),
        value=take(ValueSection, "value", value),
        export=take(ExportSection, "export", tables["export"]),
        verify=_verify(tables.get("verify", {}), rollouts, at),
        steered=tuple(take(SteeredSection, "steered", t) for t in rounds),
        distill=take(DistillSection, "distill", distill) if "distill" in tables else None,
        calibrate=take(CalibrateSection, "calibrate", tables["calibrate"]) if "calibrate" in tables else None,
        machine=machine,
    )


def _placed(table: dict[str, Any], at: Callable[[str], Path]) -> dict[str, Any]:
    """With the path of the chat template, unless it is one of llama.cpp's by name."""
    given = table.get("chat_template")
    if not isinstance(given, str):
        return table
    from sia_local.llama.templates import builtin_names

    named = given in builtin_names() and not at(given).is_file()
    return {**table, "chat_template": given if named else str(at(given))}


def _verify(table: dict[str, Any], rollouts: RolloutSection, at: Callable[[str], Path]) -> VerifySection:
    """[verify] holds settings of junctions, and those of its own rollouts where they differ from [rollouts]. Texts that
    [rollouts] takes over are not taken twice: the base answers their prompts anew."""
    own = {f.name for f in dataclasses.fields(JunctionConfig)} - {"n_ctx"}
    seen = {f.name for f in dataclasses.fields(RolloutSection)} - own
    table = _placed(table, at)
    for name in table:
        if name not in own | seen | {"also"}:
            expected = ", ".join(("also", *sorted(own | seen)))
            raise ConfigError(f"[verify] has no setting {name!r}; expected {expected}")
    junctions = from_table(JunctionConfig, "verify", {k: v for k, v in table.items() if k in own})
    changed = {k: v for k, v in table.items() if k in seen}
    kept = {k: v for k, v in settings_of(RolloutSection, rollouts).items() if k not in changed}
    unlike = {"pairs": False, "texts": None, "limit": junctions.limit, "samples": 1, "seed": 1}
    kept |= {k: v for k, v in unlike.items() if k not in changed}
    unseen = from_table(RolloutSection, "verify", changed, at, **kept)
    # Room for the value model's longer rendering of the prompt.
    junctions = dataclasses.replace(junctions, n_ctx=unseen.n_ctx + 64)
    also = from_table(_Also, "verify", {"also": table["also"]} if "also" in table else {})
    return VerifySection(junctions, unseen, also.also)


@dataclass(frozen=True)
class _Also:
    also: tuple[str, ...] = ()


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"no file at {path}: expected a TOML file such as models/demo.toml")
    try:
        return parse_toml(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid TOML ({error})") from error
