"""Command-line options made from the dataclass they fill, so that a setting stands once: name, type, default, help.

    @click.command()
    @options_for(TrainConfig)
    def train(**options): run(build(TrainConfig, options, out="here"))

A field becomes `--its-name`. Its `metadata` may hold: help; option, the declarations, such as ("-n", "--tokens");
metavar; choices, or a function without arguments that returns them; show, what stands for a default of None; prefix,
with which the fields of a dataclass inside this one are named; cli=False for a field that is no option.
Options that were not given are None, so defaults stand in the dataclass alone and presets show through.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import click

from ..errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def options_for(
    kind: type, names: Iterable[str] | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[F], F]:
    """Decorates a click command with the options of `kind`; `names` picks fields (default: all with a default value).

    overrides: other metadata for single fields, by name, where a command says something its own way.
    """
    options = list(_options(kind, None if names is None else tuple(names), overrides or {}))

    def decorate(function: F) -> F:
        for declarations, settings in reversed(options):
            function = click.option(*declarations, **settings)(function)
        return function

    return decorate


def given(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Takes what was given for fields of `kind` out of a command's `options`; for `replace` over a preset.

    A dataclass inside is a dictionary of what was given for it, if anything was.
    """
    out: dict[str, Any] = {}
    for field, annotation in _fields(kind):
        inner, _ = _optional(annotation)
        if dataclasses.is_dataclass(inner):
            prefix = field.metadata.get("prefix", "")
            names = {f.name for f in dataclasses.fields(inner)}
            taken = {name: options.pop(f"{prefix}{name}") for name in names if f"{prefix}{name}" in options}
            if found := given(typing.cast(type, inner), taken):
                out[field.name] = found
        elif field.name in options:
            value = options.pop(field.name)
            if value is not None and value != ():
                out[field.name] = value
    return out


def build(kind: Callable[..., T], options: dict[str, Any], **more: Any) -> T:
    """A `kind` from a command's `options`, which lose what is used, and from `more`."""
    values = given(typing.cast(type, kind), options)
    for field, annotation in _fields(typing.cast(type, kind)):
        inner, _ = _optional(annotation)
        if field.name in values and dataclasses.is_dataclass(inner):
            values[field.name] = typing.cast(type, inner)(**values[field.name])
    return kind(**{**values, **more})


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init:
            yield field, hints[field.name]


def _optional(annotation: Any) -> tuple[Any, bool]:
    """The type without None, and whether None was in it."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return annotation, False


def _options(
    kind: type, names: tuple[str, ...] | None, overrides: Mapping[str, Mapping[str, Any]], prefix: str = ""
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for field, annotation in _fields(kind):
        meta = {**field.metadata, **overrides.get(prefix + field.name, {})}
        default = _default(field)
        inner, _ = _optional(annotation)
        if names is not None and field.name not in names:
            continue
        if names is None and (default is dataclasses.MISSING or not meta.get("cli", True)):
            continue
        if dataclasses.is_dataclass(inner):
            yield from _options(typing.cast(type, inner), None, overrides, meta.get("prefix", ""))
            continue
        yield _declarations(prefix + field.name, annotation, default, meta), _settings(annotation, default, meta)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING or field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def _declarations(name: str, annotation: Any, default: Any, meta: Mapping[str, Any]) -> tuple[str, ...]:
    declared = meta.get("option") or ("--" + name.replace("_", "-"),)
    declared = (declared,) if isinstance(declared, str) else tuple(declared)
    inner, optional = _optional(annotation)
    if inner is bool and (optional or default is True) and "/" not in declared[-1]:
        declared = (*declared[:-1], f"{declared[-1]}/--no-{declared[-1].removeprefix('--')}")
    return (*declared, name)


def _settings(annotation: Any, default: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    inner, _ = _optional(annotation)
    out: dict[str, Any] = {"default": None, "metavar": meta.get("metavar")}
    unsaid = default is None or default is False or default is dataclasses.MISSING or default in ((), "")
    shown = "" if unsaid else _text(inner, default)
    shown = str(meta.get("show", shown))
    out["help"] = "  ".join(part for part in (meta.get("help", ""), f"[default: {shown}]" if shown else "") if part)
    out["required"] = default is dataclasses.MISSING
    choices = meta.get("choices")
    origin, parts = typing.get_origin(inner), typing.get_args(inner)
    if choices is not None:
        out["type"] = click.Choice(list(choices() if callable(choices) else choices))
    elif origin is Literal:
        out["type"] = click.Choice([str(part) for part in parts])
    elif inner is bool:
        out["is_flag"] = True
    elif origin is tuple and parts[-1] is Ellipsis:
        if meta.get("multiple"):
            out |= {"multiple": True, "type": _simple(parts[0])}
        else:
            out |= {"callback": _list_of(parts[0]), "metavar": out["metavar"] or "A,B,…"}
    elif origin is tuple:
        out["type"] = tuple(_simple(part) for part in parts)
    else:
        out["type"] = _simple(inner)
    return out


def _text(inner: Any, default: Any) -> str:
    if inner is bool:
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else f"{default:g}" if isinstance(
        default, float
    ) else str(default)  # fmt: skip


def _simple(kind: Any) -> Any:
    return click.Path(path_type=Path) if kind is Path else kind if kind in (int, float) else str


def _list_of(kind: type) -> Callable[..., Any]:
    """Callback for a comma list such as 1,4,8."""

    def parse(_: click.Context, param: click.Parameter, text: str | None) -> tuple[Any, ...] | None:
        if text is None:
            return None
        try:
            return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
        except ValueError:
            raise ConfigError(f"{param.opts[0]} is {text!r}; expected values separated by commas") from None

    return parse
