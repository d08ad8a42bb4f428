"""What the commands over many prompts share: prompts, context, the command as it was given, progress."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..config import Setup
from ..errors import ConfigError, ContextFullError
from ..progress import Line, left
from ..shipped import MODELS, SMOLLM2, find_file
from .resolve import known_from, model_paths, trained_context

if TYPE_CHECKING:
    from ..evaluation.run import Progress
    from ..generation.sia import SIA
    from ..prompts import PromptItem
    from ..records import Request

SETUP = Setup(slots=8)
WRITING = Setup(n_ctx=1024, slots=4)  # where the base writes to learn from it
SIZED = "what the longest prompt needs, at most what the model was trained on"


def read_items(options: Mapping[str, Any], base: Path, what: str = "prompts") -> list[PromptItem]:
    """The prompts of a file, or those for this base that come with the program. Raises ConfigError, DataError."""
    from ..prompts import read_prompt_items

    return read_prompt_items(options["prompts"] or usual_prompts(options, base, what))[: options["limit"]]


def shipped_prompts(name: str, instead: str = "give a file of prompts with --prompts") -> Path:
    """A file of prompts that comes with the program. Raises ConfigError where it did not; instead: what to do."""
    if (found := find_file(name)) is None:
        raise ConfigError(f"{name} does not exist here; {instead}")
    return found


def usual_prompts(options: Mapping[str, Any], base: Path, what: str = "training") -> Path:
    """Those of a model known by name or file; for any other that holds chats, questions and tasks of many kinds. what:
    `prompts` or `training` of KnownModel."""
    model = known_from(options) or next((known for known in MODELS.values() if known.file == base.name), None)
    if model is not None:
        return shipped_prompts(getattr(model, what))
    from ..llama.gguf import GgufMetadata

    with GgufMetadata(base) as meta:
        if not options.get("chat_template") and not meta.get("tokenizer.chat_template"):
            raise ConfigError(
                f"no prompts were given, and {base.name} has no chat template, so it is not for questions; give a file "
                "of beginnings that it can go on with, --prompts FILE, one a line"
            )
    return shipped_prompts(getattr(SMOLLM2, what))


def sized_context(options: Mapping[str, Any], items: list[PromptItem], max_tokens: int) -> int:
    """Tokens of context that any of the prompts needs at most: --ctx, or a bound by the longest."""
    if options.get("n_ctx") is not None:
        return int(options["n_ctx"])
    from ..llama.chat import TEMPLATE_ROOM

    # A byte-level tokenizer makes no more tokens than bytes.
    longest = max(len(item.text.encode()) for item in items)
    return min(trained_context(model_paths(options)[0]), longest + TEMPLATE_ROOM + max_tokens)


def fitting(
    options: Mapping[str, Any],
    items: list[PromptItem],
    request: Request,
    load: Callable[[], AbstractContextManager[SIA]],
) -> list[PromptItem]:
    """The prompts that the context holds; how many it does not is said. Nothing is loaded where all are short enough.
    Raises ContextFullError where none fits."""
    from ..llama.chat import TEMPLATE_ROOM
    from .terminal import notice

    ctx = sized_context(options, items, request.max_tokens)
    if max(len(item.text.encode()) for item in items) + TEMPLATE_ROOM < ctx:
        return items
    fit, too_long = [], []
    with load() as sia:
        for item in items:
            try:
                sia.prompt_of(replace(request, prompt=item.text))
                fit.append(item)
            except ContextFullError as error:
                too_long.append(error)
    if not fit:
        raise too_long[0]
    if too_long:
        notice(f"{len(too_long)} of {len(items)} prompts are left out: they do not fit the context of {ctx} tokens")
    return fit


def command_line(ctx: click.Context) -> str:
    """The command as it was given, for a reader to repeat."""
    words = ["sia-local", ctx.command.name or ""]
    for param in ctx.command.params:
        name = param.name or ""
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name not in ctx.params:
            continue  # --debug changes no result
        option, value = max(param.opts, key=len), ctx.params[name]
        if isinstance(param, click.Option) and param.is_flag:
            words.append(option)
        elif isinstance(param, click.Option) and param.multiple:
            words += [word for one in value for word in (option, str(one))]
        elif param.nargs > 1:
            words += [option, *map(str, value)]
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [option, ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return shlex.join(words)


class ProgressLine(Line):
    """Where an evaluation stands."""

    def tell(self, p: Progress) -> None:
        text = f"[{p.arm_index}/{p.arms}] {p.arm} · {p.done}/{p.texts} texts"
        self.show(f"{text} · {p.tokens_per_second:.0f} tokens/s · {left(p.seconds_left)}", p.done == p.texts)
