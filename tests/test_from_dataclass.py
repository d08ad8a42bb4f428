"""Options made from a dataclass: names, types, defaults and help stand once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from sia_local.cli.from_dataclass import FieldOption, build, given, options_for
from sia_local.config import Setup
from sia_local.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    r: int = field(default=4, metadata={"help": "Rank."})
    names: tuple[str, ...] = ("q", "k")


@dataclass(frozen=True)
class Settings:
    needed: str
    count: int = field(default=3, metadata={"help": "How many.", "option": ("-n", "--count")})
    zero: int = 0
    share: float | None = field(default=None, metadata={"help": "A share.", "show": "all"})
    kind: Literal["a", "b"] = "a"
    mode: str = field(default="x", metadata={"choices": lambda: ("x", "y")})
    quiet: bool = False
    warm: bool = True
    half: bool | None = None
    span: tuple[float, float] | None = field(default=None, metadata={"metavar": "LOW HIGH"})
    stops: tuple[str, ...] = field(default=(), metadata={"multiple": True, "option": "--stop"})
    place: Path = Path("here")
    inner: Inner = field(default_factory=Inner, metadata={"prefix": "in_"})
    hidden: int = field(default=1, metadata={"cli": False})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError("count must be at least 1")


def command(seen: list[Any], **how: Any) -> click.Command:
    @click.command()
    @options_for(Settings, **how)
    def run(**options: Any) -> None:
        seen.append((given(Settings, dict(options)), build(Settings, options, needed="yes")))
        assert not options

    return run


def call(*words: str, **how: Any) -> Any:
    seen: list[Any] = []
    result = CliRunner().invoke(command(seen, **how), list(words), standalone_mode=False)
    if result.exception:
        raise result.exception
    return seen[0]


def test_what_is_not_given_stays_the_dataclass_default() -> None:
    assert call() == ({}, Settings("yes"))


def test_every_kind_of_field_is_read() -> None:
    words = "-n 5 --zero 2 --share .5 --kind b --mode y --quiet --no-warm --half --span 1 2 --stop a --stop b"
    found, made = call(*words.split(), "--place", "there", "--in-r", "8", "--in-names", "v, o")
    wanted = Settings(
        "yes", 5, 2, 0.5, "b", "y", True, False, True, (1.0, 2.0), ("a", "b"), Path("there"), Inner(8, ("v", "o"))
    )
    assert made == wanted
    assert replace(Settings("preset", hidden=7), **{**found, "inner": Inner(**found["inner"])}) == replace(
        wanted, needed="preset", hidden=7
    )


def test_the_page_says_help_choices_and_defaults() -> None:
    page = " ".join(CliRunner().invoke(command([]), ["--help"]).output.split())
    for part in (
        "-n, --count INTEGER How many. [default: 3]", "--zero INTEGER [default: 0]", "A share. [default: all]",
        "--kind [a|b] [default: a]", "--mode [x|y] [default: x]", "--warm / --no-warm [default: on]",
        "--half / --no-half", "--span LOW HIGH", "--in-names A,B,… [default: q,k]", "--place PATH [default: here]",
    ):  # fmt: skip
        assert part in page, part
    assert "hidden" not in page and "needed" not in page


def test_fields_can_be_picked_and_said_otherwise() -> None:
    picked = command([], names=("count", "needed"), overrides={"count": {"help": "Times.", "option": "--times"}})
    page = CliRunner().invoke(picked, ["--help"]).output
    assert "--times INTEGER  Times.  [default: 3]" in page and "--needed TEXT" in page and "[required]" in page
    assert "--zero" not in page


def test_a_wrong_value_is_the_dataclass_own_sentence() -> None:
    with pytest.raises(ConfigError, match="count must be at least 1"):
        call("--count", "0")
    with pytest.raises(click.BadParameter, match="'z' is not one of 'x', 'y'"):
        call("--mode", "z")


def test_what_may_be_given_several_times_stands_in_lines_of_the_environment() -> None:
    @click.command(context_settings={"auto_envvar_prefix": "SIA"})
    @click.option("-v", "--value", cls=FieldOption, multiple=True)
    @options_for(Setup)
    def shown(value: tuple[str, ...], **options: Any) -> None:
        click.echo(repr((value, options["template_arg"])))

    env = {"SIA_VALUE": "/a b.gguf\n c.gguf:0.5\n", "SIA_TEMPLATE_ARG": 'x="two words"'}
    assert CliRunner().invoke(shown, env=env).output == repr((("/a b.gguf", "c.gguf:0.5"), ('x="two words"',))) + "\n"
