"""Options that several commands share and that are no field of anything; the others are made of Setup and Request."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

from ..config import PRESETS, Setup
from .from_dataclass import FieldOption, options_for
from .resolve import DEFAULT_CONTEXT

F = TypeVar("F", bound=Callable[..., Any])

# Fields of SiaConfig that say where and how strongly to steer, for commands that find it out and ways without values.
STEERING = (
    "gate", "threshold", "rate", "first_n", "ratio", "varentropy_threshold", "gain_threshold", "beta", "kl_per_token",
    "kl_total",
)  # fmt: skip


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def base_option(function: F) -> F:
    return click.option(
        "-m",
        "--model",
        metavar="FILE|NAME|hf:…",
        help="Base model: a GGUF, a name that `sia-local models` lists, or hf:owner/repo[:quant].  "
        "[default: smollm2 once it is fetched, else story]",
    )(function)


def model_options(
    usual: Setup | None = None, ctx: str = f"what the model was trained on, at most {DEFAULT_CONTEXT}",
    without: Collection[str] = (),
) -> Callable[[F], F]:  # fmt: skip
    """Base, values and guides, and the fields of Setup `without` some; for load_from(). usual: where a command has
    other defaults; ctx: how long a context is that nobody asked for."""
    return together(
        base_option,
        click.option(
            "-v",
            "--value",
            cls=FieldOption,
            multiple=True,
            metavar="FILE[:WEIGHT]",
            help="Value model: a GGUF, a name, hf:…, or `none`; several are weighed.  "
            "[default: that of a model known by name]",
        ),
        click.option(
            "--guide-plus",
            type=click.Path(),
            help="Steer towards this language model of the base's vocabulary, such as a small instruct model.",
        ),
        click.option(
            "--guide-minus",
            type=click.Path(),
            help="And away from this one, such as that model before its instruction tuning.",
        ),
        click.option("--guide-plus-prompt", help="What the first guide reads; {prompt} stands for the message."),
        click.option("--guide-minus-prompt", help="What the second guide reads; {prompt} stands for the message."),
        setup_options(usual, without, {"n_ctx": {"show": ctx}}),
    )


def setup_options(
    usual: Setup | None = None, without: Collection[str] = (), overrides: dict[str, dict[str, Any]] | None = None
) -> Callable[[F], F]:
    """The fields of Setup, and one option for both formats of the KV cache."""
    return together(
        click.option("--kv-type", metavar="TYPE", help="KV cache format: f32, f16, q8_0, …  [default: f16]"),
        options_for(usual or Setup(), overrides=overrides, without=without),
    )


def preset_options(function: F) -> F:
    """Whole settings, which the options of single fields win over."""
    return together(
        click.option("--paper", is_flag=True, help="The paper's setting; same as --preset paper."),
        click.option(
            "--preset",
            metavar="|".join(PRESETS),
            help="Settings of a published method: paper steers at junctions only, args, rad, vas and cd at every token "
            "(ARGS, Reward-Augmented Decoding, Value Augmented Sampling, Controlled Decoding). Other options win.",
        ),
        profile_option,
    )(function)


def profile_option(function: F) -> F:
    return click.option(
        "--profile", metavar="FILE|NAME", help="Settings that `sia-local calibrate` found; other options win over it."
    )(function)
