"""Parquet and the Hub, by the datasets library: skipped where that is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, DataError
from sia_local.prompts import read_prompt_items
from sia_local.tables import HubName, exists, is_table, pinned, rows

pytest.importorskip("torch")

from sia_convert.cli import main
from sia_convert.data.preferences import read_pairs
from sia_convert.data.trajectories import Branch, Trajectory, read_trajectories
from sia_convert.train.config import TrainConfig


def test_what_is_a_table_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_table("hub:a/b") and is_table(Path("x.PARQUET")) and not is_table("x.jsonl")
    assert exists("hub:a/b") and not exists(tmp_path / "none.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hub:a/b needs the datasets library.*sia-local\[datasets\]"):
        list(rows("hub:a/b"))


def test_a_name_of_the_hub_and_the_commit_that_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, asked = "c" * 40, list[Any]()
    assert HubName.parse("hub:a/b/c:test@v1") == ("a/b", "c", "test", "v1")
    assert HubName.parse("hub:a") == ("a", None, "train", None)
    for wrong in ("hub:", "hub:a/b/c/d", "hub:a/b:", "hub:a b"):
        with pytest.raises(ConfigError, match="expected hub:owner/name"):
            HubName.parse(wrong)

    def info(_: Any, repo: str, revision: str | None) -> Any:
        asked.append((repo, revision))
        if repo == "a/gone":
            raise OSError("no route")
        return SimpleNamespace(sha=commit)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(disable_progress_bars=lambda: None))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    assert pinned("hub:a/b:test@v1") == pinned(f"hub:a/b:test@{commit}") == f"hub:a/b:test@{commit}"
    assert pinned("hub:a/b") == f"hub:a/b@{commit}" and asked == [("a/b", "v1"), ("a/b", None)]
    assert pinned(tmp_path / "x.jsonl") == str(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match=r"hub:a/gone: the Hub does not say which commit .*no route"):
        pinned("hub:a/gone")
    # A training of it is another one when the set has changed.
    config = TrainConfig(backbone="b", data=("hub:a/b@main",), out="o")
    before, commit = config.fingerprint(), "d" * 40
    assert config.fingerprint() != before


def test_trajectories_go_to_parquet_and_back(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    tried = Branch(1, (3, 4), (0.0, 1.0), (0.5, 0.25), (0.0, 0.0), (2, 2))
    texts = [
        Trajectory("0-0", 0, "p", "p", [1, 2], "é", reward=0.5, branches=(tried,)),
        Trajectory("0-1", 0, "p", "p", [], "", "length"),
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(t.to_json() + "\n" for t in texts))
    for a, b in (("in.jsonl", "out.parquet"), ("out.parquet", "back.jsonl")):
        done = CliRunner().invoke(main, ["rows", str(tmp_path / a), str(tmp_path / b)])
        assert done.exit_code == 0, done.output
    assert list(read_trajectories([tmp_path / "out.parquet"])) == texts
    assert list(read_trajectories([tmp_path / "back.jsonl"])) == texts
    assert [item.text for item in read_prompt_items(tmp_path / "out.parquet")] == ["p", "p"]
    CliRunner().invoke(main, ["rows", str(source), str(source), str(tmp_path / "one.jsonl"), "--limit", "3"])
    assert len((tmp_path / "one.jsonl").read_text().splitlines()) == 3
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "good", "rejected": "bad"}\n')
    CliRunner().invoke(main, ["rows", str(tmp_path / "pairs.jsonl"), str(tmp_path / "pairs.parquet")])
    assert read_pairs(tmp_path / "pairs.parquet") == read_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match=r"bad.parquet: the datasets library cannot read it"):
        list(rows(tmp_path / "bad.parquet"))


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[Any, ...]] = []
    read: list[int] = []

    def load(*names: str, **options: Any) -> Any:
        asked.append((*names, options))

        def stream() -> Any:
            for i in range(100):
                read.append(i)
                yield {"prompt": f"prompt {i}"}

        return stream()

    monkeypatch.setattr(datasets, "load_dataset", load)
    out = tmp_path / "some.jsonl"
    done = CliRunner().invoke(main, ["rows", "hub:owner/name/config:test", str(out), "--limit", "2"])
    assert done.exit_code == 0 and [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": "prompt 0"}, {"prompt": "prompt 1"},
    ]  # fmt: skip
    assert (
        asked == [("owner/name", "config", {"split": "test", "revision": None, "streaming": True})] and len(read) <= 3
    )
    assert read_prompt_items("hub:owner/name@v2")[7].text == "prompt 7"
    assert asked[1] == ("owner/name", None, {"split": "train", "revision": "v2", "streaming": True})
