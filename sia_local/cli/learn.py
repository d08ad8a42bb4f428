"""`sia-local learn`: a steering file from two sentences, or from a value model, for any base."""

from __future__ import annotations

import _thread
import os
import threading
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import ConfigError
from ..learning.collect import CollectConfig
from ..learning.fit import FitConfig
from ..progress import Line
from .from_dataclass import build, options_for
from .many import WRITING, usual_prompts
from .options import model_options
from .resolve import model_paths, setup_from

if TYPE_CHECKING:
    from ..learning.collect import Progress
    from ..learning.fit import Epoch
    from ..values.guides import Guides


# What --targets leaves without a use: how texts are written and asked about, and what follows one another in them.
COLLECTING = {"prompts", "junctions", "taken", *(field.name for field in fields(CollectConfig))}


@click.command()
@click.argument("plus", required=False)
@click.option("--minus", metavar="SENTENCE", help="And away from this instruction.  [default: none at all]")
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="One prompt a line, or JSONL.  [default: a set of its own]"
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The steering file, GGUF.")
@click.option(
    "--targets", type=click.Path(path_type=Path), help="Learn from the branches in this file, without a teacher."
)
@click.option("--junctions", type=click.Path(path_type=Path), help="Folder of what was collected.  [default: OUT.d]")
@click.option("--behind", is_flag=True, hidden=True, help="Give way to other programs; end with standard input.")
@options_for(CollectConfig)
@options_for(FitConfig)
@model_options(WRITING, ctx=f"{WRITING.n_ctx}")
def learn(**options: Any) -> None:
    """Learn a steering file that costs no decode (a Q-head) for a base model.

    PLUS is an instruction: `sia-local learn "Answer in very simple words." --minus "Answer in academic language."`
    steers towards the one and away from the other, as the base itself understands them; no training data, no PyTorch.
    With -v VALUE.gguf instead, a value model is the teacher; with --targets FILE no one is, but what candidates earned
    when `sia-convert branch` tried them.

    Run again after an interruption: it goes on with the texts that are missing.
    """
    from ..learning.distill import distill, from_targets, summary
    from ..prompts import read_prompts

    if options["behind"]:
        _go_behind()
    base, values = model_paths({**options, "value": options["value"] or ("none",)})
    teacher: Any = _guides(base, options) if options["plus"] else values
    given = {"a sentence": options["plus"] or options["minus"], "-v": values, "--targets": options["targets"]}
    if len(several := [name for name, what in given.items() if what]) > 1:
        raise ConfigError(f"{' and '.join(several)} were given; give one teacher")
    if options["targets"]:
        _check_unused(click.get_current_context())
    out, setup, fitting = options["out"], setup_from(options, base, usual=WRITING), build(FitConfig, dict(options))
    say = _Say()
    if options["targets"]:
        made = from_targets(base, options["targets"], out, fitting, setup, say.texts, say.epoch)
        click.echo(summary(made))
        return
    if not teacher:
        raise ConfigError('no teacher was given; give an instruction, as in "Answer in very simple words.", or -v FILE')
    prompts, folder = options["prompts"] or usual_prompts(options, base), options["junctions"] or Path(f"{out}.d")
    made = distill(
        base,
        teacher if options["plus"] else (values[0] if len(values) == 1 else values),
        read_prompts(prompts),
        out,
        folder,
        build(CollectConfig, dict(options)),
        fitting,
        setup,
        say.texts,
        say.epoch,
    )
    click.echo(summary(made))


def _check_unused(ctx: click.Context) -> None:
    given = [
        max(param.opts, key=len)
        for param in ctx.command.params
        if (name := param.name or "") in COLLECTING and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            f"{', '.join(given)} and --targets were given; the texts of --targets are written and tried already, leave "
            f"out {', '.join(given)}"
        )


def _guides(base: Path, options: dict[str, Any]) -> Guides:
    from ..values.guides import Guides, instruction

    minus = instruction(options["minus"]) if options["minus"] else None
    return Guides(base, base, name="words", plus_prompt=instruction(options["plus"]), minus_prompt=minus)


def _go_behind() -> None:
    """As the process of a chat: everything else comes first, and where standard input ends without the word `keep`, for
    whatever reason, that is a Ctrl-C."""
    if os.name == "posix":
        os.nice(15)
        os.setpgid(0, 0)  # Ctrl-C in the chat is none of its business

    def wait() -> None:
        # Not sys.stdin, whose lock this thread would hold when the program ends.
        if not os.read(0, 16):
            _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


class _Say:
    """How far it is, on standard error."""

    def __init__(self) -> None:
        self._line = Line(every=10.0)

    def texts(self, p: Progress) -> None:
        self._line.show(str(p), p.texts == p.of)

    def epoch(self, e: Epoch) -> None:
        self._line.show(f"pass {e.epoch}: loss {e.loss:.4f}, held out {e.held_out:.4f}", True)
