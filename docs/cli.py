"""Writes docs/cli.md, the help of every command. Run it when an option changes: python docs/cli.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from sia_convert.cli import main as convert

from sia_local.cli import main as local

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100  # characters a line
HEAD = """# Commands

The help of every command, as `--help` prints it. Written by `python docs/cli.py`; a test keeps it current.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *pages("sia-local", local), *pages("sia-convert", convert)])


def pages(name: str, group: click.Group) -> Iterator[str]:
    """A section for the group, then one for each of its commands, in the order of the group's own help."""
    top = _context(group, name)
    yield f"## {name}\n\n```text\n{group.get_help(top)}\n```\n"
    for word in group.list_commands(top):
        command = group.get_command(top, word)
        assert command is not None
        yield f"### {name} {word}\n\n```text\n{command.get_help(_context(command, word, top))}\n```\n"


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE}")
