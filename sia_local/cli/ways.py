"""Ways to make a text beyond plain steering: the best of several, nudging. Their options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..config import SiaConfig
from ..errors import ConfigError
from ..records import Request
from .from_dataclass import option_name
from .options import STEERING, together
from .resolve import known_from, load_from, model_paths, trained_context

if TYPE_CHECKING:
    from ..generation.nudge import Nudged
    from ..generation.writing import Writer

F = TypeVar("F", bound=Callable[..., Any])


def way_options(function: F) -> F:
    """--best-of, --best-of-by and --reward, for writer_from()."""
    return together(
        click.option(
            "--best-of",
            type=click.IntRange(min=1),
            metavar="N",
            help="Make N texts side by side, keep the best one; their context takes N times the memory.",
        ),
        click.option(
            "--best-of-by",
            metavar="value|reward|likelihood",
            help="What the best text has most of.  [default: value, without value model likelihood]",
        ),
        click.option(
            "--reward",
            metavar="NAME",
            help="The reward: vader, plain or module:function.  [default: the model's own]",
        ),
    )(function)


def nudge_options(function: F) -> F:
    """--nudge and --nudge-threshold, for writer_from()."""
    return together(
        click.option(
            "--nudge",
            type=click.Path(),
            metavar="FILE",
            help="Small instruct model whose next word is taken where the base is unsure; any vocabulary.",
        ),
        click.option(
            "--nudge-threshold",
            type=float,
            metavar="P",
            help="Unsure: the base's likeliest token has less than this probability.  [default: 0.4]",
        ),
    )(function)


def writer_from(options: Mapping[str, Any], request: Request, prompt: str | None = None) -> Writer:
    """What writes a request as `options` ask: SIA, several texts of which the best is kept, or nudging. Close it.

    prompt: the only text that will be read, if that is known; the context of every sequence is sized by it.
    """
    if options.get("nudge") is not None:
        return _nudged(options)
    if options.get("nudge_threshold") is not None:
        raise ConfigError("--nudge-threshold was given without --nudge; name a small model, as in --nudge small.gguf")
    n = options.get("best_of")
    if n is None:
        for name in ("best_of_by", "reward"):
            if options.get(name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} was given without --best-of; say how many texts, as in "
                                  "--best-of 8")  # fmt: skip
        return load_from(options, request.config)
    from ..generation.best_of import BestOf, slots_for
    from ..llama.chat import TEMPLATE_ROOM
    from ..rewards.load import load_reward

    named = options.get("reward")
    if named is None and options.get("best_of_by") == "reward" and (model := known_from(options)) is not None:
        named = model.reward
    reward = load_reward(named) if named else None
    if prompt is not None and options.get("n_ctx") is None:
        needed = len(prompt.encode(errors="replace")) + request.max_tokens + TEMPLATE_ROOM
        options = {**options, "n_ctx": min(trained_context(model_paths(options)[0]), needed)}
    sia = load_from({**options, "slots": slots_for(n, request.config.k)}, request.config)
    try:
        return BestOf(sia, n, options.get("best_of_by"), reward)
    except BaseException:
        sia.close()
        raise


def notices(writer: Writer, config: SiaConfig) -> list[str]:
    """What to say before any text: beta counts in spreads that the value file does not state; the threshold is more
    than the entropy of k candidates can be."""
    value, said = writer.value, list[str]()
    if value is None or config.gate == "off":
        return said
    if not value.spread and config.beta_unit == "spread":
        said.append(f"{value.name} states no spread: one unit of beta is what the junctions of each text so far tell")
    most = math.log(config.k)
    if config.gate == "entropy" and config.entropy == "topk" and config.threshold > most:
        said.append(
            f"no token is steered: the entropy of {config.k} candidates is at most {most:.2f} nats, and the threshold "
            f"is {config.threshold:g}; lower --threshold or raise -k"
        )
    return said


def _nudged(options: Mapping[str, Any]) -> Nudged:
    # It asks no value model and has a gate of its own.
    apart = {
        "guide_plus": "--guide-plus",
        "guide_minus": "--guide-minus",
        "best_of": "--best-of",
        "best_of_by": "--best-of-by",
    }
    apart |= {name: option_name(SiaConfig, name) for name in STEERING}
    given = [option for name, option in apart.items() if options.get(name) not in (None, ())]
    if any(value != "none" for value in options.get("value") or ()):
        given.insert(0, "--value")
    if given:
        raise ConfigError(
            f"--nudge and {given[0]} were given; nudging takes whole words of a small model and asks no value model, "
            "drop one of them"
        )
    from ..generation.nudge import DEFAULT_THRESHOLD, Nudged, check_threshold

    wanted = options.get("nudge_threshold")
    threshold = DEFAULT_THRESHOLD if wanted is None else wanted
    check_threshold(threshold)
    sia = load_from({**options, "value": ("none",)})
    try:
        return Nudged.beside(sia, options["nudge"], threshold, n_gpu_layers=options.get("n_gpu_layers") or 0)
    except BaseException:
        sia.close()
        raise
