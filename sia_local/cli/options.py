"""Options that several commands share, as click declarations; what becomes of them is in `resolve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..config import BETA_UNITS, ENTROPIES, GATES, PRESETS, SamplingConfig, SiaConfig
from ..errors import ConfigError
from .resolve import DEFAULT_CONTEXT

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS, _SAMPLING = SiaConfig(), SamplingConfig()


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def numbers(kind: type) -> Any:
    """Callback for comma lists such as 1,4,8."""

    def parse(_ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(kind(part) for part in (text or "").split(",") if part.strip()))
        except ValueError:
            raise ConfigError(f"{param.opts[0]} is {text!r}; expected numbers separated by commas") from None

    return parse


def model_options(function: F) -> F:
    """-m, -v, --ctx, --threads, --n-gpu-layers and KV cache options, for load_from()."""
    return together(
        click.option(
            "-m",
            "--model",
            metavar="FILE|NAME|hf:…",
            help="Base model: a GGUF, a name that `sia-local models` lists, or hf:owner/repo[:quant].  "
            "[default: smollm2 once it is fetched, else story]",
        ),
        click.option(
            "-v",
            "--value",
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
        click.option(
            "--ctx",
            type=click.IntRange(min=1),
            help=f"Tokens of context.  [default: what the model was trained on, at most {DEFAULT_CONTEXT}]",
        ),
        click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: one a core]"),
        click.option("--n-gpu-layers", type=int, default=0, help="Layers on the GPU, -1 for all.  [default: 0]"),
        click.option("--kv-type", metavar="TYPE", help="KV cache format: f32, f16, q8_0, …  [default: f16]"),
        click.option("--kv-type-k", metavar="TYPE", help="KV cache format of the keys alone."),
        click.option("--kv-type-v", metavar="TYPE", help="KV cache format of the values alone."),
        click.option(
            "--flash-attention",
            default="auto",
            metavar="auto|on|off",
            help="Attention with less memory, on GPUs faster; a quantized --kv-type-v needs it.  [default: auto]",
        ),
        click.option(
            "--overlap-prompts",
            is_flag=True,
            help="The value model reads a prompt while the base does, on some of the cores, not at the first junction.",
        ),
        click.option(
            "--same-vocabulary",
            is_flag=True,
            help="Token ids mean the same in both models, though control tokens have other names.",
        ),
    )(function)


def steering_options(function: F) -> F:
    """Gate, threshold, beta and budgets, for config_from(). Unset options stay None: presets show through."""
    d = _DEFAULTS
    return together(
        click.option(
            "--gate",
            multiple=True,
            metavar="NAME",
            help=f"When to steer: {', '.join(GATES)}. Several are OR-ed.  [default: {d.gate}]",
        ),
        click.option(
            "--threshold",
            type=float,
            help=f"Steer where the base's entropy, how unsure it is, has so many nats.  [default: {d.threshold}]",
        ),
        click.option("--rate", type=float, help="Wanted share of steered tokens; alone it means --gate rate."),
        click.option("--first-n", type=int, help="Tokens steered by --gate first-n; alone it means that gate."),
        click.option(
            "--ratio", type=float, help=f"Steer where entropy is so many times the last token's.  [default: {d.ratio}]"
        ),
        click.option(
            "--varentropy",
            type=float,
            help=f"Steer where the variance of -log p has so many nats².  [default: {d.varentropy_threshold}]",
        ),
        click.option(
            "--gain",
            type=float,
            help="Steer where that changes so many nats, for --gate gain; without it that gate holds --rate.",
        ),
        click.option(
            "--beta", type=float, help=f"Strength of steering; 0 is none, below 0 the opposite.  [default: {d.beta}]"
        ),
        click.option(
            "--beta-unit",
            metavar="|".join(BETA_UNITS),
            help=f"Multiply values as they are, or in units of their usual spread.  [default: {d.beta_unit}]",
        ),
        candidate_options,
        click.option(
            "--kl-per-token",
            type=float,
            help="Most that steering may change the text, as KL in nats a token: 0.05 is gentle.",
        ),
        click.option("--kl-total", type=float, help="The same for the whole text, such as 20."),
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


def candidate_options(function: F) -> F:
    """What is entropy, which candidates are scored, and what becomes of their values, whatever the gate and beta."""
    d = _DEFAULTS
    return together(
        click.option(
            "-k",
            "--candidates",
            "k",
            type=int,
            help=f"Likeliest tokens to choose among.  [default: {d.k}, of which a value-head scores 4]",
        ),
        click.option(
            "--entropy",
            metavar="|".join(ENTROPIES),
            help=f"Measure entropy over the candidates, or over all tokens.  [default: {d.entropy}]",
        ),
        click.option("--center", is_flag=True, default=None, help="Subtract the candidates' mean value."),
        click.option("--clip", type=(float, float), metavar="LOW HIGH", help="Bound the values to this range."),
        click.option("--tail", is_flag=True, default=None, help="Keep tokens beyond the candidates, unsteered."),
        click.option("--min-share", type=float, help="Score only candidates this likely, relative to the best."),
        click.option("--row-group", type=int, help="Round the number of scored candidates up to a multiple of this."),
    )(function)


def sampling_options(function: F) -> F:
    """Temperature, truncation, penalties, grammar, stop strings, length and seed."""
    return together(
        click.option("-n", "--max-tokens", type=int, default=256, show_default=True, help="Longest answer, tokens."),
        text_options,
        click.option("--seed", type=click.IntRange(min=0), help="The same seed gives the same text.  [default: drawn]"),
    )(function)


def text_options(function: F) -> F:
    """Sampling without length and seed, for which commands over many texts have other defaults."""
    s = _SAMPLING
    return together(
        click.option(
            "--temp",
            "temperature",
            type=float,
            help=f"0 takes the likeliest token, above 1 is wilder.  [default: {s.temperature}]",
        ),
        click.option(
            "--top-p", type=float, help=f"Keep the likeliest tokens that reach this share.  [default: {s.top_p}, off]"
        ),
        click.option(
            "--min-p", type=float, help=f"Drop those below this share of the likeliest.  [default: {s.min_p}, off]"
        ),
        click.option(
            "--repeat-penalty",
            type=float,
            help=f"Above 1: tokens that came are less likely.  [default: {s.repeat_penalty}, off]",
        ),
        click.option(
            "--frequency-penalty",
            type=float,
            help=f"Above 0: the same, with each time they came.  [default: {s.frequency_penalty}, off]",
        ),
        click.option(
            "--presence-penalty",
            type=float,
            help=f"Above 0: the same, however often they came.  [default: {s.presence_penalty}, off]",
        ),
        click.option("--penalty-last-n", type=int, help=f"Tokens penalties look at.  [default: {s.penalty_last_n}]"),
        click.option("--grammar-file", type=click.Path(), help="GBNF grammar the text must follow."),
        click.option("--stop", multiple=True, help="Text that ends the answer (\\n is a line break); repeatable."),
    )(function)
