"""`sia-local calibrate`: threshold and beta for a base and a value model, as a profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ..shipped import STORY
from .many import read_items, sized_context
from .options import candidate_options, model_options, text_options
from .resolve import config_from, known_from, load_from, model_paths, stops_from


@click.command()
@model_options
@click.option("--prompts", type=click.Path(), help="JSON, JSONL, CSV or text.  [default: the model's own]")
@click.option(
    "--limit", type=click.IntRange(min=1), default=64, show_default=True, help="Only the first so many prompts."
)
@click.option("--rate", type=float, default=0.2, show_default=True, help="Share of tokens to steer.")
@click.option("--kl-per-token", type=float, help="Nats a token that steering may spend on average.  [default: 0.05]")
@click.option("--reward-per-kl", type=float, help="Stop where another nat a text buys less than this; needs --reward.")
@click.option("--reward", help="What to report or weigh: vader, plain, package.module:name, …")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=80, show_default=True, help="Longest text.")
@click.option("--slots", type=click.IntRange(min=1), default=8, show_default=True, help="Texts in one decode.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same profile.")
@candidate_options
@text_options
@click.option("--raw", is_flag=True, help="Continue prompts as they stand, without chat template.")
@click.option("-o", "--out", metavar="NAME|FILE.toml", help="The profile.  [default: beside the value model]")
def calibrate(**options: Any) -> None:
    """Choose threshold and beta for a base and a value model.

    Measures how unsure the base is and how much the values differ, finds the beta that spends the wanted KL (or
    that is still worth its KL), and writes both to a small file. `generate`, `chat` and `eval` use it with --profile.
    """
    config = config_from(options | {"rate": None, "kl_per_token": None}, {})
    base, values = model_paths(options)
    if not values:
        raise ConfigError("no value model was given; give one with -v value.gguf, or guides with --guide-plus")
    file = _value_file(values)
    path = _path(options["out"], file or base)
    model = known_from(options) or STORY
    # Not the prompts of `eval`: what is measured there should not have been tuned on.
    items = read_items(options["prompts"], model.training, options["limit"])

    from ..evaluation.calibrate import Task
    from ..evaluation.calibrate import calibrate as run
    from ..rewards.load import load_reward
    from .terminal import notice

    task = Task(
        prompts=items,
        config=config,
        rate=options["rate"],
        kl_per_token=options["kl_per_token"],
        reward_per_kl=options["reward_per_kl"],
        max_tokens=options["max_tokens"],
        seed=options["seed"],
        raw=options["raw"],
        stop=stops_from(options),
    )
    usual = model.reward if task.reward_per_kl is not None and known_from(options) is not None else None
    reward = load_reward(named) if (named := options["reward"] or usual) else None
    if task.reward_per_kl is not None and reward is None:
        raise ConfigError("--reward-per-kl was given without --reward; give the reward that is to be weighed")
    ctx = sized_context(options, items, options["max_tokens"])
    with load_from({**options, "ctx": ctx}, config, options["slots"]) as sia:
        assert sia.value is not None
        profile = replace(run(sia, task, reward, notice), model=base.name, value=file.name if file else None)
    profile.write(path)
    click.echo(profile.chose)
    notice(f"{path}: use it with --profile {path.name.removesuffix('.profile.toml')}")


def _value_file(values: list[Any]) -> Path | None:
    """The value file, where there is one and it has no weight."""
    from ..values.sources import ValuePath, parse_specs

    first, *others = parse_specs(values)
    return Path(first.path) if isinstance(first, ValuePath) and first.weight is None and not others else None


def _path(out: str | None, beside: Path) -> Path:
    from ..evaluation.profile import SUFFIX

    if out is None:
        return beside.with_name(f"{beside.stem}{SUFFIX}")
    return Path(out) if out.endswith(".toml") else beside.with_name(f"{out}{SUFFIX}")
