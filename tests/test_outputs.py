"""Outputs that are appended to, and what killed runs leave: one writer, one set of settings, nothing twice."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cuts import Interrupted, at_every_move
from sia_convert.data.outputs import Appender
from sia_convert.data.score import score_files
from sia_convert.data.trajectories import Shard, Trajectory, read_trajectories

from sia_local.errors import ConfigError, DataError
from sia_local.evaluation.samples import SampleFile
from sia_local.files import alone, aside, atomic_write, discard, scratch, sweep, together
from sia_local.learning.junctions import JunctionWriter

TEXT = Trajectory("0-0", 0, "the king", "the king", [3], "good", reward=1.0)
HOLD = """
import sys, time
from sia_convert.data.outputs import Appender
with Appender(sys.argv[1], {"seed": 0}) as out:
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_refused_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with (
            pytest.raises(DataError, match=r"out.jsonl is being written by another process: let it end"),
            Appender(out),
        ):
            pass
        other.kill()
    with Appender(out) as append:
        append(TEXT.to_json())
    assert list(read_trajectories([out])) == [TEXT]


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with alone(tmp_path):
        with pytest.raises(ConfigError, match="is being written by another process: let it end"):
            SampleFile(tmp_path / "samples.jsonl", {})
        with pytest.raises(ConfigError, match="another process"), JunctionWriter(tmp_path, {}):
            pass
    SampleFile(tmp_path / "samples.jsonl", {}).close()
    with JunctionWriter(tmp_path, {}), pytest.raises(ConfigError, match="another process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("data", [b"one prompt", b'{"seeds": [1]}', b"GGUF\0\x03\n\xff\xfe", b"{\n}", b'{"id": "0"}'])
def test_what_is_no_output_is_left_as_it_is(data: bytes, tmp_path: Path) -> None:
    """Its last line had been cut off before it was read."""
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(DataError, match=r"model.gguf"), Appender(tmp_path / "model.gguf"):
        pass
    assert (tmp_path / "model.gguf").read_bytes() == data


def test_what_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    """The read of a pipe waited for the end of what it would write."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ConfigError, match="expected the path of a file"), Appender(tmp_path / name):
            pass


def test_rewards_that_were_mended_are_not_passed_over(tmp_path: Path) -> None:
    source, out = tmp_path / "source.jsonl", tmp_path / "out.jsonl"
    for mended in (2.0, 3.0):
        texts = [TEXT, replace(TEXT, id="0-1", reward=mended)]
        source.write_text("".join(text.to_json() + "\n" for text in texts))
        if mended == 2.0:
            assert (score_files([source], out, "data"), score_files([source], out, "data")) == (2, 0)
    with pytest.raises(DataError, match=r"holds the text 0-1 with the reward 2.0, now it is 3.0; name another"):
        score_files([source], out, "data")


def test_a_line_that_lacks_its_end_alone_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text(TEXT.to_json())
    with Appender(tmp_path / "out.jsonl") as append:
        append(replace(TEXT, id="0-1").to_json())
    assert list(read_trajectories([tmp_path / "out.jsonl"])) == [TEXT, replace(TEXT, id="0-1")]


def test_an_output_is_continued_with_its_own_settings_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Appender(out, {"max_tokens": 64, "temperature": 1.0}) as append:
        append(TEXT.to_json())
    before = out.read_bytes()
    wrong = r"out.jsonl holds 1 texts made with max_tokens 64, not 32; temperature 1.0, not 0.5: name another"
    with pytest.raises(DataError, match=wrong), Appender(out, {"max_tokens": 32, "temperature": 0.5}):
        pass
    with Appender(out, {"max_tokens": 64, "temperature": 1.0, "new": 1}) as append:
        assert append.check_same(TEXT) and not append.check_same(replace(TEXT, id="0-1"))
        with pytest.raises(DataError, match=r"another text under the id 0-0 .prompt 'the king', now 'the queen'"):
            append.check_same(replace(TEXT, prompt="the queen"))
    out.with_name("out.jsonl.made.json").write_text("{")
    with Appender(out, {"max_tokens": 32}):  # whoever lost the sidecar is trusted
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("texts.jsonl.gz", "plain text, not packed; name it texts.jsonl"),
        ("texts.jsonl.XZ", "plain text, not packed; name it texts.jsonl"),
        ("texts.parquet", "appended as plain JSONL; name it texts.jsonl"),
    ],
)
def test_a_name_that_is_read_otherwise_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, said: str
) -> None:
    out = tmp_path / "new" / name
    with pytest.raises(ConfigError, match=said), Appender(out):
        pass
    if said.startswith("plain"):
        with pytest.raises(ConfigError, match=said), atomic_write(out):
            pass
    with atomic_write(tmp_path / "packed.gz", "wb") as handle:
        handle.write(gzip.compress(b"whole"))
    assert os.listdir(tmp_path) == ["packed.gz"]


def test_no_text_weighs_double(tmp_path: Path) -> None:
    lines = [replace(TEXT, id=f"0-{i}", reward=float(i)).to_json() for i in range(2)]
    twice, once = tmp_path / "twice.jsonl", tmp_path / "once.jsonl"
    twice.write_text("\n".join([*lines, lines[0], ""]))
    once.write_text("\n".join([*lines, ""]))
    with pytest.raises(DataError, match=r"twice.jsonl, line 3: the id 0-0 stands twice; two processes"):
        score_files([twice], tmp_path / "scored.jsonl", "data")
    with pytest.raises(DataError, match=r"once.jsonl is given twice"):
        list(read_trajectories([once, tmp_path / "x" / ".." / "once.jsonl"]))
    other = tmp_path / "other.jsonl"
    other.write_text(once.read_text())
    with pytest.raises(DataError, match="the id 0-0 stands in several of the files: score them into an output each"):
        score_files([once, other], tmp_path / "scored.jsonl", "data")
    assert len(list(read_trajectories([once, other]))) == 4  # rounds of a chain number their texts alike


def test_a_shard_may_be_empty_and_its_rewards_alike(tmp_path: Path) -> None:
    texts = [replace(TEXT, id=f"{i}-0", prompt_id=i, reward=float(i % 2)) for i in range(4)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(f"{text.to_json()}\n" for text in texts))
    shards = [tmp_path / f"shard{i}.jsonl" for i in range(6)]
    for out, shard, new in ((0, "1/2", 2), (1, "2/2", 2), (5, "6/6", 0)):
        assert score_files([source], shards[out], "data", shard=Shard.parse(shard)) == new
    assert shards[5].read_bytes() == b"" and list(read_trajectories(shards[:2])) == [texts[i] for i in (0, 2, 1, 3)]
    source.write_text("".join(f"{text.to_json()}\n" for text in texts[::2]))
    with pytest.raises(DataError, match=r"all 2 rewards are 0.0: a constant reward teaches nothing"):
        score_files([source], tmp_path / "whole.jsonl", "data")
    source.write_text(replace(TEXT, reward=float("inf")).to_json())
    with pytest.raises(DataError, match="reward inf: expected a finite number"):
        score_files([source], tmp_path / "wrong.jsonl", "data", shard=Shard(1, 2))
    source.write_text("")
    with pytest.raises(DataError, match="the trajectory files are empty"):
        score_files([source], tmp_path / "none.jsonl", "data", shard=Shard(1, 2))


def test_whether_the_base_read_the_plain_prompt_is_a_field_and_old_files_tell(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    entry = json.loads(TEXT.to_json())
    old = {k: v for k, v in entry.items() if k != "raw"}
    entries = [
        entry,
        {**entry, "id": "a", "raw": True},
        {**old, "id": "b"},
        {**old, "id": "c", "rendered": "<the king>"},
    ]
    out.write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert [t.raw for t in read_trajectories([out])] == [False, True, True, False]


def test_the_next_run_removes_what_killed_ones_left(tmp_path: Path) -> None:
    target = tmp_path / "model[1].gguf"
    (tmp_path / ".model[1].gguf.abc.tmp").write_bytes(b"half")
    (tmp_path / ".model[1].gguf.dir.tmp").mkdir()
    (tmp_path / "..model[1].gguf.dir.tmp.abc.tmp").mkdir()
    (tmp_path / ".other.gguf.abc.tmp").write_bytes(b"half")
    with aside(target) as held:
        held.write_bytes(b"whole")
        with scratch(target) as room:
            assert {p.name for p in tmp_path.iterdir()} == {held.name, room.name, ".other.gguf.abc.tmp"}
            sweep(target)  # running writers keep their own
            assert held.exists() and room.exists()
    assert sorted(os.listdir(tmp_path)) == [".other.gguf.abc.tmp", "model[1].gguf"]


def test_files_that_belong_together_are_the_older_ones_or_the_new_ones_or_lack_their_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, names = tmp_path / "out", ("a", "mark", "part/b", "z")

    def write(text: str) -> None:
        with together(out, "mark") as room:
            (room / "part").mkdir()
            for name in names:
                (room / name).write_text(text)

    def read() -> str | None:
        assert (out / "other").read_text() == "stays" and len(list(out.rglob("*"))) == 6 - (not (out / "mark").exists())
        return "".join((out / name).read_text() for name in names) if (out / "mark").exists() else None

    def begin() -> None:
        write("o")
        (out / "other").write_text("stays")

    assert at_every_move(monkeypatch, begin, lambda: write("n"), read) == [None] * 4 + ["nnnn"]
    with pytest.raises(Interrupted), together(out, "mark") as room:
        (room / "mark").write_text("half")
        raise Interrupted
    assert read() == "nnnn"


def test_a_folder_is_removed_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").touch()

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted

    with monkeypatch.context() as within:
        within.setattr(shutil, "rmtree", stopped)
        with pytest.raises(Interrupted):
            discard(folder)
    assert not folder.exists()
    discard(folder)
    assert not list(tmp_path.iterdir())
