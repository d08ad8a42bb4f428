"""Arrows point one way: what each package may import, read off its imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {
    "config",
    "dialogues",
    "endpoint",
    "errors",
    "files",
    "packed",
    "progress",
    "prompts",
    "reasoning",
    "ray_workers",
    "records",
    "seeds",
    "shipped",
    "tables",
    "text",
    "workers",
}
# Package -> packages (and modules) of sia_local that its own modules may import, beside the ground and itself.
MAY = {
    "llama": set(),
    "steering": set(),
    "values": {"llama", "steering"},
    "rewards": set(),
    "generation": {"llama", "steering", "values", "rewards"},
    "learning": {"generation", "llama", "values"},
    "views": {"steering"},
    "evaluation": {"generation", "steering", "views", "rewards", "values"},
    "chat": {"generation", "values", "views"},
    "server": {"evaluation", "generation", "llama", "views"},
    "bench": {"generation", "llama", "steering", "values"},
}


def imports(path: Path, package: str) -> set[str]:
    """Absolute names of the modules a file imports anywhere, those under TYPE_CHECKING too."""
    here = [package, *path.relative_to(ROOT / {"sia_convert": "convert"}.get(package, package)).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", MAY)
def test_a_package_imports_what_it_may(name: str) -> None:
    allowed = GROUND | MAY[name] | {name, "__version__"}
    for path in (ROOT / "sia_local" / name).rglob("*.py"):
        used = {m.split(".")[1] for m in imports(path, "sia_local") if m.startswith("sia_local.")}
        assert used <= allowed, (path.name, used - allowed)


def test_one_folder_touches_llama_cpp_and_the_runtime_needs_no_training() -> None:
    for path in (ROOT / "sia_local").rglob("*.py"):
        roots = {module.split(".")[0] for module in imports(path, "sia_local")}
        assert not roots & {"torch", "transformers", "peft", "sia_convert", "convert"}, path
        assert "llama_cpp" not in roots or path.parent.name == "llama" or path.name == "rival.py", path


def test_the_ground_stands_on_itself() -> None:
    for name in GROUND:
        used = imports(ROOT / "sia_local" / f"{name}.py", "sia_local")
        assert {m.split(".")[1] for m in used if m.startswith("sia_local.")} <= GROUND, name


@pytest.mark.parametrize("name", ["steering", "values", "generation", "llama"])
def test_nothing_between_two_decodes_multiplies_through_blas(name: str) -> None:
    """Its threads and llama.cpp's wait for each other: one product of a vocabulary's length a token took two thirds of
    the speed. np.einsum has loops of its own."""
    for path in (ROOT / "sia_local" / name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.attr if isinstance(node, ast.Attribute) else ""
            blas = called in ("dot", "matmul", "inner", "vdot", "tensordot", "linalg")
            assert not blas and not isinstance(node, ast.MatMult), (path.name, called)


def test_the_bindings_come_without_the_package_and_it_can_follow() -> None:
    """What llama.cpp logs stays this program's when the rest of llama-cpp-python is imported later."""
    script = """
import ctypes, sys
from sia_local.llama import library
assert not {"llama_cpp", "llama_cpp.llama", "jinja2"} & set(sys.modules)
from llama_cpp import Llama, llama_cpp
assert llama_cpp is library.C and sys.modules["llama_cpp"].llama_decode is library.C.llama_decode
with library.quietly():
    library.C.llama_model_load_from_file(b"no such file", library.C.llama_model_default_params())
print(library.reason())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "no such file" in done.stdout and done.stderr == ""
