"""`sia-local calibrate`: threshold and beta for a base and a value model, as a profile."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ..evaluation.plan import USUAL, Task
from .from_dataclass import build, options_for
from .many import SETUP, SIZED, fitting, read_items, sized_context
from .options import STEERING, model_options
from .resolve import config_from, known_from, load_from, loading_from, model_paths, request_from


@click.command()
@model_options(SETUP, SIZED)
@click.option(
    "--prompts", type=click.Path(), help="JSON, JSONL, CSV or text.  [default: the model's own, or questions]"
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=64, show_default=True, help="Only the first so many prompts."
)
@options_for(Task)
@click.option("--reward", help="What to report or weigh: vader, plain, package.module:name, …")
@options_for(USUAL, without=(*STEERING, "beta_unit"))
@click.option("-o", "--out", metavar="NAME|FILE.toml", help="The profile.  [default: beside the value model]")
def calibrate(**options: Any) -> None:
    """Choose threshold and beta for a base and a value model.

    Measures how unsure the base is and how much the values differ, finds the beta that spends the wanted KL (or
    that is still worth its KL), and writes both to a small file. `generate`, `chat` and `eval` use it with --profile.
    """
    config = config_from(options | {"rate": None, "kl_per_token": None}, {})
    request, setup = request_from(options, config, USUAL), loading_from(options, SETUP)
    base, values = model_paths(options)
    if not values:
        raise ConfigError("no value model was given; give one with -v value.gguf, or guides with --guide-plus")
    file = _value_file(values)
    path = _path(options["out"], file or base)
    model = known_from(options)
    # Not the prompts of `eval`: what is measured there should not have been tuned on.
    items = read_items(options, base, "training")

    from ..evaluation.calibrate import calibrate as run
    from ..rewards.load import load_reward
    from .terminal import notice

    task = build(Task, dict(options), prompts=items, request=request)
    usual = model.reward if task.reward_per_kl is not None and model is not None else None
    reward = load_reward(named) if (named := options["reward"] or usual) else None
    if task.reward_per_kl is not None and reward is None:
        raise ConfigError("--reward-per-kl was given without --reward; give the reward that is to be weighed")
    ctx = sized_context(options, items, request.max_tokens)
    with load_from({**options, "n_ctx": ctx}, config, setup) as sia:
        assert sia.value is not None
        task = replace(task, prompts=fitting(options, items, request, lambda: nullcontext(sia)))
        profile = replace(run(sia, task, reward, notice), model=base.name, value=file.name if file else None)
    profile.write(path)
    from ..evaluation.profile import SUFFIX

    click.echo(profile.chose)
    found = path.parent == base.parent or (file is not None and path.parent == file.parent)
    short = path.name.removesuffix(SUFFIX) if found and path.name.endswith(SUFFIX) else path
    notice(f"{path}: use it as in `sia-local chat --profile {short}`")


def _value_file(values: list[Any]) -> Path | None:
    """The value file, where there is one and it has no weight."""
    from ..values.sources import ValuePath, parse_specs

    first, *others = parse_specs(values)
    return Path(first.path) if isinstance(first, ValuePath) and first.weight is None and not others else None


def _path(out: str | None, beside: Path) -> Path:
    from ..evaluation.profile import SUFFIX

    if out is None:
        return beside.with_name(f"{beside.stem}{SUFFIX}")
    if out.endswith(".toml"):
        return Path(out)
    if Path(out).name != out:
        return Path(f"{out}{SUFFIX}")
    return beside.with_name(f"{out}{SUFFIX}")
