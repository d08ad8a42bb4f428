"""Collected junctions: shards of whole texts, checked, and split by prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import planted, same, small

from sia_local.errors import ConfigError, DataError
from sia_local.learning.junctions import JunctionWriter, Transitions, read_junctions, read_transitions, split


def test_shards_continue_after_an_interruption(tmp_path: Path) -> None:
    settings = {"base": "b", "k": 3}
    with JunctionWriter(tmp_path, settings, per_shard=6) as out:
        out.add(7, small(prompt=1))
        out.add(3, None)
        out.add(5, small(prompt=2))
        assert [p.name for p in sorted(tmp_path.glob("*.npz"))] == ["shard-00000.npz"]
        out.add(9, small(prompt=3))
    with JunctionWriter(tmp_path, settings, per_shard=6) as out:
        assert out.finished == {3, 5, 7, 9}
        with pytest.raises(ConfigError, match="text 7 is in"):
            out.add(7, small())
        out.add(8, small(prompt=4))
    junctions, found = read_junctions(tmp_path)
    assert found == {"format": "sia-junctions-3", **settings}
    assert junctions.prompts.tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert same(junctions.take(slice(4, 8)), small(prompt=2))
    assert junctions.hidden.dtype == np.float16


def test_a_text_without_junctions_is_finished_too(tmp_path: Path) -> None:
    with JunctionWriter(tmp_path, {}) as out:
        out.add(1, None)
    assert JunctionWriter(tmp_path, {}).finished == {1}
    with pytest.raises(DataError, match="holds no junctions yet"):
        read_junctions(tmp_path)


def test_an_error_keeps_the_whole_texts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), JunctionWriter(tmp_path, {}) as out:
        out.add(1, small())
        raise KeyboardInterrupt
    assert len(read_junctions(tmp_path)[0]) == 4


def test_a_kill_costs_no_more_than_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sia_local.learning.junctions.time.monotonic", lambda: now[0])
    out = JunctionWriter(tmp_path, {})
    for text, seconds in enumerate((15.0, 6.0, 15.0)):
        now[0] += seconds
        out.add(text, small())
    assert JunctionWriter(tmp_path, {}).finished == {0, 1}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    JunctionWriter(tmp_path, {"k": 10, "teacher": "v"})
    with pytest.raises(ConfigError, match="was begun with k = 10, now it is 12"):
        JunctionWriter(tmp_path, {"k": 12, "teacher": "v"})
    with pytest.raises(ConfigError, match="was begun with seed = None, now it is 3"):
        JunctionWriter(tmp_path, {"k": 10, "teacher": "v", "seed": 3})


def test_other_settings_empty_a_folder_that_may_be_made_anew(tmp_path: Path) -> None:
    for teacher, finished in (("v", set[int]()), ("v", {7}), ("w", set[int]()), ("w", {7})):
        with JunctionWriter(tmp_path, {"teacher": teacher}, anew=True) as out:
            assert out.finished == finished
            if not finished:
                out.add(7, small(prompt=1))
    assert read_junctions(tmp_path)[1]["teacher"] == "w"


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_an_older_version_is_read_but_not_continued(tmp_path: Path, version: int) -> None:
    """It names models by their size, which another training leaves as it is, or does not say its context."""
    base = {"name": "b.gguf", "bytes": 5}
    with JunctionWriter(tmp_path, {"base": base}) as out:
        out.add(7, small(prompt=1))
    (tmp_path / "settings.json").write_text(json.dumps({"format": f"sia-junctions-{version}", "base": base}))
    assert same(read_junctions(tmp_path)[0], small(prompt=1))
    with pytest.raises(ConfigError, match=r"was begun by an older version, .*; remove it, or give another folder"):
        JunctionWriter(tmp_path, {"base": base})
    assert not JunctionWriter(tmp_path, {"base": base}, anew=True).finished


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no settings\.json"):
        read_junctions(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_junctions(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="not of the format sia-junctions-3"):
        read_junctions(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"format": "sia-junctions-3"}))
    (tmp_path / "shard-00000.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"shard-00000\.npz: not a readable shard"):
        read_junctions(tmp_path)
    np.savez(tmp_path / "shard-00000.npz", texts=np.zeros(1, np.int32), secrets=np.zeros(1))
    with pytest.raises(DataError, match="holds secrets, which no shard has"):
        read_junctions(tmp_path)
    np.savez(tmp_path / "shard-00000.npz", secrets=np.zeros(1))
    with pytest.raises(DataError, match="not a readable shard"):
        JunctionWriter(tmp_path, {})


def test_counts_and_untried_candidates_survive(tmp_path: Path) -> None:
    j = small()
    values = j.values.copy()
    values[0, 1] = np.nan
    counts = np.ones_like(values)
    counts[1, 2] = 0
    with JunctionWriter(tmp_path, {}) as out:
        out.add(0, replace(j, values=values, counts=counts))
    back = read_junctions(tmp_path)[0]
    assert same(back, replace(j, values=values, counts=counts))
    assert np.argwhere(~back.tried()).tolist() == [[0, 1], [1, 2]]
    assert back.numbers()[0, 1] == 0


def test_transitions_travel_beside_junctions_and_older_shards_have_none(tmp_path: Path) -> None:
    def tokens(prompt: int, width: int = 5) -> Transitions:
        rng = np.random.default_rng(prompt)
        hidden = rng.standard_normal((3, width)).astype(np.float16)
        gains = rng.standard_normal(3).astype(np.float32)
        return Transitions(hidden, np.arange(3, dtype=np.int32), gains, np.full(3, prompt, np.int32))

    with JunctionWriter(tmp_path, {}, per_shard=4) as out:
        out.add(0, small(prompt=1))
    assert read_transitions(tmp_path) is None
    with JunctionWriter(tmp_path, {}) as out:
        out.add(1, small(prompt=2), tokens(2))
        out.add(2, None, tokens(3))
    found = read_transitions(tmp_path)
    assert found is not None and found.prompts.tolist() == [2, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(found.gains, np.concatenate([tokens(2).gains, tokens(3).gains]))
    np.testing.assert_array_equal(found.take(slice(3, 6)).hidden, tokens(3).hidden)
    assert read_junctions(tmp_path)[0].prompts.tolist() == [1] * 4 + [2] * 4
    with JunctionWriter(tmp_path, {}) as out:
        out.add(3, None, tokens(4, width=6))
    with pytest.raises(DataError, match=r"transitions of widths \[5, 6\]"):
        read_transitions(tmp_path)
    with pytest.raises(DataError, match="expected as many hidden states"):
        replace(tokens(1), ids=np.zeros(2, np.int32))
    with pytest.raises(DataError, match="transitions hold NaN"):
        replace(tokens(1), gains=np.full(3, np.nan, np.float32))


def test_refused_junctions() -> None:
    j = small()
    with pytest.raises(DataError, match=r"logits are \[4, 2\], expected \[4, 3\]"):
        replace(j, logits=j.logits[:, :2])
    with pytest.raises(DataError, match="hidden state of the junctions is NaN"):
        replace(j, hidden=np.full_like(j.hidden, np.inf))
    with pytest.raises(DataError, match="infinite values or NaN logits"):
        replace(j, values=np.full_like(j.values, -np.inf))
    with pytest.raises(DataError, match="counts of junctions are negative"):
        replace(j, counts=np.full_like(j.values, -1))


def test_no_prompt_is_on_both_sides() -> None:
    junctions, _ = planted(200)
    train, held = split(junctions, 0.25, seed=1)
    assert len(train) + len(held) == 200
    assert set(train.prompts.tolist()).isdisjoint(held.prompts.tolist())
    assert len(set(held.prompts.tolist())) == 5
    assert same(held, split(junctions, 0.25, seed=1)[1])
    with pytest.raises(DataError, match="1 prompts; expected at least 2"):
        split(small())
    with pytest.raises(ConfigError, match=r"share is 1\.0"):
        split(junctions, 1.0)
