"""`sia-local bench`: what steering costs on this machine, against plain generation in the same run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from .options import numbers
from .resolve import model_paths

FORMATS = ("md", "csv", "json", "jsonl")
PLACEMENTS = ("separate", "lean", "quarter", "quarter-lean", "adapter", "head", "q-head")


@click.command()
@click.option("-m", "--model", type=click.Path(), help="Base model, GGUF.  [default: the shipped one]")
@click.option("-v", "--value", "values", type=click.Path(), multiple=True, help="Value model, GGUF; repeatable.")
@click.option("--synthetic", metavar="SHAPE", help="Random weights: qwen3-0.6b, qwen3-1.7b, tiny, or SHAPE/4.")
@click.option("--synthetic-dir", type=click.Path(), help="Where those files are kept.  [default: the user's cache]")
@click.option(
    "--placements",
    default=",".join(PLACEMENTS),
    show_default=True,
    help="Value models written with --synthetic; `none` for none.",
)
@click.option("-p", "prompts", default="0", callback=numbers(int), help="Prompt tokens to read.  [default: 0, off]")
@click.option("-n", "tokens", default="64", callback=numbers(int), show_default=True, help="Tokens to generate.")
@click.option("-d", "depths", default="64", callback=numbers(int), show_default=True, help="Tokens read before them.")
@click.option("-r", "repetitions", default=5, show_default=True, help="Repetitions, after one warm-up.")
@click.option("-o", "form", default="md", show_default=True, metavar="|".join(FORMATS), help="Output format.")
@click.option("--rate", "rates", default="0.2", callback=numbers(float), show_default=True, help="Steered shares.")
@click.option("-s", "--sequences", default="1", callback=numbers(int), show_default=True, help="Texts at once.")
@click.option("-k", "--candidates", "k", default="", callback=numbers(int),
              help="Candidates at a junction.  [default: 10; 4 for a head]")  # fmt: skip
@click.option("--min-share", default=0.0, help="Score only candidates this likely, relative to the best.")
@click.option("--row-group", default=1, help="Fill scored candidates up to a multiple of this.")
@click.option("--dense/--no-dense", default=True, show_default=True, help="Also measure steering at every token.")
@click.option("--startup", default=3, show_default=True, help="Fresh processes for start-up and memory, 0 for none.")
@click.option("--traces", type=click.Path(path_type=Path), help="Folder for the calls of every arm (examples/floor.c).")
@click.option("-t", "--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: one a core]")
@click.option("-ngl", "--n-gpu-layers", type=int, default=0, help="Layers on the GPU, -1 for all.  [default: 0]")
@click.option("--kv-type", default="f16", show_default=True, help="KV cache format: f32, f16, q8_0, …")
@click.option("--flash-attention", default="auto", show_default=True, metavar="auto|on|off", help="As in generate.")
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

    from ..bench.cold import measure_cold
    from ..bench.report import render, setting
    from ..bench.run import Bench, BenchOptions

    asked = BenchOptions(
        model=model,
        values=tuple(values),
        type_k=options["kv_type"],
        type_v=options["kv_type"],
        **{
            name: options[name]
            for name in (
                "prompts",
                "tokens",
                "depths",
                "rates",
                "sequences",
                "k",
                "min_share",
                "row_group",
                "repetitions",
                "dense",
            )
        },
        n_threads=options["threads"],
        n_gpu_layers=options["n_gpu_layers"],
        flash_attention=options["flash_attention"],
        traces=options["traces"],
    )
    cold = []
    if options["startup"] > 0:
        _say("start-up and memory, in fresh processes")
        cold = measure_cold(asked, options["startup"])
    with Bench(asked, _say) as made:
        made.build()
        rows, about = made.measure(), setting(asked, made.model)
    click.echo(render(options["form"], about, rows, cold, made.failed))
    for sentence in made.failed:
        _say(f"not measured: {sentence}")


def _files(options: dict[str, Any]) -> tuple[Path, list[Path]]:
    """Base and value files: given, or synthetic ones, written where they are missing."""
    values = [Path(v) for v in options["values"]]
    if not options["synthetic"]:
        base, shipped = model_paths({"model": options["model"], "value": [str(value) for value in values]})
        return base, values or [Path(value) for value in shipped]
    if options["model"] is not None:
        raise ConfigError("-m and --synthetic were given; give one of them")

    from ..bench.synthetic import cache_dir, ensure

    wanted = [] if options["placements"] == "none" else [p for p in options["placements"].split(",") if p]
    if unknown := [p for p in wanted if p not in PLACEMENTS]:
        raise ConfigError(f"unknown placement {unknown[0]!r}; expected some of {', '.join(PLACEMENTS)}")
    shape = options["synthetic"]
    folder = Path(options["synthetic_dir"]) if options["synthetic_dir"] else cache_dir()
    for name in wanted:
        size = f"{shape}/4" if name.startswith("quarter") else shape
        kind = {"separate": "value", "quarter": "value", "quarter-lean": "lean", "q-head": "qhead"}.get(name, name)
        values.append(ensure(size, kind, folder, n_threads=options["threads"] or 2, say=_say))
    return ensure(shape, "base", folder, n_threads=options["threads"] or 2, say=_say), values


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)
    sys.stderr.flush()
