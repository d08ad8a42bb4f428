"""`sia-local bench`: what steering costs on this machine, against plain generation in the same run."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..bench.settings import BenchOptions
from ..config import ChatSettings, Setup
from ..errors import ConfigError
from .from_dataclass import build, options_for
from .options import setup_options
from .resolve import loading_from, model_paths

FORMATS = ("md", "csv", "json", "jsonl")
# The names that llama-bench has for them.
SHORT = {"n_threads": {"option": ("-t", "--threads")}, "n_gpu_layers": {"option": ("-ngl", "--n-gpu-layers")}}
# Prompts here are random tokens.
CHAT = tuple(field.name for field in fields(ChatSettings))
PLACEMENTS = ("separate", "lean", "quarter", "quarter-lean", "adapter", "head", "q-head")


@click.command()
@click.option("-m", "--model", type=click.Path(), help="Base model: a GGUF, a name or hf:….  [default: as in chat]")
@click.option(
    "-v", "--value", "values", type=click.Path(), multiple=True, help="Value model: a GGUF, a name or hf:…; repeatable."
)
@click.option("--synthetic", metavar="SHAPE", help="Random weights: qwen3-0.6b, qwen3-1.7b, tiny, or SHAPE/4.")
@click.option("--synthetic-dir", type=click.Path(), help="Where those files are kept.  [default: the user's cache]")
@click.option(
    "--placements",
    default=",".join(PLACEMENTS),
    show_default=True,
    help="Value models written with --synthetic; `none` for none.",
)
@options_for(BenchOptions, without=("setup",))
@setup_options(without=("n_ctx", "slots", "overlap_prompts", *CHAT), overrides=SHORT)
@click.option("-o", "form", default="md", show_default=True, metavar="|".join(FORMATS), help="Output format.")
@click.option("--startup", default=3, show_default=True, help="Fresh processes for start-up and memory, 0 for none.")
def bench(**options: Any) -> None:
    """Measure speed and memory, steered and unsteered.

    Every way to generate runs once in every repetition, so that a noisy machine spoils all alike; ratios are
    taken within a repetition. `floor` is the share of the time that llama.cpp alone needs. Options take comma
    lists, as in llama-bench. With --synthetic, models of random weights are written once: their cost is that of
    the real shape, their text is noise.
    """
    if options["form"] not in FORMATS:
        raise ConfigError(f"-o is {options['form']!r}; expected one of {', '.join(FORMATS)}")
    model, values = _files(options)

    from ..bench.cold import ColdRow, measure_cold
    from ..bench.report import render, setting
    from ..bench.run import Bench

    setup = loading_from(options, Setup())
    asked = build(BenchOptions, dict(options), model=model, values=tuple(values), setup=setup)
    cold, failed = list[ColdRow](), list[str]()
    if options["startup"] > 0:
        _say("start-up and memory, in fresh processes")
        cold, failed = measure_cold(asked, options["startup"])
    with Bench(asked, _say) as made:
        made.build()
        rows, about = made.measure(), setting(asked, made.model)
    failed += made.failed
    click.echo(render(options["form"], about, rows, cold, failed))
    for sentence in failed:
        _say(f"not measured: {sentence}")


def _files(options: dict[str, Any]) -> tuple[Path, list[Path]]:
    """Base and value files: given, or synthetic ones, written where they are missing."""
    if not options["synthetic"]:
        from ..values.sources import ValuePath, parse_specs

        base, given = model_paths({"model": options["model"], "value": options["values"]})
        return base, [Path(spec.path) for spec in parse_specs(given) if isinstance(spec, ValuePath)]
    if options["model"] is not None:
        raise ConfigError("-m and --synthetic were given; give one of them")

    from ..bench.synthetic import cache_dir, ensure

    values = [Path(value) for value in options["values"]]
    wanted = [] if options["placements"] == "none" else [p for p in options["placements"].split(",") if p]
    if unknown := [p for p in wanted if p not in PLACEMENTS]:
        raise ConfigError(f"unknown placement {unknown[0]!r}; expected some of {', '.join(PLACEMENTS)}")
    shape = options["synthetic"]
    folder = Path(options["synthetic_dir"]) if options["synthetic_dir"] else cache_dir()
    for name in wanted:
        size = f"{shape}/4" if name.startswith("quarter") else shape
        kind = {"separate": "value", "quarter": "value", "quarter-lean": "lean", "q-head": "qhead"}.get(name, name)
        values.append(ensure(size, kind, folder, n_threads=options["n_threads"] or 2, say=_say))
    return ensure(shape, "base", folder, n_threads=options["n_threads"] or 2, say=_say), values


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)
    sys.stderr.flush()
