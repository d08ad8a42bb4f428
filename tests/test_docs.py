"""What the pages say exists: commands, options, linked files; and their Python parses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sia_convert.cli import main as convert

from sia_local.cli import main as local

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "README.md", *ROOT.glob("*/*.md")) if "build" not in p.parts)
_COMMAND = re.compile(r"(?:^|\s|/)(sia-local|sia-convert|sia_local|sia_convert) +([a-z][a-z-]+)(.*)")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
        yield language, body.replace("\\\n", " ")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_options_and_links_exist(page: Path) -> None:
    for language, body in blocks(page):
        if language == "python":
            ast.parse(body)
            continue
        for line in body.splitlines():
            if not (found := _COMMAND.search(line.partition("  #")[0])):
                continue
            program, name, rest = found.groups()
            group = local if program.endswith("local") else convert
            command = group.get_command(click.Context(group), name)
            assert command is not None, f"{page.name}: {program} has no command {name}"
            known = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
            rest = re.sub(r'"[^"]*"', "", rest)
            given = {word.partition("=")[0] for word in rest.split() if re.match(r"--?[a-z]", word)}
            assert given <= known, f"{page.name}: {program} {name} has no {', '.join(sorted(given - known))}"
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
