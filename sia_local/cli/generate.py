"""`sia-local generate`: one prompt, one text."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import click

from ..errors import ConfigError
from ..files import finite, read_text
from ..records import Request
from .from_dataclass import options_for
from .options import model_options, preset_options
from .resolve import config_from, drawn_seed, request_from
from .ways import notices, nudge_options, way_options, writer_from


@click.command()
@click.option("-p", "--prompt", help="The prompt.  [default: standard input]")
@click.option("-f", "--file", type=click.Path(), help="Read the prompt from a file; - is standard input.")
@click.option("--system", help="System prompt, for the chat template.")
@model_options(without=("slots",))
@preset_options
@options_for(Request, overrides={"seed": {"show": "drawn"}})
@way_options
@nudge_options
@click.option("--trace", "trace_file", metavar="FILE.jsonl", help="Write every token with its candidates.")
@click.option("--report", "report_file", metavar="FILE.html", help="Write the text with its junctions marked.")
@click.option(
    "--show-reasoning", is_flag=True, help="Show what the model thinks to itself before it answers, on standard error."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def generate(**options: Any) -> None:
    """Generate text from a prompt, steered at its junctions: the tokens where the base is unsure of the next one.

    Such as: sia-local generate -p "Tell me a story about a dog." --seed 7

    Without -m a model known by name is used, with the settings that were calibrated for it. The text goes to
    standard output, everything else to standard error.
    """
    config = config_from(options)
    request = request_from(options, config, Request("", seed=drawn_seed()))
    prompt = _prompt(options)
    if request.raw and options["system"]:
        raise ConfigError("--raw and --system were given; a system prompt needs the chat template, drop --raw")
    wants_trace = bool(options["trace_file"] or options["report_file"])

    from .. import __version__
    from ..files import atomic_write
    from ..llama.library import versions
    from ..reasoning import REASONING
    from ..views import trace
    from .terminal import Style, Thoughts, interruptible, notice, visible, writer

    reads = (options["system"] or "") + prompt
    with ExitStack() as files, writer_from(options, request, reads) as sia:
        # Opened before the work, so that a path that cannot be written costs none; whole or absent in the end.
        trace_file, report_file = (
            files.enter_context(atomic_write(options[name])) if options[name] else None
            for name in ("trace_file", "report_file")
        )
        if sia.value is None and config.gate != "off" and not options["nudge"]:
            notice("no value model: the text is not steered; give one with -v value.gguf")
        for said in notices(sia, config):
            notice(said)
        messages = [{"role": "system", "content": options["system"]}] if options["system"] else []
        asked = prompt if request.raw or not messages else [*messages, {"role": "user", "content": prompt}]
        label, write = trace.token_text(sia.model), writer()
        made = sia.write(replace(request, prompt=asked, trace=wants_trace))
        steps = []
        thoughts = Thoughts(partial(click.echo, err=True, nl=False), Style(False), options["show_reasoning"])
        with interruptible(made.stop) as interrupted:
            try:
                for step in made:
                    if wants_trace:
                        steps.append(step)
                    if step.part == REASONING or step.reasoning:
                        thoughts.put(step.reasoning)
                    if step.text:
                        thoughts.end()
                    if not options["as_json"]:
                        write(visible(step.text))
            finally:
                thoughts.end()
                if not options["as_json"] and made.text and not made.text.endswith("\n"):
                    write("\n")
        models = {
            "model": sia.model.path.name,
            "value": sia.value.name if sia.value is not None else None,
        }
        records = [trace.record(step, label) for step in steps]
        if trace_file:
            trace.write(trace_file, records)
        if report_file:
            from ..views.answer import answer_report

            spent = sum(step.kl_steering for step in steps)
            meta = {
                "prompt": prompt,
                **models,
                **trace.report_facts(config),
                "seed": request.seed,
                "kl_steering": spent,
            }
            report_file.write(answer_report(records, meta))
        line, finish = trace.closing_line(made, config), made.finish
        about = {"sia-local": __version__, **versions()}
        if options["as_json"]:
            import json

            budgets = trace.kl_budgets(made.stats, config, made.texts)
            whole = {
                "text": made.text,
                **({"reasoning": made.reasoning} if made.reasoning else {}),
                "finish": finish or "interrupted",
                "tokens": made.tokens,
                "seed": request.seed,
                **models,
                "config": trace.config_dict(config),
                "stats": trace.stats_dict(made.stats),
                **({"kl_budget": budgets} if budgets and not options["nudge"] else {}),
                **made.facts,
                "versions": about,
            }
            click.echo(json.dumps(finite(whole), ensure_ascii=False, allow_nan=False))
    if made.reasoning and not made.text:
        notice("the text ended while the model was still reasoning; -n allows more, --show-reasoning shows it")
    if finish == "context":
        notice("the text ends here because the context is full; raise --ctx for more")
    notice(f"{line} · seed {request.seed}")
    if interrupted():
        raise SystemExit(130)


def _prompt(options: dict[str, Any]) -> str:
    given, file = options["prompt"], options["file"]
    if given is not None and file is not None:
        raise ConfigError("both --prompt and --file were given; give one of them")
    if given is not None:
        return str(given)
    if file is not None and file != "-":
        text = read_text(file, "a text file with the prompt")
    elif file is None and sys.stdin.isatty():
        raise ConfigError("no prompt was given; give one with -p, a file with -f, or pipe it in")
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError("standard input is not UTF-8 text; expected the prompt") from None
    # Files and pipes end in a line break that belongs to them, not to the prompt.
    return text.removesuffix("\n").removesuffix("\r")
