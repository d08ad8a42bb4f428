from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny
from calling import LONG

import models

# A property holds however slow the machine is.
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")


@pytest.fixture(scope="session", autouse=True)
def _nothing_fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user has fetched is not seen: the default model is the story writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No model is known by name: what a command uses, the test names."""
    monkeypatch.setenv("SIA_MODELS", str(tmp_path / "nowhere"))


@pytest.fixture
def endless(tmp_path: Path) -> list[object]:
    """Options for a text that does not end by itself."""
    (tmp_path / "g.gbnf").write_text('root ::= [a-z ]+ "!"')
    return [*LONG, tmp_path / "g.gbnf"]


@pytest.fixture(scope="session")
def make_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_gguf(kind="base", arch="qwen3", **over) -> path; the same arguments give the same file."""
    folder = tmp_path_factory.mktemp("gguf")
    made: dict[str, Path] = {}

    def make(kind: str = "base", arch: str = "qwen3", **over: Any) -> Path:
        key = f"{arch}-{kind}-{sorted(over.items())!r}"
        if key not in made:
            made[key] = models.write(folder / f"{arch}-{kind}-{len(made)}.gguf", arch, kind, **over)
        return made[key]

    return make


@pytest.fixture(scope="session")
def base_gguf(make_gguf: Callable[..., Path]) -> Path:
    return make_gguf("base")


@pytest.fixture(scope="session")
def value_gguf(make_gguf: Callable[..., Path]) -> Path:
    return make_gguf("merged", seed=1)


@pytest.fixture(scope="session")
def lean_gguf(make_gguf: Callable[..., Path]) -> Path:
    return make_gguf("lean", seed=1)


@pytest.fixture(scope="session")
def adapter_gguf(make_gguf: Callable[..., Path]) -> Path:
    return make_gguf("adapter", seed=2)


@pytest.fixture(scope="session")
def head_gguf(make_gguf: Callable[..., Path]) -> Path:
    return make_gguf("head")


@pytest.fixture(scope="session")
def make_hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_hf(arch="qwen3", **over) -> folder of a tiny random Hugging Face model; the same arguments, the same one."""
    folder = tmp_path_factory.mktemp("hf")
    made: dict[str, Path] = {}

    def make(arch: str = "qwen3", **over: object) -> Path:
        key = f"{arch}-{sorted(over.items())!r}"
        if key not in made:
            made[key] = tiny.tiny_hf(arch, folder / f"{arch}-{len(made)}", **over)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_base(make_hf: Callable[..., Path]) -> Path:
    """The float32 GGUF of make_hf()."""
    from sia_convert.formats.export import export_base

    folder = make_hf()
    return export_base(folder, folder.with_name("base-F32.gguf"), "f32")


@pytest.fixture(scope="session")
def scored(make_hf: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of ten prompts and their rewards, read by the tokenizer of make_hf()."""
    return tiny.tiny_trajectories(tmp_path_factory.mktemp("scored") / "scored.jsonl", make_hf(), prompts=10)
