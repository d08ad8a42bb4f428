"""`sia-local average`: several Q-heads of one base as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ..learning.collect import CollectConfig
from ..progress import Line
from .from_dataclass import fill, options_for
from .many import WRITING, usual_prompts
from .options import base_option, setup_options
from .resolve import model_paths, setup_from

_USUAL = CollectConfig(texts=16)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE[:WEIGHT]…")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The average, GGUF.")
@base_option
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="One prompt a line, or JSONL.  [default: those of the model]"
)
@options_for(
    _USUAL,
    names=("texts", "max_tokens", "k", "threshold", "seed", "raw"),
    overrides={
        "texts": {"help": "Texts that the base writes; every other one is steered."},
        "k": {"help": "Candidates at a junction."},
        "threshold": {"help": "A junction begins at this entropy, nats."},
    },
)
@setup_options(WRITING, ("shortlist", "overlap_prompts"), {"n_ctx": {"show": f"{WRITING.n_ctx}"}})
def average(**options: Any) -> None:
    """Make one steering file of several FILEs that cost no decode (Q-heads), for a base model.

    Each counts in its own spreads, times its weight (1 where none is given): `sia-local average a.gguf:2 b.gguf -o
    c.gguf` makes a file that says what `-v a.gguf:2 -v b.gguf` weighs together. Nothing is approximated. The spread of
    the sum is measured: the base writes some texts for it.
    """
    from ..learning.average import average_files
    from ..prompts import read_prompts
    from ..values.sources import ValuePath, parse_specs

    base, paths = model_paths({**options, "value": options["files"]})
    if not paths:
        raise ConfigError("no Q-head was named; name two or more of this base, as in a.gguf:2 b.gguf")
    values = [spec for spec in parse_specs(paths) if isinstance(spec, ValuePath)]
    prompts = read_prompts(options["prompts"] or usual_prompts(options, base))
    setup, line = setup_from(options, base, usual=WRITING), Line(every=10.0)
    config = fill(_USUAL, options)
    file = average_files(
        base, values, options["out"], prompts, config, setup, lambda p: line.show(str(p), p.texts == p.of)
    )
    size = file.path.stat().st_size / 1e6
    click.echo(f"{file.path}: {file.meta.average}, {size:.1f} MB, spread {file.spread:.4g}")
