"""Command-line options made from the dataclass they fill, so that a setting stands once: name, type, default, help.

    @click.command()
    @options_for(TrainConfig)
    def train(**options): run(build(TrainConfig, options, out="here"))

A field becomes `--its-name`, those of a dataclass inside it, too. Its `metadata` may hold: help; option, the
declarations, such as ("-n", "--tokens"); metavar; choices, or a function without arguments that returns them; show,
what stands for the default; prefix, with which the fields of a dataclass inside this one are named; cli=False for a
field that is no option; multiple, where a sequence is given by repeating the option; join, which makes one text of a
repeated option; escapes, where \\n and \\t stand for a line break and a tab; file, where the option names a file that
holds the text (says what is expected in it).
Options that were not given are None, so defaults stand in the dataclass alone and presets show through.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import click

from ..errors import ConfigError
from ..files import read_text

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Overrides = Mapping[str, Mapping[str, Any]]


def options_for(
    kind: Any, names: Collection[str] | None = None, overrides: Overrides | None = None, without: Collection[str] = ()
) -> Callable[[F], F]:
    """Decorates a click command with the options of `kind`, a dataclass or one made of it, whose values are then the
    defaults that are shown.

    names: the fields (default: all with a default value). without: fields left out, those of dataclasses inside, too.
    overrides: other metadata for single fields, by name, where a command says something its own way.
    """
    options = list(_options(kind, names, overrides or {}, without))

    def decorate(function: F) -> F:
        for declarations, settings in reversed(options):
            function = click.option(*declarations, **settings)(function)
        return function

    return decorate


def given(kind: type, options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Takes what was given for fields of `kind` out of a command's `options`; for `replace` over a preset.

    A dataclass inside is a dictionary of what was given for it, if anything was. Raises ConfigError for a file that
    cannot be read.
    """
    out: dict[str, Any] = {}
    for field, annotation in _fields(kind):
        inner, _ = _optional(annotation)
        if dataclasses.is_dataclass(inner):
            if field.metadata.get("cli", True) and (
                found := given(typing.cast(type, inner), options, field.metadata.get("prefix", ""))
            ):
                out[field.name] = found
        elif prefix + field.name in options:
            value = options.pop(prefix + field.name)
            repeated = field.metadata.get("multiple") or field.metadata.get("join")
            if value is not None and not (repeated and not value):
                out[field.name] = _read(value, field.metadata)
    return out


def build(kind: Callable[..., T], options: dict[str, Any], **more: Any) -> T:
    """A `kind` from a command's `options`, which lose what is used, and from `more`."""
    return typing.cast(T, _filled(kind, {**given(typing.cast(type, kind), options), **more}))


def fill(usual: T, options: dict[str, Any], **more: Any) -> T:
    """A copy of `usual`, a dataclass made already, with what was given in a command's `options`, and `more`."""
    return typing.cast(T, _filled(usual, {**given(type(usual), options), **more}))


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    """`kind`, or a copy of one made already, with `values`, which are dictionaries for the dataclasses inside."""
    for field, annotation in _fields(_class(kind)):
        inner, _ = _optional(annotation)
        if dataclasses.is_dataclass(inner) and isinstance(values.get(field.name), dict):
            usual = _usual(kind, field)
            values[field.name] = _filled(usual if dataclasses.is_dataclass(usual) else inner, values[field.name])
    return kind(**values) if isinstance(kind, type) else dataclasses.replace(kind, **values)


def option_name(kind: type, name: str) -> str:
    """What a user types for a field, such as `--temp`."""
    found = next(declared for declared, _ in _options(kind, None, {}, ()) if declared[-1] == name)
    return max(found[:-1], key=len).split("/")[0]


def _class(kind: Any) -> type:
    return kind if isinstance(kind, type) else type(kind)


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
    kind: Any, names: Collection[str] | None, overrides: Overrides, without: Collection[str], prefix: str = ""
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for field, annotation in _fields(_class(kind)):
        name, default = prefix + field.name, _usual(kind, field)
        meta = dict(field.metadata)
        if default != _usual(_class(kind), field):
            meta.pop("show", None)
        meta |= overrides.get(name, {})
        if names is not None:
            left_out = field.name not in names
        else:
            required = _usual(_class(kind), field) is dataclasses.MISSING
            left_out = required or not meta.get("cli", True) or name in without
        if left_out:
            continue
        inner, _ = _optional(annotation)
        if dataclasses.is_dataclass(inner):
            made = default if dataclasses.is_dataclass(default) else inner
            yield from _options(made, None, overrides, without, meta.get("prefix", ""))
        else:
            yield _declarations(name, annotation, default, meta), _settings(annotation, default, meta)


def _usual(kind: Any, field: dataclasses.Field[Any]) -> Any:
    """A field's value in one made already, its default in a class, MISSING without one."""
    if not isinstance(kind, type):
        return getattr(kind, field.name)
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
    out: dict[str, Any] = {"cls": FieldOption, "default": None, "metavar": meta.get("metavar")}
    unsaid = default is None or default is False or default is dataclasses.MISSING or default in ((), "")
    shown = "" if unsaid else _text(default)
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
    elif meta.get("join"):
        out |= {"multiple": True, "type": str}
    elif meta.get("file"):
        out["type"] = click.Path()
    elif origin is Sequence or (origin is tuple and parts[-1] is Ellipsis):
        if meta.get("multiple"):
            out |= {"multiple": True, "type": _simple(parts[0])}
        else:
            out |= {"callback": list_of(parts[0]), "metavar": out["metavar"] or "A,B,…"}
    elif origin is tuple:
        out["type"] = tuple(_simple(part) for part in parts)
    else:
        out["type"] = _simple(inner)
    return out


def _text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(map(_text, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


class FieldOption(click.Option):
    """Where a command reads the environment, the option's own name is read as well as its field's, and what may be
    given several times stands there in lines: a path may hold spaces."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value is None and ctx.auto_envvar_prefix is not None:
            name = max(self.opts, key=len).lstrip("-").replace("-", "_").upper()
            value = os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") or None
        return value

    def value_from_envvar(self, ctx: click.Context) -> Any:
        if not self.multiple:
            return super().value_from_envvar(ctx)
        value = self.resolve_envvar_value(ctx)
        return None if value is None else [line.strip() for line in value.splitlines() if line.strip()]


def _read(value: Any, meta: Mapping[str, Any]) -> Any:
    """What the words of an option stand for."""
    if "join" in meta:
        return meta["join"].join(value)
    if "file" in meta:
        return read_text(value, meta["file"])
    if meta.get("escapes"):
        return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in value)
    return value


def _simple(kind: Any) -> Any:
    return click.Path(path_type=Path) if kind is Path else kind if kind in (int, float) else str


def list_of(kind: type) -> Callable[..., Any]:
    """Callback for a comma list such as 1,4,8."""

    def parse(_: click.Context, param: click.Parameter, text: str | None) -> tuple[Any, ...] | None:
        if text is None:
            return None
        try:
            return tuple(dict.fromkeys(kind(part.strip()) for part in text.split(",") if part.strip()))
        except ValueError:
            raise ConfigError(f"{param.opts[0]} is {text!r}; expected numbers separated by commas") from None

    return parse
