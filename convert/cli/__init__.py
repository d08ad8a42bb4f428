"""The `sia-convert` command: a subcommand is imported when asked for, torch only when it runs."""

from __future__ import annotations

import errno
import importlib
from pathlib import Path
from typing import Any

import click

from sia_local.errors import SiaError

# command -> (module in this package, attribute); modules named here import nothing heavier than click.
COMMANDS = {
    "rollouts": ("rollouts", "rollouts"),
    "score": ("score", "score"),
    "train": ("train", "train"),
    "import-official": ("import_official", "import_official"),
    "export": ("export", "export"),
    "hf-to-gguf": ("hf_to_gguf", "hf_to_gguf"),
    "quantize": ("quantize", "quantize"),
    "spread": ("spread", "spread"),
    "verify": ("verify", "verify"),
    "pretrain": ("pretrain", "pretrain"),
    "judge": ("judge", "judge"),
    "make": ("make", "make"),
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
        help="Show the full traceback of an error.",
    )


class Commands(click.Group):
    """A group whose commands are imported on demand and whose `SiaError`s end as one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        return [name for name, (module, _) in COMMANDS.items() if (here / f"{module}.py").exists()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        if not any("--debug" in param.opts for param in command.params):
            command.params.append(_debug_option())
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SiaError as error:
            if ctx.meta.get("sia.debug"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            if ctx.meta.get("sia.debug") or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = error.filename or "while writing"
            click.echo(f"error: the disk is full ({where}); free space and run again", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("\nstopped; the same command continues where this one left off", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sia-local", prog_name="sia-convert")
def main() -> None:
    """Train a token-level value model for a base model and a reward, and write it as GGUF.

    The chain is rollouts, score, train, export, quantize, verify; `make` runs all of it from one TOML file.
    """


main.params.append(_debug_option())
