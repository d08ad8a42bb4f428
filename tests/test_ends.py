"""How things end: Ctrl-C while a long prompt is read, a pipe that closes, a disk that fills, a file that shrinks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loading import EXACT, source

from sia_local import SIA, BestOf, Generation, Guides, Nudged, Request, SiaConfig
from sia_local.errors import ConfigError, ModelFileError
from sia_local.files import aside, at_home, atomic_write, put, scratch
from sia_local.llama.part import AnyEngine

Make = Callable[..., Path]
ASKED = Request("hello there " * 5, SiaConfig(gate="off"), max_tokens=3)
COMMAND = [sys.executable, "-m", "sia_local"]


@pytest.mark.parametrize("kind", ["one", "best of", "beside its values"])
def test_a_long_prompt_that_is_stopped_ends_with_the_batch_in_hand(
    make_gguf: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    value = make_gguf("merged", seed=1)
    with SIA.load(make_gguf("base"), value, EXACT, n_threads=2, overlap_prompts=kind == "beside its values") as sia:
        for engine in (sia.engine, *source(sia).engines):
            engine.context.batch.capacity = 16
        writer = BestOf(sia, 2) if kind == "best of" else sia
        written = writer.write(ASKED)
        decode, calls = sia.engine.context.decode, []

        def stopped() -> None:
            calls.append(1)
            written.stop()
            decode()

        monkeypatch.setattr(sia.engine.context, "decode", stopped)
        assert list(written) == [] and len(calls) == 1
        monkeypatch.undo()
        assert len(list(sia.write(ASKED))) == 3


@pytest.mark.parametrize("kind", ["values", "guides", "nudge"])
def test_whoever_reads_a_long_prompt_ends_with_the_batch_in_hand(make_gguf: Make, kind: str) -> None:
    """A value model, guides and a small model read their own; another text goes on meanwhile; all come out the same."""
    dense = replace(ASKED, config=SiaConfig(gate="dense", k=4))
    other = make_gguf("base", seed=3) if kind == "nudge" else make_gguf("merged", seed=1)

    @contextmanager
    def loaded() -> Iterator[tuple[Any, AnyEngine]]:
        if kind == "nudge":
            with Nudged.load(make_gguf("base"), other, 1.0, setup=EXACT) as nudged:
                yield nudged, nudged._engine
        else:
            spec = Guides(make_gguf("base", seed=3)) if kind == "guides" else other
            with SIA.load(make_gguf("base"), spec, EXACT, slots=2, max_candidates=4) as sia:
                yield sia, source(sia).engines[-1]

    asked = replace(ASKED, config=SiaConfig()) if kind == "nudge" else dense
    with loaded() as (writer, _):
        expected = [step.token for step in writer.write(asked)]
    with loaded() as (writer, engine):
        engine.context.batch.capacity = 16
        decode, calls = engine.context.decode, []
        made: list[Generation] = []

        def stopped() -> None:
            calls.append(1)
            if len(calls) == 1:
                made[0].stop()
            decode()

        engine.context.decode = stopped  # type: ignore[method-assign]
        made.append(writer.write(asked))
        assert list(made[0]) == [] and len(calls) == 1
        assert [step.token for step in writer.write(asked)] == expected and len(calls) > 4
        if kind == "values":
            # Three texts in two slots, one of them read piece by piece while the other writes.
            short = replace(dense, prompt="hi", max_tokens=8)
            alone = [step.token for step in writer.write(short)]
            both: dict[int, list[int]] = {0: [], 1: []}
            order = []
            for step in writer.run([writer.job(short, id=0), writer.job(replace(asked, prompt="so " * 25), id=1)]):
                both[step.job].append(step.token)
                order.append(step.job)
            assert both[0] == alone and order[:2] == [0, 0] and 1 in order[:-1]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_while_a_long_prompt_is_read(make_gguf: Make, command: str) -> None:
    """A signal of the system, sent while llama.cpp computes the first of several batches: the only moment at which a
    second thread runs, since that call alone lets go of the interpreter."""
    driver = """
import os, signal, sys, threading
from sia_local.cli import main
from sia_local.llama.context import Context
decode, begun, calls = Context.decode, threading.Event(), []

def interrupt():
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)

def watched(context):
    calls.append(context.batch.n)
    if len(calls) == 1:
        begun.set()
    decode(context)
    if len(calls) == 1:
        sender.join()

Context.decode = watched
sender = threading.Thread(target=interrupt)
sender.start()
try:
    main()
finally:
    print("DECODES", calls, file=sys.stderr)
"""
    words = [command, "-m", str(make_gguf("base")), "--ctx", "5000", "-n", "3", "--threads", "1"]
    long = "hello there " * 340
    given = long + "\nhello\n" if command == "chat" else long
    done = subprocess.run(
        [sys.executable, "-c", driver, *words], input=given, capture_output=True, text=True, check=False
    )
    said = done.stderr.splitlines()
    calls = json.loads(said[-1].removeprefix("DECODES"))
    assert calls[0] == 512 and "Traceback" not in done.stderr
    if command == "generate":
        assert calls == [512] and done.returncode == 130 and done.stdout == ""
    else:
        # The chat goes on with what was asked next.
        assert 512 not in calls[1:] and len(calls) >= 4 and done.returncode == 0


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that an ended command says, which is no traceback."""
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("Error: ") and "Traceback" not in done.stderr, done.stderr
    return last


def test_no_terminal_no_streams_no_reader_no_room(make_gguf: Make) -> None:
    words = ("generate", "-m", make_gguf("base"), "-p", "hello", "-n", 3, "--threads", 1)
    with open("/dev/full", "w") as full:
        assert "No space left on device; free space and run again" in sentence(run(*words, stdout=full))
    read, write = os.pipe()
    os.close(read)
    done = run(*words, stdout=write)
    assert done.returncode == 1 and "Error" not in done.stderr and "Traceback" not in done.stderr
    os.close(write)
    shell = f"exec {' '.join(map(str, COMMAND))} chat -m {make_gguf('base')} --threads 1 <&- >&-"
    done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_file_that_shrinks_while_it_is_in_use_is_a_sentence(make_gguf: Make, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.gguf"
    path.write_bytes(make_gguf("base").read_bytes())
    words = [*COMMAND, "chat", "-m", str(path), "-n", "3", "--threads", "1"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as chat:
        assert chat.stdin is not None and chat.stdout is not None and chat.stderr is not None
        chat.stdin.write("hello\n")
        chat.stdin.flush()
        assert chat.stdout.read(1)
        os.truncate(path, 8192)
        chat.stdin.write("hello\n")
        chat.stdin.close()
        said = chat.stderr.read()
    assert chat.returncode == 2 and f"{path}: became shorter while it was in use" in said.splitlines()[-1]


def test_a_crash_in_c_is_a_sentence_of_the_command_line_and_nobody_elses() -> None:
    crash = """
import ctypes, sys
from sia_local import errors
from sia_local.cli.group import _give_up
errors.give_up = _give_up if sys.argv[1] == "ours" else None
from sia_local.llama.library import quietly
with quietly("some.gguf" if sys.argv[2] == "reading" else ""):
    ctypes.string_at(0)
"""

    def ended(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", crash, *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    code, said = ended("ours", "reading")
    assert code == 2 and said.startswith("Error: some.gguf: llama.cpp crashed (SIGSEGV); the file is damaged")
    assert ended("ours", "idle")[0] == ended("theirs", "reading")[0] == -signal.SIGSEGV


def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from sia_local.shipped import cache_folder

    for name in ("SIA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="no home folder is known to this process; set HOME"):
        cache_folder()
    with pytest.raises(ConfigError, match="holds a null character"):
        at_home("a\0b")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_moved_into_place_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Content before the name, the name before the writer goes on."""
    done: list[str] = []
    sync, move = os.fsync, os.replace

    def watched(fd: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        sync(fd)

    def moved(made: Path, target: Path) -> None:
        done.append("moved")
        move(made, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", moved)
    if what == "file":
        with atomic_write(tmp_path / "new.txt") as handle:
            handle.write("whole")
        *content, last, folder = done
        assert [name.startswith(".new.txt.") for name in content] == [True]
    else:
        with scratch(tmp_path / "new") as room:
            (room / "made" / "inner").mkdir(parents=True)
            (room / "made" / "inner" / "a.txt").write_text("whole")
            put(room / "made", tmp_path / "new")
        *content, last, folder = done
        assert content == ["inner", "a.txt", "made"]
    assert (last, folder) == ("moved", tmp_path.name)


@pytest.mark.parametrize("write", ["text", "by name"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, write: str) -> None:
    """A file that may not grow stands for a disk that is full."""
    path = tmp_path / "out.json"
    path.write_text("whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(
            ModelFileError, match=r"the disk filled up while writing .*out\.json; nothing of it was kept"
        ):
            if write == "text":
                with atomic_write(path) as handle:
                    handle.write("x" * 100_000)
            else:
                with aside(path) as temporary:
                    temporary.write_bytes(b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.json", "whole")]
