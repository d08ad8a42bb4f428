"""Ways to make a text beyond plain steering: the best of several, nudging. Their options, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..config import SiaConfig
from ..errors import ConfigError
from .options import together
from .resolve import load_from, model_paths, trained_context

if TYPE_CHECKING:
    from ..generation.best_of import BestOf, BestOfResult
    from ..generation.nudge import Nudged
    from ..generation.sia import SIA

    Generator = SIA | BestOf | Nudged

F = TypeVar("F", bound=Callable[..., Any])


def way_options(function: F) -> F:
    """--best-of, --best-of-by and --reward, for generator_from()."""
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
        click.option("--reward", metavar="NAME", help="The reward: vader, polarity or module:function."),
    )(function)


def nudge_options(function: F) -> F:
    """--nudge and --nudge-threshold, for generator_from()."""
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


def generator_from(options: Mapping[str, Any], config: SiaConfig, prompt: str | None = None) -> Generator:
    """What generates as `options` ask: SIA, several texts of which the best is kept, or nudging. Close it.

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
        return load_from(options, config)
    from ..generation.best_of import BestOf, slots_for
    from ..llama.chat import TEMPLATE_ROOM
    from ..rewards.load import load_reward

    reward = load_reward(options["reward"]) if options.get("reward") else None
    if prompt is not None and options.get("ctx") is None:
        needed = len(prompt.encode(errors="replace")) + options["max_tokens"] + TEMPLATE_ROOM
        options = {**options, "ctx": min(trained_context(model_paths(options)[0]), needed)}
    sia = load_from(options, config, slots_for(n, config.k))
    try:
        return BestOf(sia, n, options.get("best_of_by"), reward)
    except BaseException:
        sia.close()
        raise


# What has no meaning beside --nudge: it asks no value model and has a gate of its own.
_STEERING = ("gate", "threshold", "rate", "first_n", "ratio", "varentropy", "beta", "kl_per_token", "kl_total")
_APART = ("guide_plus", "guide_minus", "best_of", *_STEERING)


def _nudged(options: Mapping[str, Any]) -> Nudged:
    given = [name for name in _APART if options.get(name) not in (None, ())]
    if any(value != "none" for value in options.get("value") or ()):
        given.insert(0, "value")
    if given:
        name = given[0].replace("_", "-")
        raise ConfigError(
            f"--nudge and --{name} were given; nudging takes whole words of a small model and asks no value model, "
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


def watch(generator: Generator, interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """What a loop over steps asks whether to stop. Best-of-N asks while it writes; then the winner comes whole."""
    from ..generation.best_of import BestOf

    if isinstance(generator, BestOf):
        generator.interrupted = interrupted
        return lambda: False
    return interrupted


def closing_line(generator: Generator, config: SiaConfig) -> str:
    """The line behind a text, whichever way it was made."""
    from ..generation.best_of import BestOf
    from ..generation.nudge import Nudged
    from ..views import trace

    stats = generator.last_stats
    if isinstance(generator, Nudged):
        return (
            f"{stats.tokens} tokens · {stats.tokens_per_second:.1f} tokens/s · {stats.junctions} words by "
            f"{generator.small.path.name}, {stats.value_ms_per_junction:.1f} ms a word"
        )
    if not isinstance(generator, BestOf) or generator.result is None:
        return trace.closing_line(stats, config)
    result = generator.result
    line = trace.closing_line(stats, config, result.n)
    return f"{line} · {_best(result)}; choosing adds at most {result.kl_bound:.2f} nats of KL"


def short_line(generator: Generator) -> str:
    """The line under an answer in a chat, where /stats tells the rest."""
    from ..generation.best_of import BestOf

    stats = generator.last_stats
    parts = [f"{stats.tokens} tokens", f"{stats.tokens_per_second:.0f} tokens/s"]
    if stats.junctions:
        parts.insert(1, f"{stats.junctions} steered, {stats.flips} turned")
    if isinstance(generator, BestOf) and generator.result is not None:
        parts.append(_best(generator.result))
    return " · ".join(parts)


def _best(result: BestOfResult) -> str:
    scores = result.scores
    return f"best of {result.n} by {result.by}: {max(scores):.3g}, mean {sum(scores) / result.n:.3g}"


def facts(generator: Generator, config: SiaConfig) -> dict[str, Any]:
    """What a JSON result says beyond a plain text's."""
    from ..generation.best_of import BestOf
    from ..generation.nudge import Nudged
    from ..views import trace

    stats = generator.last_stats
    if isinstance(generator, Nudged):
        small, words = generator.small.path.name, stats.junctions
        return {
            "tokens": generator.tokens,
            "nudge": {"model": small, "threshold": generator.threshold, "words": words},
        }
    result = generator.result if isinstance(generator, BestOf) else None
    out: dict[str, Any] = {}
    if budgets := trace.kl_budgets(stats, config, 1 if result is None else result.n):
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
            "kl_steering": result.kl_steering,
            "kl_choosing_bound": result.kl_bound,
        }
    return out
