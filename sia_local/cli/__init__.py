"""The `sia-local` command. One file a subcommand, imported when it is called; errors end here as one line."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any

import click

from ..errors import SiaError

# The help page is made from this alone, so that it needs no import of the commands.
COMMANDS = {
    "chat": "Chat with a steered model; /why shows what steering did.",
    "generate": "Generate from one prompt, steered at its junctions.",
    "inspect": "What a GGUF holds, and whether a base and a value model fit.",
    "eval": "Compare steering arms on many prompts: reward, KL, intervals.",
    "calibrate": "Choose threshold and beta for a base and a value model.",
    "bench": "Measure speed and memory, steered and unsteered.",
}


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


class Commands(click.Group):
    """Imports a command on demand. A SiaError becomes one line on standard error and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f".{cmd_name}", __name__), cmd_name)
        if not any("--debug" in param.opts for param in command.params):
            command.params.append(_debug_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SiaError as error:
            if ctx.meta.get("sia.debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            # A reader that went away (EPIPE) is click's to end quietly.
            if ctx.meta.get("sia.debug") or error.errno == errno.EPIPE or error.filename is None:
                raise
            click.echo(f"Error: {error.filename}: {error.strerror}; check the path and try again", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sia-local", prog_name="sia-local")
def main() -> None:
    """Sparse inference-time alignment on llama.cpp.

    A quantized value model steers a quantized base model where the base is unsure of its next word. Without
    -m and -v the models in models/ are used.
    """


main.params.append(_debug_option())
