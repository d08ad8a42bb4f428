from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sia_local.errors import ConfigError, DataError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
from click.testing import CliRunner
from sia_convert.cli import main
from sia_convert.data.trajectories import read_trajectories
from sia_convert.make import make, read_plan

PLAN = """
work = "work"
threads = 1

[base]
hf = "{base}"
out = "base.gguf"
dtype = "f32"
quantize = ["Q8_0"]

[rollouts]
prompts = "prompts.txt"
samples = 3
max_tokens = 10
n_ctx = 128

[reward]
source = "hf:./reward"

[value]
backbone = "{value}"
loss = "per-token"
lora = {{ r = 4, alpha = 8, dropout = 0.1 }}
epochs = 2
batch = 6
lr = 1e-3
bf16 = false

[export]
out = "value"
layout = "lean"
quantize = ["Q8_0"]

[verify]
limit = 6
per_trajectory = 4
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, make_hf: Callable[..., Path]) -> Path:
    """A plan whose value backbone is another, narrower model than its base, in a folder with all that it names."""
    folder = tmp_path_factory.mktemp("chain")
    tiny.tiny_reward(folder / "reward")
    words = ("sad", "old", "bad", "kind", "big", "lost")
    (folder / "prompts.txt").write_text("\n".join(f"the {word} king" for word in words))
    value = make_hf("qwen3", hidden_size=32, seed=4)
    (folder / "plan.toml").write_text(PLAN.format(base=make_hf(), value=value))
    return folder / "plan.toml"


def run(*paths: Path) -> list[str]:
    """Names of the steps that did something."""
    lines: list[str] = []
    make(*paths, echo=lines.append)
    return [line.removesuffix(" …") for line in lines if line.endswith(" …")]


def test_chain_ends_in_a_verified_q8_0_and_reruns_only_what_changed(plan: Path) -> None:
    everything = [
        "base to GGUF", "base to Q8_0", "rollouts", "score", "train", "unseen rollouts", "spread", "export",
        "value to Q8_0", "verify",
    ]  # fmt: skip
    assert run(plan) == everything
    report = json.loads((plan.parent / "work/verify.json").read_text())
    assert [(row["kind"], row["type"], row["failures"]) for row in report["rows"]] == [
        ("lean", "F32", []), ("lean", "Q8_0", []),
    ]  # fmt: skip
    assert report["rows"][0]["max_abs"] < 1e-3 and report["rows"][0]["junctions"] >= 12
    training = json.loads((plan.parent / "work/value/training.json").read_text())
    assert training["config"]["reward_name"] == "hf:reward" and training["config"]["base_name"] == "base"
    assert (plan.parent / "value-Q8_0.gguf").is_file() and (plan.parent / "base.gguf").is_file()

    assert run(plan) == []
    change = plan.with_name("change.toml")
    change.write_text("[verify]\nlimit = 6\nper_trajectory = 5\n")
    assert run(plan, change) == ["verify"]
    change.write_text("[value]\nlr = 2e-3\n[verify]\nper_trajectory = 5\n")
    assert run(plan, change) == ["train", "spread", "export", "value to Q8_0", "verify"]
    (plan.parent / "value-Q8_0.gguf").unlink()
    assert run(plan, change) == ["value to Q8_0"]


def test_a_base_that_is_only_a_gguf_is_its_own_backbone(plan: Path) -> None:
    change = plan.with_name("shipped.toml")
    sections = ("work = 'shipped'", "[base]", "gguf = 'base.gguf'", "[value]", "backbone = 'base.gguf'", "[verify]")
    change.write_text("\n".join([*sections, "limit = 4", ""]))
    assert run(plan, change) == [
        "rollouts", "score", "backbone from GGUF", "train", "unseen rollouts", "spread", "export", "value to Q8_0",
        "verify",
    ]  # fmt: skip
    rows = json.loads((plan.parent / "shipped/verify.json").read_text())["rows"]
    assert [(row["type"], row["failures"]) for row in rows] == [("F32", []), ("Q8_0", [])]
    assert run(plan, change) == []


def test_a_second_round_learns_from_what_the_first_one_steers(plan: Path) -> None:
    change = plan.with_name("steered.toml")
    sections = ("work = 'second'", "[base]", "gguf = 'base.gguf'", "[steered]", "samples = 2", "[verify]", "limit = 4")
    change.write_text("\n".join(sections))
    steps = [
        "rollouts", "score", "first round", "unseen rollouts", "first spread", "first export", "steered rollouts",
        "score steered", "second round", "spread", "export", "value to Q8_0", "verify",
    ]  # fmt: skip
    assert run(plan, change) == steps
    work = plan.parent / "second"
    plain, steered = (list(read_trajectories([work / name])) for name in ("scored.jsonl", "steered-scored.jsonl"))
    assert {t.id for t in steered} == {f"{p}-{j}" for p in range(6) for j in range(2)}
    assert len(plain) == 18 and {t.response for t in steered} - {t.response for t in plain}
    first, second = (json.loads((work / name / "training.json").read_text()) for name in ("first", "value"))
    assert (len(first["config"]["data"]), len(second["config"]["data"])) == (1, 2)
    assert run(plan, change) == []
    change.write_text("\n".join(sections).replace("samples = 2", "samples = 2\nbeta = 1.0"))
    assert run(plan, change) == steps[steps.index("steered rollouts") :]


def test_a_file_beyond_its_tolerance_fails_the_chain(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sia_convert.proof.verify.MAX_DIFFERENCE", {"F32": 1e-12})
    change = plan.with_name("fail.toml")
    change.write_text("[verify]\nlimit = 4\n")
    result = CliRunner().invoke(main, ["make", str(plan), str(change)])
    assert result.exit_code == 2
    assert re.search(r"FAILED: max \|dV\| .* > 1e-12", result.output)
    assert result.output.splitlines()[-1].startswith("Error: value-F32.gguf: beyond the tolerance")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("work = 1\n", ConfigError, "lacks base, rollouts, reward, value, export"),
        ("[rollout]\n", ConfigError, "unknown 'rollout'; expected work, threads"),
        ("[export]\nlayuot = 'lean'\n", ConfigError, r"\[export\] has no setting 'layuot'; expected out, layout"),
        ("[value\n", DataError, "is not valid TOML"),
    ],
)
def test_a_wrong_plan_is_one_sentence(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_plan(path)


def test_a_wrong_training_setting_is_one_sentence(plan: Path) -> None:
    change = plan.with_name("wrong.toml")
    change.write_text("[value]\nlearning_rate = 1\n")
    with pytest.raises(ConfigError, match=r"\[value\] has no setting 'learning_rate'"):
        make(plan, change, echo=lambda line: None)
