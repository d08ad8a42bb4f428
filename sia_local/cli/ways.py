"""Ways to make a text beyond plain steering: the best of several. Their options, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..config import SiaConfig
from ..errors import ConfigError
from .options import _all, _trained_context, load_from, model_paths

if TYPE_CHECKING:
    from ..api import SIA
    from ..best_of import BestOf

    Generator = SIA | BestOf

F = TypeVar("F", bound=Callable[..., Any])
# What a chat template may add to a prompt, tokens.
_TEMPLATE_ROOM = 512


def way_options(function: F) -> F:
    """--best-of, --best-of-by and --reward, for generator_from()."""
    return _all(
        click.option("--best-of", type=click.IntRange(min=1), metavar="N", help="Make N texts, keep the best one."),
        click.option(
            "--best-of-by",
            metavar="value|reward|likelihood",
            help="What the best text has most of.  [default: value, without value model likelihood]",
        ),
        click.option("--reward", metavar="NAME", help="The reward: vader, polarity or module:function."),
    )(function)


def generator_from(options: Mapping[str, Any], config: SiaConfig, prompt: str | None = None) -> Generator:
    """What generates as `options` ask: SIA, or several texts of which the best is kept. Close it.

    prompt: the only text that will be read, if that is known; the context of every sequence is sized by it.
    """
    n = options.get("best_of")
    if n is None:
        for name in ("best_of_by", "reward"):
            if options.get(name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} was given without --best-of; say how many texts, as in "
                                  "--best-of 8")  # fmt: skip
        return load_from(options, config)
    from ..best_of import BestOf, slots_for
    from ..rewards import load_reward

    reward = load_reward(options["reward"]) if options.get("reward") else None
    if prompt is not None and options.get("ctx") is None:
        needed = len(prompt.encode()) + options["max_tokens"] + _TEMPLATE_ROOM
        options = {**options, "ctx": min(_trained_context(model_paths(options)[0]), needed)}
    sia = load_from(options, config, slots_for(n, config.k))
    try:
        return BestOf(sia, n, options.get("best_of_by"), reward)
    except BaseException:
        sia.close()
        raise


def closing_line(generator: Generator, config: SiaConfig) -> str:
    """The line behind a text, whichever way it was made."""
    from .. import trace

    result = getattr(generator, "result", None)
    if result is None:
        return trace.closing_line(generator.last_stats, config)
    scores = result.scores
    return (
        f"{trace.closing_line(generator.last_stats, config, result.n)} · best of {result.n} by {result.by}: "
        f"{max(scores):.3g}, mean {sum(scores) / result.n:.3g}; choosing adds at most {result.kl_bound:.2f} nats of KL"
    )


def facts(generator: Generator, config: SiaConfig) -> dict[str, Any]:
    """What a JSON result says beyond a plain text's."""
    from .. import trace

    result = getattr(generator, "result", None)
    texts = result.n if result is not None else 1
    out: dict[str, Any] = {}
    if budgets := trace.kl_budgets(generator.last_stats, config, texts):
        out["kl_budget"] = budgets
    if result is not None:
        out["best_of"] = {
            "n": result.n,
            "by": result.by,
            "winner": result.best,
            "scores": result.scores,
            "seeds": [c.seed for c in result.contenders],
            "texts": [c.text for c in result.contenders],
            "kl": result.kl,
            "kl_choosing_bound": result.kl_bound,
        }
    return out
