"""sia-local inspect, and model files: what one holds, which fit, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import Make, generate, refused, run

pytestmark = pytest.mark.usefixtures("no_models")


def test_inspect_says_what_a_file_holds(base_gguf: Path, head_gguf: Path, lean_gguf: Path, make_gguf: Make) -> None:
    text = run("inspect", base_gguf).stdout
    for part in ("base model", "qwen3", "320 tokens, gpt2", "2 × 64", "512 tokens", "chat template"):
        assert part in text
    assert "head on its base's hidden states" in run("inspect", head_gguf).stdout
    qhead = run("inspect", make_gguf("qhead")).stdout
    assert "value model without a decode" in qhead and "placements" not in qhead
    whole = json.loads(run("inspect", lean_gguf, "--json").stdout)
    template = whole["sia"]["sia.prompt_template"].replace("\n", "⏎")
    assert f"  {template[:99]}…\n" in run("inspect", lean_gguf).stdout
    assert whole["kind"] == "value" and whole["layout"] == "lean" and whole["sia"]["sia.head.weight"] == "64 numbers"
    assert whole["vocab_sha256"] == json.loads(run("inspect", base_gguf, "--json").stdout)["vocab_sha256"]


def test_models_known_by_name_are_inspected_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIA_MODELS")
    told = run("inspect", "story", "-v", "happy").stdout
    assert "demo-base.gguf\n  kind" in told and told.endswith("\ndemo-qhead.gguf fits demo-base.gguf\n")
    assert json.loads(run("inspect", "plain", "--json").stdout)["kind"] == "value-qhead"
    refused(run("inspect", "smollm2"), "run `sia-local fetch smollm2`")


@pytest.mark.parametrize("kind", ["merged", "lean", "adapter", "head", "qhead"])
def test_every_kind_of_value_file_steers_and_is_found_to_fit(make_gguf: Make, kind: str) -> None:
    base, value = make_gguf("base"), make_gguf(kind, seed=0 if kind == "head" else 1)
    result = generate(base, value, "-p", "hello", "--gate", "dense", "-k", "4")
    assert result.exit_code == 0 and "100.0 % junctions" in result.stderr
    told = run("inspect", base, "--value", value)
    assert told.exit_code == 0 and told.stdout.strip().endswith(f"{value.name} fits {base.name}")


def test_files_that_are_no_models(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    empty, text, cut, stub = (tmp_path / name for name in ("empty.gguf", "text.gguf", "cut.gguf", "stub.gguf"))
    empty.touch()
    text.write_text("once upon a time")
    cut.write_bytes(base_gguf.read_bytes()[:-5000])
    stub.write_bytes(base_gguf.read_bytes()[:3000])
    cases = {
        tmp_path / "missing.gguf": "no such file",
        tmp_path: "no such file",
        empty: "is empty",
        text: "starts with b'once'",
        cut: "truncated",
        stub: "truncated",
    }
    for path, part in cases.items():
        refused(generate(path, None, "-p", "x"), str(path), part)
        refused(run("inspect", path), str(path), part)
        refused(generate(base_gguf, path, "-p", "x"), str(path))
    cut.write_bytes(value_gguf.read_bytes()[:-5000])
    refused(generate(base_gguf, cut, "-p", "x"), str(cut), "truncated")


def test_a_value_model_without_a_head(base_gguf: Path) -> None:
    for result in (generate(base_gguf, base_gguf, "-p", "x"), run("inspect", base_gguf, "-v", base_gguf)):
        assert result.exit_code == 2
        assert "holds no value head" in result.stderr and "sia-convert export" in result.stderr


def test_vocabularies_that_differ(base_gguf: Path, make_gguf: Make) -> None:
    other = make_gguf("merged", seed=1, n_vocab=330)
    refused(generate(base_gguf, other, "-p", "x"), "different vocabularies", base_gguf.name, other.name)
    told = run("inspect", base_gguf, "-v", other)
    assert told.exit_code == 2 and "different vocabularies" in told.stderr and "fits" not in told.stdout
    for option in (["--guide-plus", other], ["--guide-plus", base_gguf, "--guide-minus", other]):
        refused(generate(base_gguf, None, "-p", "x", *option), "different vocabularies", other.name, "generate --nudge")


def test_a_recurrent_value_model(base_gguf: Path, make_gguf: Make) -> None:
    mamba = make_gguf("merged", "mamba", seed=1)
    assert "recurrent: a branch copies" in run("inspect", mamba).stdout
    result = generate(base_gguf, mamba, "-p", "x", "--gate", "dense")
    assert result.exit_code == 0, result.output
