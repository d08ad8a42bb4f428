"""A click group whose commands are imported when called, and whose errors end as one line and exit code 2."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn

import click

from .. import errors
from ..errors import CONTROLS, SiaError


def _remember_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["sia.debug"] = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )


def _give_up(said: str) -> NoReturn:
    sys.stdout.flush()
    os.write(2, f"Error: {said}\n".encode("utf-8", "replace"))
    os._exit(2)


def _hear_interrupts() -> None:
    """Lets SIGINT end a command that a script started in the background: shells start those with it ignored."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class LazyCommands(click.Group):
    """`lazy` maps a command to its line on the help page, which is made without importing any of them.

    The command `some-name` is the attribute `some_name` of the module `some_name` in `package`. `on_interrupt` is
    said when Ctrl-C ends a command.
    """

    def __init__(self, *args: Any, package: str, lazy: Mapping[str, str], on_interrupt: str = "", **kwargs: Any):
        super().__init__(*args, context_settings={"help_option_names": ["-h", "--help"]}, **kwargs)
        self.package, self.lazy, self.on_interrupt = package, lazy, on_interrupt
        self.params.append(_debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f".{name}", self.package), name)
        if not any("--debug" in param.opts for param in command.params):
            command.params.append(_debug_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lazy.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # A terminal or pipe that is not UTF-8 gets what it can show.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # closed by whoever started this
                setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        errors.give_up = None if ctx.meta.get("sia.debug") else _give_up

        _hear_interrupts()
        # What a start makes stays; garbage would be looked for among it seventy times.
        gc.set_threshold(20_000)
        try:
            return super().invoke(ctx)
        except SiaError as error:
            if ctx.meta.get("sia.debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            from ..files import FULL

            full = error.errno in FULL
            # A reader that went away (EPIPE) is click's to end quietly.
            if ctx.meta.get("sia.debug") or error.errno == errno.EPIPE or not (full or error.filename):
                raise
            advice = "free space and run again" if full else "check the path and try again"
            name = str(error.filename or "while writing").translate(CONTROLS)
            click.echo(f"Error: {name}: {error.strerror}; {advice}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(f"\n{self.on_interrupt}" if self.on_interrupt else "", err=True)
            ctx.exit(130)
