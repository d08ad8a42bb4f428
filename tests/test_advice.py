"""What a sentence tells a person to do can be done: its options, commands, files and names exist where it is said."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from sia_convert.advice import OPTION, SECTIONS, in_plan, settings
from sia_convert.cli import main as convert_main

import sia_local
from sia_local.chat.commands import Commands
from sia_local.cli import main as local_main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = {"sia_local": ROOT / "sia_local", "sia_convert": ROOT / "convert"}
GROUPS = {"sia-local": local_main, "sia-convert": convert_main}
HELP = ("setting", "click.option", "click.argument", "dict", "field", "option")
# Module and option: commands that import the module and never come to say so, and why.
NEVER = {
    ("sia_convert.data.trajectories", "--shard"): "reads what --shard was given",
    ("sia_convert.data.examples", "--stop-token"): "a trained model has named its own: only train and make choose one",
    ("sia_convert.data.dialects", "--api"): "servers are asked by rollouts and make alone",
    ("sia_convert.data.served", "--api"): "as above",
    ("sia_convert.data.served", "--served-model"): "as above",
    ("sia_convert.formats.export", "--base"): "a base is converted with its own tokenizer; make has a base always",
    ("sia_convert.formats.hf", "--backbone"): "make, distill and train open a folder where a LoRA needs one",
    ("sia_convert.formats.llamacpp", "--pre"): "only what writes a vocabulary asks for its pre-tokenizer",
    ("sia_convert.formats.vocab", "--pre"): "as above",
    ("sia_convert.formats.quantize", "--rows"): "reads what --rows was given",
    ("sia_convert.train.config", "--tune"): "made by train and make alone",
    ("sia_convert.train.config", "--layers"): "as above",
    ("sia_convert.train.run_folder", "--restart"): "make removes the state of another run first",
    ("sia_local.cli.many", "--prompts"): "quiz says what it reads instead",
    ("sia_local.generation.prompting", "--ctx"): "bench makes its context as long as its prompts; inspect reads none",
    ("sia_local.llama.context", "--ctx"): "as above",
    ("sia_local.llama.engine", "--ctx"): "as above",
    ("sia_local.generation.prompting", "--chat-template"): "asked with a plain text, which needs none",
    ("sia_local.generation.sia", "--reasoning"): "asked for by --steer",
    ("sia_local.values.sources", "--shortlist"): "reads what --shortlist was given",
    ("sia_local.evaluation.arms", "--instruction"): "arms are made by eval alone",
    ("sia_local.cli.resolve", "--beta"): "eval has betas of its own",
    ("sia_local.cli.resolve", "--guide-plus"): "bench takes no guides",
    ("sia_local.evaluation.calibrate", "--reward"): "a plan's reward is there wherever it is weighed",
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def options() -> dict[str, set[str]]:
    """Of every command, such as `sia-local chat`; those of make are also what in_plan() makes settings of."""
    found = {}
    for program, group in GROUPS.items():
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found[f"{program} {name}"] = {"--help"} | {
                opt for p in command.params for opt in (*p.opts, *p.secondary_opts)
            }
    found["sia-convert make"] |= set(settings())
    return found


def imported(module: str, path: Path) -> set[str]:
    """Modules of the two packages that one imports anywhere, by a public name of sia_local, too."""
    here, is_package = module.split("."), path.name == "__init__.py"
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + is_package] if node.level else []
            home = ".".join((*base, *(node.module.split(".") if node.module else ())))
            found |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
            if home == "sia_local":
                homes = (sia_local._HOMES.get(alias.name) for alias in node.names)
                found |= {f"sia_local.{name}" for name in homes if name}
    return found & modules().keys()


@cache
def commands_by_module() -> dict[str, set[str]]:
    """Commands that import a module, however late."""
    graph = {module: imported(module, path) for module, path in modules().items()}
    found: dict[str, set[str]] = {module: set() for module in graph}
    for command in options():
        program, name = command.split()
        waiting, seen = [f"{program.replace('-', '_')}.cli.{name.replace('-', '_')}"], set[str]()
        while waiting:
            if (module := waiting.pop()) not in seen:
                seen.add(module)
                found[module].add(command)
                waiting.extend(graph[module])
    return found


def texts(tree: ast.Module) -> Iterator[str]:
    """What a module may say: its texts but docstrings and the help of options; what is filled in stands as {}."""
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr):
            left_out.add(id(node.body[0].value))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in HELP:
            left_out |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(inner) for inner in ast.walk(node)}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


@cache
def sentences() -> list[tuple[str, str]]:
    """Module and sentence, of all that a person may be told. No markup."""
    return [
        (module, text)
        for module, path in modules().items()
        for text in texts(ast.parse(path.read_text()))
        if " " in text and not re.search(r"var\(--|</(?!think)|^#|\nimport |\n *import ", text)
    ]


COMMAND = re.compile(r"\b(sia-local|sia-convert) ([a-z][\w-]*)((?: [^`;,]*)?)")
SHORT = re.compile(r"(?<![\w-])(?:`?(\w[\w-]*) (--[a-z][\w-]*)`?|(--[a-z][\w-]*) of (sia-local|\w[\w-]*))")


def test_there_are_sentences_and_commands() -> None:
    assert len(sentences()) > 800 and len(options()) == 31
    assert commands_by_module()["sia_local.llama.context"] > {"sia-local chat", "sia-convert rollouts"}


def test_commands_that_are_named_exist_with_their_options() -> None:
    found = 0
    for module, text in sentences():
        for program, name, rest in COMMAND.findall(text):
            if program == "sia-local" and name in ("eval", "chat") and not rest.strip() and " sia-local " in text:
                continue
            found += 1
            assert f"{program} {name}" in options(), (module, text)
            for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest):
                assert option in options()[f"{program} {name}"], (module, option, text)
    assert found > 30


def test_options_exist_in_every_command_that_may_name_them() -> None:
    wrong, used = [], set()
    for module, text in sentences():
        said = COMMAND.sub("", text)
        for name, option, alone, of in SHORT.findall(said):
            # `generate --trace`, `--rows of quantize`
            where, what = name or of, option or alone
            known = [command for command in options() if where in command.split()]
            if known and any(what in options()[command] for command in known):
                said = said.replace(what, "", 1)
        named = set(OPTION.findall(said))
        asked = re.search(r"(--[\w-]+)(?: and [^.;]+)? (?:was|were) given", said)
        for command in commands_by_module()[module]:
            if asked is not None and asked[1] not in options()[command]:
                continue  # which nobody can have given
            for option in named - options()[command]:
                used.add((module, option))
                if (module, option) not in NEVER:
                    wrong.append(f"{command} has no {option}, which {module} may tell: {text}")
    assert not wrong, "\n".join(sorted(wrong))
    assert not (unused := sorted(NEVER.keys() - used)), unused


def test_extras_that_are_named_exist_and_hold_what_is_missing() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    found = set()
    for module, text in sentences():
        for extra in re.findall(r"sia-local\[(\w+)\]", text):
            found.add(extra)
            assert extra in extras, (module, text)
            package = re.search(
                r"needs? (?:the )?(?:package )?(\w+)(?: package| library)?, which is not installed", text
            )
            if package is not None:
                assert package[1].lower() in " ".join(extras[extra]).lower(), (module, text)
    assert found >= {"rewards", "hub", "server", "ray", "datasets", "bench", "convert"}


def test_files_variables_names_and_sections_exist() -> None:
    words = {
        node.value
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names, found = set(), set()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    for module, text in sentences():
        for path_name in re.findall(r"\b(?:docs|examples|models)/[\w/-]+\.\w+", text):
            assert (ROOT / path_name).exists(), (module, text)
            found.add("file")
        for variable in re.findall(r"\bSIA_[A-Z_]+\b", text):
            assert variable in words, (module, text)
            found.add("variable")
        for name in re.findall(r"(?<![\w.#-])([a-z_]+)=(?=True|False|\{\})", text):
            assert name in names, (module, name, text)
            found.add("name")
        if module in ("sia_convert.plan", "sia_convert.reading", "sia_convert.make"):
            for section in re.findall(r"(?<![\w'])\[([a-z]+)\]", text):
                assert section in SECTIONS, (module, text)
                found.add("section")
    assert found == {"file", "variable", "name", "section"}


def test_commands_of_a_chat_exist() -> None:
    found = 0
    for module, text in sentences():
        if module.startswith("sia_local.chat") and "/v1" not in text:
            for name in re.findall(r"(?<![\w/.<:])/([a-z]+)(?![\w/])", text):
                found += 1
                assert hasattr(Commands, f"_{name}"), (module, name, text)
    assert found > 20


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("lower --lr (now 1)", "; in a plan --lr is lr in [value]"),
        ("give --ctx", "; in a plan --ctx is n_ctx in [rollouts] or n_ctx in [verify] or n_ctx in [distill]"),
        ("remove it, or --restart", ""),
    ],
)
def test_a_plan_calls_options_by_its_settings(said: str, told: str) -> None:
    assert in_plan(said) == said + told
