"""Settings that stand once: a frozen dataclass a step, whose fields carry the help of the option and are TOML keys.

`sia_local.cli.from_dataclass` makes command-line options of them, `from_table` reads a section of a plan into them.
A field whose metadata say `free` may change while its work goes on: how that is done (`pace`), or how much (`amount`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from sia_local.config import setting
from sia_local.errors import ConfigError

T = TypeVar("T")
FREE = ("pace", "amount")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """ConfigError where `value` is none of `allowed`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigError(f"{name} {value!r}: expected one of {', '.join(str(a) for a in allowed if a is not None)}")


@dataclass(frozen=True)
class Machine:
    """What a step may use of this machine."""

    threads: int = setting(0, "CPU threads.", show="all")
    gpu_layers: int = setting(0, "Layers of the base on the GPU, -1 for all.")


def settings_of(kind: type, instance: Any) -> dict[str, Any]:
    """The fields that `kind` has, of an instance of it or of a class made from it; by name, not copied."""
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(kind)}


def free(kind: type, *sorts: str) -> dict[str, Any]:
    """The fields that are free, of these sorts or of any, with their defaults."""
    return {f.name: f.default for f in dataclasses.fields(kind) if f.metadata.get("free") in (sorts or FREE)}


def decisive(kind: type, instance: Any) -> dict[str, Any]:
    """settings_of() without those that are free: what a run must share to go on where another one was stopped."""
    return {name: value for name, value in settings_of(kind, instance).items() if name not in free(kind)}


def from_table(
    kind: Callable[..., T], section: str, table: Mapping[str, Any], at: Callable[[str], Path] = Path, **more: Any
) -> T:
    """A `kind` from a section of a plan: its fields, and those of dataclasses inside it as tables.

    `at` makes paths of the values of Path fields. ConfigError names the section and the setting that is unknown,
    missing or of another type than its field.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{section}] is {table!r}; expected a section")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init and f.name not in more}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values = dict(more)
    for name, value in table.items():
        if name not in fields:
            raise ConfigError(f"[{section}] has no setting {name!r}; expected {', '.join(fields)}")
        values[name] = _value(f"[{section}] {name}", f"{section}.{name}", hints[name], value, at)
    for name, found in fields.items():
        no_default = found.default is dataclasses.MISSING and found.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise ConfigError(f"[{section}] lacks the setting {name!r}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"[{section}] {error}") from error


def _value(where: str, section: str, annotation: Any, value: Any, at: Callable[[str], Path]) -> Any:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is Literal:
        check_choice(where, value, typing.get_args(annotation))
        return value
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}; expected a table")
        return from_table(typing.cast(type, annotation), section, value, at)
    if typing.get_origin(annotation) is tuple:
        kind = typing.get_args(annotation)[0]
        if not isinstance(value, list) or not all(_is(kind, item) for item in value):
            raise ConfigError(f"{where} is {value!r}; expected a list of {_WORDS[kind]}")
        return tuple(value)
    if not _is(annotation, value):
        raise ConfigError(f"{where} is {value!r}; expected {_WORDS[annotation]}")
    return at(value) if annotation is Path else value


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _is(kind: type, value: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    kinds: dict[type, Any] = {float: (int, float), Path: str}
    return isinstance(value, kinds.get(kind, kind))
