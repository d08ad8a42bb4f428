"""Tokenizers that lie, control tokens, and what a machine offers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sia_local import SIA, Request, Setup
from sia_local.errors import ConfigError, SiaError
from sia_local.llama.library import check_pinned, default_threads, has_gpu
from sia_local.llama.model import Model
from sia_local.text import Shown

LOAD = Setup(n_ctx=128, n_threads=1)


def test_a_vocabulary_without_beginning_has_none(make_gguf: Callable[..., Path]) -> None:
    bare = make_gguf("base", bos=False, template="{{ bos_token }}{{ messages[-1].content }}")
    with SIA.load(bare, setup=LOAD) as sia:
        assert sia.model.bos == -1
        assert sia.prompt("hello").tokens == tuple(sia.model.tokenize("hello"))


def test_beginning_once_and_no_end_behind_a_prompt(make_gguf: Callable[..., Path]) -> None:
    with Model(make_gguf("base", add_bos=True, add_eos=True)) as model:
        body = model.tokenize("hello")
        assert model.tokenize("hello", add_special=True) == [model.bos, *body]
        spelled = model.token_text(model.bos) + "hello"
        assert model.tokenize(spelled, add_special=True, parse_special=True) == [model.bos, *body]


def test_a_control_token_stops_by_its_id_and_can_be_seen(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=LOAD) as sia:
        name = "<|im_start|>"
        token = sia.model.control_token(name)
        assert token is not None and sia.model.control_token("hello") is None
        stops = sia.job(Request("hello", stop=name)).sink
        assert stops.push(sia.model.tokenize("h")[0], False) == Shown("h")
        assert stops.push(token, False) == Shown("", True)
        job = sia.job(Request("hello", special=True))
        assert job.sink.push(token, True)[0] == name


def test_layers_for_a_gpu_that_is_not_there_are_refused(base_gguf: Path) -> None:
    if has_gpu():
        pytest.skip("this build has a GPU backend")
    with pytest.raises(ConfigError, match="no GPU backend; ask for 0, or build"):
        SIA.load(base_gguf, n_gpu_layers=-1)


def test_threads_are_cores_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert default_threads(tmp_path) == 4
    for cpu in range(4):
        file = tmp_path / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert default_threads(tmp_path) == 2
    quota = tmp_path / "fs/cgroup/cpu.max"
    quota.parent.mkdir(parents=True)
    for text, expected in (("max 100000", 2), ("150000 100000", 2), ("50000 100000", 1)):
        quota.write_text(text)
        assert default_threads(tmp_path) == expected


def test_another_release_of_the_bindings_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "__init__.py"
    package.write_text('from .llama import *\n\n__version__ = "0.3.1"\n')
    with pytest.raises(SiaError, match=r"llama-cpp-python 0\.3\.1 is installed, 0\.3\.36 is needed"):
        check_pinned(str(package))
    package.write_text("")
    for origin in (str(package), None):
        with pytest.raises(SiaError, match="no known release of llama-cpp-python is installed"):
            check_pinned(origin)
