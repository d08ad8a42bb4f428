"""`sia-local chat`: the terminal around a chat session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import click

from ..config import ChatSettings, SamplingConfig, Setup, SiaConfig
from ..errors import ConfigError, IncompatibleError, SiaError
from ..files import at_home
from ..records import Request
from .from_dataclass import given, option_name, options_for
from .options import model_options, preset_options
from .resolve import GUIDES, config_from, drawn_seed, known_from, request_from, value_file
from .ways import notices, way_options, writer_from

if TYPE_CHECKING:
    from ..chat.commands import Commands
    from ..chat.remote import Remote
    from ..chat.session import Notice, Session
    from ..generation.writing import Writer
    from ..records import Step
    from ..shipped import KnownModel
    from .terminal import Style


@click.command()
@click.option("--system", help="System prompt.")
@click.option("--url", metavar="URL", help="Talk to this OpenAI-compatible server instead, such as `sia-local serve`.")
@click.option("--api-key", envvar="SIA_API_KEY", help="Key for the server at --url.")
@click.option("--show-reasoning", is_flag=True, help="Show what the model thinks to itself before it answers.")
@click.option("--load", "saved", type=click.Path(), help="Continue a chat written by /save.")
@model_options(without=("slots",))
@preset_options
@options_for(Request, overrides={"seed": {"show": "drawn"}}, without=("raw",))
@way_options
def chat(**options: Any) -> None:
    """Chat with a steered model.

    Steered words are marked as they appear; /why says what steering did, /help lists the commands. Messages can
    be piped in, one a line.
    """
    sia, request = _writer(options)
    config = request.config
    from ..chat.commands import COMMANDS, Commands
    from ..chat.session import Session
    from ..views.trace import token_text
    from .terminal import Style, notice, writer

    with sia:
        if sia.model.chat_template is None:
            raise IncompatibleError(
                f"{sia.model.path.name}: has no chat template, so it cannot hold a chat; give one with "
                "--chat-template, or use `sia-local generate --raw`"
            )
        steered = sia.value is not None
        session = Session(sia, request, options["system"], steering=steered and config.gate != "off")
        base, value = sia.model.path.name, sia.value.name if sia.value is not None else None
        style = Style.of_terminal()
        about = {"model": base, "value": value}
        width = _columns if style.on else lambda: None
        commands = Commands(session, token_text(sia.model), about, width, _as_learn_loads(options), _finder(options))
        if options["saved"]:
            session.load(options["saved"], _own(options))
        notice(f"{base}, steered by {value}" if steered else f"{base}, unsteered")
        lacks = "the server has none" if options["url"] else "give one with -v value.gguf to steer"
        notice(commands.settings() if steered else f"no value model: {lacks}")
        for sentence in notices(sia, config):
            notice(sentence)
        if style.on:
            notice(_welcome(style, known_from(options), steered, config.gate))
        try:
            terminal = Terminal(session, writer(), style, options["show_reasoning"])
            _talk(session, commands, terminal, [*COMMANDS, *_uses(options)])
        finally:
            if said := commands.close():
                notice(said)


def _own(options: Mapping[str, Any]) -> set[str]:
    """What was asked for beside a saved chat, whose settings give way; what names whole settings asks for all."""
    own = {"system"} if options["system"] else set()
    if any(options[name] for name in ("preset", "paper", "profile")):
        own |= {f.name for f in fields(SiaConfig)}
    return own | set(given(SiaConfig, dict(options)))


def _as_learn_loads(options: dict[str, Any]) -> list[str]:
    """The options of `learn` that load the base of this chat."""
    model = known_from(options)
    words = ["--model", model.name if model is not None else str(options["model"])] if not options["url"] else []
    for name in ("chat_template", "template_arg"):
        given = options.get(name) or ()
        for value in (given,) if isinstance(given, str) else given:
            words += [f"--{name.replace('_', '-')}", value]
    return words


def _finder(options: Mapping[str, Any]) -> Callable[[str], str | PathLike[str]]:
    """What /use takes is what -v takes."""
    model = known_from(options) if not options["url"] else None
    return lambda text: value_file(at_home(text), model)


def _uses(options: Mapping[str, Any]) -> list[str]:
    """/use with each value file of the model's own that is there."""
    model = known_from(options) if not options["url"] else None
    return [f"/use {value.name}" for value in model.values if value.path.is_file()] if model is not None else []


def _writer(options: dict[str, Any]) -> tuple[Writer, Request]:
    """What answers: the models that options name, or a server, whose own settings are then the defaults."""
    usual = Request("", seed=drawn_seed())
    if options["url"] is None:
        request = request_from(options, config_from(options), usual)
        return writer_from(options, request), request
    if options.get("model") or options.get("value"):
        raise ConfigError("--url was given with models; the server has its own, leave -m and -v out")
    if options.get("chat_template") or options.get("reasoning"):
        raise ConfigError("--url was given with --chat-template or --reasoning; the server has its own, leave them out")
    from ..chat.remote import Remote

    told = ChatSettings(template_arg=options["template_arg"]).template_args
    steering = given(SiaConfig, dict(options))
    sampling = steering.pop("sampling", {})
    remote = Remote(options["url"], options["api_key"], told, [*steering, *sampling])
    if left := _unsent(options, remote):
        from .terminal import notice

        notice(f"not sent, as the server takes none or has its own: {', '.join(left)}")
    start = {f.name: getattr(remote.config, f.name) for f in fields(SiaConfig)}
    start["sampling"] = asdict(remote.config.sampling)
    return remote, request_from(options, config_from(options, start), usual)


def _unsent(options: Mapping[str, Any], remote: Remote) -> list[str]:
    """Options that were given and change nothing at this server."""
    kinds = {name: SamplingConfig for name in (f.name for f in fields(SamplingConfig))}
    left = [option_name(kinds.get(name, SiaConfig), name) for name in remote.unsent]
    left += [option_name(Setup, name) for name in given(Setup, dict(options))]
    left += ["--special"] * bool(options.get("special"))
    others = ["kv_type", *GUIDES, "best_of", "best_of_by", "reward", "profile"]
    others += [] if remote.steers else ["preset", "paper"]
    return left + ["--" + name.replace("_", "-") for name in others if options.get(name)]


_WHERE_UNSURE = "Where the base is unsure of its next word"
_WHERE = {"gain": "Where it would change the next word most", "dense": "At every token"}


def _welcome(style: Style, model: KnownModel | None, steered: bool, gate: str) -> str:
    """What a person who never saw a steered model needs to begin, within 80 columns."""
    lines = [""]
    if steered:
        lines += [
            f"{_WHERE.get(gate, _WHERE_UNSURE)}, the value model makes the better",
            "candidates likelier. Such words are marked:",
            style.legend,
            "",
            "/why explains the last answer; /sia off and /retry show one without steering",
        ]
    lines.append("/help lists all commands, Ctrl-C stops an answer, Ctrl-D leaves")
    if model is not None:
        lines += ["", f"{model.can} Try: {model.example}"]
    return "\n".join(lines) + "\n"


def _columns() -> int:
    return shutil.get_terminal_size().columns


class Terminal:
    """Prints answers as they come; Ctrl-C ends one between two tokens, a second Ctrl-C at once."""

    def __init__(self, session: Session, write: Callable[[str], None], style: Style, shows_reasoning: bool = False):
        self.session, self.write, self.style, self.shows_reasoning = session, write, style, shows_reasoning

    def answer(self, stream: Iterator[Step | Notice]) -> None:
        from ..chat.session import Notice
        from ..reasoning import REASONING
        from ..views.trace import short_line
        from .terminal import Thoughts, Wrapped, interruptible, notice, visible

        wrapped, thoughts = Wrapped(self.write, _columns), Thoughts(self.write, self.style, self.shows_reasoning)
        wrote, stopped = "", False
        try:
            with interruptible(self.session.halt) as interrupted:
                for event in stream:
                    if isinstance(event, Notice):
                        thoughts.end()
                        wrapped.flush()
                        wrote = self._end_line(wrote)
                        notice(f"[{event.text}]")
                        continue
                    if event.part == REASONING or event.reasoning:
                        thoughts.put(event.reasoning)
                    if event.text:
                        thoughts.end()
                    if self.style.on:
                        mark = partial(self.style.token, steered=event.steered, turned=event.flipped)
                        wrapped.put(visible(event.text), mark)
                    else:
                        self.write(visible(event.text))
                    wrote += event.text
                stopped = interrupted()
        except KeyboardInterrupt:
            stopped = True
        finally:
            stream.close()  # type: ignore[attr-defined]
            thoughts.end()
            wrapped.flush()
            self._end_line(wrote)
        if stopped:
            notice("[stopped]")
        if self.style.on and (written := self.session.written) is not None:
            cut = " · cut there, -n allows more" if written.finish == "length" else ""
            self.write(self.style.dim(short_line(written) + cut) + "\n\n")

    def _end_line(self, wrote: str) -> str:
        if wrote and not wrote.endswith("\n"):
            self.write("\n")
        return ""


def _talk(session: Session, commands: Commands, terminal: Terminal, completed: Sequence[str]) -> None:
    from .entry import entries
    from .terminal import notice, visible

    for entry in entries(completed):
        try:
            if not entry.command:
                terminal.answer(session.ask(entry.text))
            else:
                reply = commands.run(entry.text)
                if reply.text:
                    terminal.write(visible(reply.text) + "\n")
                if reply.action == "quit":
                    return
                if reply.action == "retry":
                    terminal.answer(session.retry())
        except SiaError as error:
            notice(f"Error: {error}")
        except KeyboardInterrupt:
            notice("[stopped]")
        if news := commands.news():
            notice(f"[{news}]")
