"""What the pages say exists: commands, options, links, targets of make; their Python parses, their generated parts are
current, and the front page is short."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sia_convert.cli import main as convert

from sia_local.cli import main as local

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(page for folder in (".", "docs", "models", "examples") for page in (ROOT / folder).glob("*.md"))
LONGEST_README = 7000  # bytes: ten minutes of a stranger
_COMMAND = re.compile(r"(?:^|\s|/)(sia-local|sia-convert|sia_local|sia_convert) +([a-z][a-z-]+)(.*)")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
        yield language, body.replace("\\\n", " ")


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures within the repository."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for language, body in blocks(page):
        if language == "python":
            ast.parse(body)
            continue
        if language == "yaml":
            assert isinstance(pytest.importorskip("yaml").safe_load(body), dict)
            continue
        for line in body.splitlines():
            line = line.partition("  #")[0]
            for target in re.findall(r"(?:^|&& )make ([a-z]+)", line):
                assert target in make_targets(), f"{page.name}: the Makefile has no target {target}"
            if not (found := _COMMAND.search(line)):
                continue
            program, name, rest = found.groups()
            group = local if program.endswith("local") else convert
            command = group.get_command(click.Context(group), name)
            assert command is not None, f"{page.name}: {program} has no command {name}"
            known = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
            rest = re.sub(r'"[^"]*"', "", rest)
            given = {word.partition("=")[0] for word in rest.split() if re.match(r"--?[a-z]", word)}
            assert given <= known, f"{page.name}: {program} {name} has no {', '.join(sorted(given - known))}"


def test_recipes_of_a_cluster_are_shell() -> None:
    recipes = "\n".join(body for language, body in blocks(ROOT / "docs/scale.md") if not language)
    assert "#SBATCH" in recipes
    done = subprocess.run(["bash", "-n"], input=recipes, text=True, capture_output=True)
    assert not done.returncode and not done.stderr, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}; {there.name} has no such heading"


def test_the_front_page_names_every_page_and_is_short() -> None:
    named = {(ROOT / target.partition("#")[0]).resolve() for target in links(README)}
    own = [page for page in PAGES if page.parent.name != "examples" and page != README]
    assert [page.name for page in own if page not in named] == [], "README.md has to list them"
    assert len(README.read_bytes()) <= LONGEST_README


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert "make test" in next(body for _, body in blocks(README))
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_figures_of_the_front_page_are_those_of_the_results() -> None:
    figures = re.findall(r"\d[\d.]* ± [\d.]+", README.read_text())
    assert figures
    assert set(figures) <= set(re.findall(r"\d[\d.]* ± [\d.]+", (ROOT / "docs" / "results.md").read_text()))


def test_the_page_of_commands_is_current() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "cli.py"))["reference"]()
    assert (ROOT / "docs" / "cli.md").read_text() == written, "run: python docs/cli.py"
