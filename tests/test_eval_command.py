"""`sia-local eval`: which arms it makes, what it leaves in its folder, what it refuses before any work."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sia_local.cli import main
from sia_local.errors import ConfigError
from sia_local.evaluation.arms import Comparison
from sia_local.evaluation.profile import Profile
from sia_local.evaluation.samples import parse_samples

Make = Callable[..., Path]


def test_arms_that_cannot_be_are_refused() -> None:
    for families, rates, betas, said in (
        (("spare",), (0.2,), (1,), "unknown arm 'spare'"),
        (("sparse",), (), (1,), "no rate was given"),
        (("dense",), (0.2,), (), "no beta was given"),
        (("sparse",), (1.5,), (1,), "has the rate 1.5"),
    ):
        with pytest.raises(ConfigError, match=said):
            Comparison(families, rates, betas).arms()
    guides = Comparison(("guide",), (0.1, 0.25), (1,), guide_betas=(10, 20)).arms()[1:]
    assert [(arm.key, arm.source) for arm in guides] == [("guide-r0.25-b10", "guide"), ("guide-r0.25-b20", "guide")]
    assert len({arm.key for arm in Comparison(best_of=(4, 8)).arms()}) == 1 + 16 + 4 + 16 + 2 + 4
    steered = [a.series for a in Comparison(("gain", "bon"), (0.4,), (0.5,), best_of=(4,)).arms()]
    assert steered == ["off", "gain 40 %", "best of N", "gain 40 %, best of 4"]
    both = Comparison(("sparse", "kl-budget", "bon"), best_of=(4, 8), picks=("reward", "value")).arms()
    assert len({arm.key for arm in both}) == 1 + 16 + 3 + 2 * (2 + 4)
    one = Comparison(("sparse", "bon"), (0.2,), (1,), best_of=(1, 4), picks=("reward", "value")).arms()
    assert [arm.key for arm in one] == ["off", "sparse-r0.2-b1", "bon", "bon-n4", "bon-n4-by-value"]


def cli(*args: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, args)])


FEW = ["-n", "6", "--threads", "1", "--rates", "0.3", "--betas", "1", "--best-of", "2", "--slots", "3"]


def test_guides_alone_steer_every_way(base_gguf: Path, make_gguf: Make, tmp_path: Path) -> None:
    arms = Comparison(("sparse", "dense", "bon"), (0.2,), (1,), guide_betas=(3,), best_of=(4,)).arms("guide")
    assert [arm.key for arm in arms] == [
        "off", "sparse-r0.2-b3-guide", "dense-b3-guide", "bon-n4", "sparse-r0.2-b3-n4-guide"
    ]  # fmt: skip
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("ab\ncd\n")
    args = ["-m", base_gguf, "-v", "none", "--guide-plus", make_gguf("base", seed=3), "--prompts", prompts, *FEW]
    args += ["--ctx", 128, "--judge", "none", "--no-report"]
    result = cli(*args, "--arms", "off,dense,random,gain", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert [row["key"] for row in rows] == ["off", "dense-b1-guide", "random-r0.3-b1-guide", "gain-r0.3-b1-guide"]
    assert rows[1]["junction_rate"] == 1.0 and 0 < rows[2]["junction_rate"] < 1
    assert [row["value_rows"] for row in rows[:2]] == [0, rows[1]["base_rows"]]


def test_value_files_apart_have_arms_of_their_own(make_gguf: Make, tmp_path: Path) -> None:
    base, values = make_gguf("base"), [make_gguf("merged", seed=1), make_gguf("qhead", seed=1)]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("ab\ncd\n")
    words = [word for value in values for word in ("-v", str(value))]
    command = ["eval", "-m", str(base), *words, "--apart", "--prompts", str(prompts), "--arms", "off,dense"]
    command += ["--betas", "1", "--beta-unit", "raw", "-n", "4", "--ctx", "128", "--threads", "1", "--judge", "none"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out"), "--no-report"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert [row["series"] for row in rows] == ["off", *(f"dense, {value.stem}" for value in values)]
    merged, qhead = rows[1:]
    assert merged["value_rows"] == 40 and qhead["value_rows"] == 0
    alone = CliRunner().invoke(main, [*command[:5], *command[7:], "--out", str(tmp_path / "one")])
    assert alone.exit_code == 2 and "needs two or more" in alone.output


def test_prompts_that_do_not_fit_are_left_out_and_counted(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    prompts, profile, said = (
        tmp_path / "prompts.txt",
        tmp_path / "p.toml",
        "1 of 3 prompts are left out: they do not fit",
    )
    prompts.write_text(f"ab\n{'a dog ' * 64}\ncd\n")
    few = ["-m", base_gguf, "-v", value_gguf, "--prompts", prompts, "-n", 4, "--ctx", 64, "--threads", 1]
    arms = ["--arms", "off,sparse", "--rates", 0.5, "--betas", 1, "--beta-unit", "raw", "--judge", "none"]
    result = cli(*few, *arms, "--no-report", "--out", tmp_path / "out")
    assert result.exit_code == 0 and f"{said} the context of 64 tokens" in result.stderr, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["prompts"] == 2 and [row["n"] for row in summary["rows"]] == [2, 2]
    made = CliRunner().invoke(main, ["calibrate", *map(str, few), "--rate", "0.5", "-o", str(profile)])
    assert made.exit_code == 0 and said in made.stderr, made.output
    assert Profile.read(profile).measured["prompts"] == 2
    prompts.write_text("a dog " * 64)
    assert "the context holds 64; shorten" in cli(*few, *arms, "--out", tmp_path / "none").stderr


def test_prompts_that_the_value_models_template_makes_too_long_are_left_out(
    base_gguf: Path, make_gguf: Make, tmp_path: Path
) -> None:
    """They fit the base, and had failed the arm."""
    (tmp_path / "prompts.txt").write_text(f"ab\n{'a dog ' * 4}\ncd\n")
    wordy = make_gguf("merged", seed=1, template="{{ messages[0].content * 16 }}")
    args = ["-m", base_gguf, "-v", wordy, "--prompts", tmp_path / "prompts.txt", "-n", 4, "--ctx", 72, "--threads", 1]
    args += ["--betas", 1, "--beta-unit", "raw", "--judge", "none", "--best-of", 2, "--best-of-by", "value"]
    result = cli(*args, "--arms", "off,dense,bon", "--no-report", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "1 of 3 prompts are left out: as the arms read them" in result.stderr, (
        result.output
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["failed"] and [row["n"] for row in summary["rows"]] == [2] * len(summary["rows"])
    (tmp_path / "prompts.txt").write_text("a dog " * 4)
    failing = cli(*args, "--arms", "off,dense", "--no-report", "--out", tmp_path / "none")
    assert failing.exit_code == 1 and re.search(r"dense-b1 failed: the prompt is \d+ tokens for", failing.stderr)


def test_one_command_leaves_samples_tables_and_pictures(
    base_gguf: Path, value_gguf: Path, make_gguf: Make, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("id,prompt\na,hello there\nb,a dog\nc,the king\nd,night\n")
    out, alpaca = tmp_path / "out", tmp_path / "model_outputs.json"
    args = ["-m", base_gguf, "-v", value_gguf, "--prompts", tmp_path / "prompts.csv", "--limit", 3, *FEW]
    args += ["--out", out, "--reward", "vader", "--alpaca", alpaca]
    result = cli(*args)
    assert result.exit_code == 0, result.output
    assert "only 3 prompts" in result.stderr and "| sparse 30 %, best of 2 | 1 |" in result.stdout
    assert sorted(p.name for p in out.iterdir()) == [
        "frontier.svg", "report.html", "samples.jsonl", "summary.json", "table.md"
    ]  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert [row["n"] for row in summary["rows"]] == [3] * 6 and "judge" in summary["rows"][0]
    assert summary["command"].startswith("sia-local eval --model ") and "--rates 0.3" in summary["command"]
    written = json.loads(alpaca.read_text())
    assert [(o["instruction"], o["generator"]) for o in written] == [
        ("hello there", "sia-local sparse-r0.3-b1"), ("a dog", "sia-local sparse-r0.3-b1"),
        ("the king", "sia-local sparse-r0.3-b1"),
    ]  # fmt: skip
    before = (out / "samples.jsonl").read_bytes()
    again = cli(*args)
    marked = [line for line in again.stdout.replace("*", "").splitlines() if not line.startswith("tokens/s marked ")]
    assert "* |" in again.stdout and [line for line in marked if line] == [
        line for line in result.stdout.splitlines() if line
    ]
    assert (out / "samples.jsonl").read_bytes() == before
    for changed, said in (
        (["-k", 4], "made with config k = 10, now it is 4"),
        (["-n", 7], "made with max_tokens = 6, now it is 7"),
        (["--judge", "none"], "made with judge = None, now it is 'none'"),
        (["-v", make_gguf("lean", seed=1)], "texts steered by other files than"),
    ):
        refused = cli(*args, *changed)
        assert refused.exit_code == 2 and said in refused.stderr, refused.stderr
    # A guide of another vocabulary fails as an arm; the others stand.
    odd = make_gguf("base", n_vocab=330)
    failed = tmp_path / "failed.json"
    failing = cli(*args, "--guide-plus", odd, "--no-report", "--alpaca", failed, "--alpaca-arm", "guide-r0.3-b1")
    assert f"{failed} is not written: its arm guide-r0.3-b1 failed" in failing.stderr and not failed.exists()
    assert failing.exit_code == 1 and "Error: the arm guide-r0.3-b1 failed:" in failing.stderr
    assert "different vocabularies" in failing.stderr and "| dense | 1 |" in failing.stdout
    table = (out / "table.md").read_text()
    assert "The arm guide-r0.3-b1 failed:" in table and "different vocabularies" in table
    assert not (out / "report.html").exists()  # of the run before
    mended = cli(*args, "--guide-plus", make_gguf("base", seed=3), "--no-report")
    assert mended.exit_code == 0 and "| guide 30 % | 1 |" in mended.stdout, mended.output


def test_what_is_missing_is_named_before_any_work(
    base_gguf: Path, value_gguf: Path, make_gguf: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", tmp_path / "out"]
    for args, said in (
        (["-m", base_gguf, "--arms", "dense"], "the arm 'dense' has no value model"),
        (["-m", base_gguf, "--arms", "off,bon", "--best-of-by", "value"], "value was given without a value model"),
        (["-m", base_gguf, "--arms", "off,bon", "--best-of-by", "luck"], "by 'luck'; expected one of reward, value"),
        (["-m", base_gguf, "--arms", "guide"], "the arm 'guide' has no model; give one with --guide-plus"),
        (["-m", base_gguf, "-v", value_gguf, "--betas", "1,x"], "--betas is '1,x'; expected numbers"),
        (["-m", base_gguf, "-v", value_gguf, "--judge", "none.npz"], "the judge 'none.npz' does not exist"),
        (["-m", base_gguf, "-v", value_gguf, "--prompts", "none.txt"], "'none.txt' does not exist"),
        (["-m", base_gguf, "-v", value_gguf, "--alpaca", "a", "--alpaca-arm", "b"], "no arm is named 'b'; expected"),
    ):
        result = cli(*FEW, *args, *out)
        assert result.exit_code == 2 and said in result.stderr.splitlines()[-1], result.output
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    result = cli("-m", base_gguf, "-v", value_gguf, *FEW, *out)
    assert result.exit_code == 2 and "pip install 'sia-local[rewards]'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_edited_reward_scores_all_texts_anew(
    base_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its file, and had scored only what came later; a folder of an older program has no mark yet."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("ab\ncd\nef\n")
    args = ["-m", base_gguf, "--prompts", "prompts.txt", "--arms", "off", "-n", 4, "--threads", 1, "--no-report"]
    args += ["--reward", "edited_reward:score", "--judge", "none", "--ctx", 64]

    def rewards(limit: int, worth: float) -> list[float | None]:
        Path("edited_reward.py").write_text(f"def score(prompts, responses): return [{worth}] * len(prompts)")
        monkeypatch.delitem(sys.modules, "edited_reward", raising=False)
        importlib.invalidate_caches()
        result = cli(*args, "--limit", limit)
        assert result.exit_code == 0, result.output
        samples = parse_samples(Path("eval/samples.jsonl").read_text(), "")[2]
        return [found.reward for found in {s.place: s for s in samples}.values()]

    assert rewards(2, 1.0) == [1.0, 1.0]
    assert rewards(3, 22.0) == [22.0] * 3
    before = Path("eval/samples.jsonl").read_text()
    assert rewards(3, 22.0) == [22.0] * 3 and Path("eval/samples.jsonl").read_text() == before
    marked = [line for line in before.splitlines(True) if "reward files" not in line]
    Path("eval/samples.jsonl").write_text("".join(marked))
    assert rewards(3, 333.0) == [22.0] * 3
