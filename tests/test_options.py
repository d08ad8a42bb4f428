"""A setting stands once: a field of the dataclass is the option of every command it concerns, and reaches the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from sia_convert.cli import main as convert

from sia_local.cli import main as local
from sia_local.cli.from_dataclass import options_for
from sia_local.cli.options import STEERING, setup_options
from sia_local.cli.resolve import config_from, loading_from, request_from
from sia_local.config import ChatSettings, SamplingConfig, Setup, SiaConfig
from sia_local.errors import ConfigError
from sia_local.evaluation.plan import text_of
from sia_local.prompts import PromptItem
from sia_local.records import Request


def commands() -> Iterator[tuple[str, click.Command]]:
    for group in (local, convert):
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield f"{group.name} {name}", command


def fields_of(*kinds: type) -> set[str]:
    """The fields that are options, whatever is added to them."""
    inside = {"config", "sampling", "prompt"}
    return {f.name for kind in kinds for f in fields(kind) if f.metadata.get("cli", True)} - inside


TEXT = (Request, SiaConfig, SamplingConfig)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("generate", fields_of(*TEXT, Setup) - {"slots"}),
        ("chat", fields_of(*TEXT, Setup) - {"slots", "raw"}),
        ("eval", fields_of(*TEXT, Setup) - set(STEERING)),
        ("calibrate", fields_of(*TEXT, Setup) - set(STEERING) - {"beta_unit"}),
        ("serve", fields_of(SiaConfig, SamplingConfig, Setup)),
        ("learn", fields_of(Setup)),
        ("bench", fields_of(Setup) - fields_of(ChatSettings) - {"n_ctx", "slots", "overlap_prompts"}),
    ],
)
def test_every_field_is_an_option_of_the_commands_it_concerns(name: str, wanted: set[str]) -> None:
    command = local.get_command(click.Context(local), name)
    assert command is not None
    options = {param.name: param for param in command.params}
    assert wanted <= options.keys()
    assert all(getattr(options[field], "help", None) for field in wanted)


def test_no_two_options_of_a_command_share_a_name() -> None:
    for name, command in commands():
        spelled = Counter(word for param in command.params for word in (*param.opts, *param.secondary_opts))
        named = Counter(param.name for param in command.params)
        assert {*spelled.values(), *named.values()} == {1}, name


def given(*words: str) -> tuple[Request, Setup]:
    seen: list[tuple[Request, Setup]] = []

    @click.command()
    @options_for(Request)
    @setup_options()
    def run(**options: Any) -> None:
        config = config_from(options, {"beta": 7.0, "sampling": {"top_p": 0.5}})
        seen.append((request_from(options, config, Request("", seed=9)), loading_from(options, Setup())))

    result = CliRunner().invoke(run, words, standalone_mode=False)
    if result.exception:
        raise result.exception
    return seen[0]


def test_what_is_given_arrives_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    usual = Request("", SiaConfig(beta=7.0, sampling=SamplingConfig(top_p=0.5)), seed=9)
    assert given() == (usual, Setup())
    (tmp_path / "g.gbnf").write_text('root ::= "é"')
    words = ["--gate", "entropy", "--gate", "gain", "--gain", "0.5", "--clip", "-1", "1", "--temp", "0.7", "--special"]
    words += ["--stop", "\\n\\n", "--stop", "a", "-n", "5", "--raw", "--grammar-file", str(tmp_path / "g.gbnf")]
    asked, setup = given(*words, "--kv-type", "q8_0", "--kv-type-v", "f32", "--ctx", "64")
    sampling = replace(usual.config.sampling, temperature=0.7, grammar='root ::= "é"')
    config = replace(usual.config, gate="entropy+gain", gain_threshold=0.5, clip=(-1.0, 1.0), sampling=sampling)
    wanted = replace(usual, config=config, special=True, stop=("\n\n", "a"), max_tokens=5, raw=True)
    assert asked == wanted
    assert setup == Setup(n_ctx=64, type_k="q8_0", type_v="f32")
    with pytest.raises(ConfigError, match="no such file; expected a GBNF grammar"):
        given("--grammar-file", str(tmp_path / "none.gbnf"))


def test_the_texts_of_an_evaluation_ask_for_all_that_its_request_does() -> None:
    usual = Request("", max_tokens=5, stop="a", raw=True, special=True, trace=True)
    made = text_of(usual, PromptItem("7", "hello"), 1, SiaConfig(beta=3))
    assert made == replace(usual, prompt="hello", config=SiaConfig(beta=3), seed=made.seed) and made.seed != usual.seed


def test_the_environment_names_an_option_as_the_command_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(context_settings={"auto_envvar_prefix": "SIA"})
    @options_for(SiaConfig)
    def run(**options: Any) -> None:
        click.echo(repr(config_from(options, {})))

    for name, value in (("TEMP", "0.5"), ("CANDIDATES", "4"), ("GATE", "dense"), ("VARENTROPY_THRESHOLD", "3")):
        monkeypatch.setenv(f"SIA_{name}", value)
    wanted = SiaConfig(k=4, gate="dense", varentropy_threshold=3.0, sampling=SamplingConfig(temperature=0.5))
    assert CliRunner().invoke(run).output.strip() == repr(wanted)
