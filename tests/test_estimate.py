"""The arithmetic by hand, and against what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from sia_convert.cli import main
from sia_convert.costs.estimate import Work, estimate, steered_speed, table
from sia_convert.costs.shapes import SHAPES, Shape, shape_of

from sia_local.errors import ConfigError

DEMO = str(Path(__file__).parents[1] / "models" / "demo-base.gguf")
STORIES = {"quant": "Q8_0", "prompts": 1500, "samples": 5, "prompt_tokens": 21, "slots": 16, "batch": 32}
REAL: dict[str, Any] = {"quant": "Q4_1", "prompt_tokens": 47, "tokens": 62, "slots": 8, "placement": "head"}
REAL |= {"hardware": "2-cores-avx2"}
BENCH: dict[str, Any] = {"prompt_tokens": 64, "tokens": 64}


def test_a_shape_by_hand() -> None:
    shape = Shape(2, 8, 16, 4, 2, 4, 100)
    assert shape.blocks == 2 * (8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 16)
    assert (shape.weights, shape.kv_bytes) == (shape.blocks + 800, 2 * 2 * 2 * 2 * 4)
    assert shape.flops(10, logits=True) == 2 * (shape.blocks + 800) + 4 * 2 * 16 * 10
    # Published: 14.8 and 13.2 without embeddings, 8.0, 70.6 billion weights.
    assert SHAPES["qwen3-14b"].weights == pytest.approx(14.8e9, rel=0.01)
    assert SHAPES["qwen3-14b"].blocks == pytest.approx(13.2e9, rel=0.01)
    assert SHAPES["llama-3.1-8b"].weights == pytest.approx(8.03e9, rel=0.01)
    assert SHAPES["llama-3.1-70b"].weights == pytest.approx(70.6e9, rel=0.01)
    demo = shape_of(DEMO)
    assert (demo.layers, demo.width, demo.vocabulary, demo.tied) == (6, 256, 4096, True)
    assert demo.weights == pytest.approx(5.8e6, rel=0.01)


# What, base, work, step, seconds: models/README.md, models/smollm2-plain.toml.
RUNS: list[tuple[str, str, dict[str, Any], str, float]] = [
    ("7,500 stories, 6 to 9 min", DEMO, STORIES, "rollouts", 450),
    ("7,500 stories, a fifth of their tokens steered", DEMO, STORIES | {"rate": 0.2}, "rollouts", 600),
    ("LoRA on 7,500 stories", DEMO, STORIES, "train", 420),
    ("LoRA on 15,000 stories", DEMO, STORIES | {"samples": 10}, "train", 900),
    (
        "2.3 texts a second, a process a core",
        "smollm2-135m",
        REAL | {"samples": 1, "processes": 2},
        "rollouts",
        1e4 / 2.3,
    ),
    # 35 to 140 texts a minute on one thread: the geometric mean, on two; an epoch of the head over 1,809 texts, 8 s.
    (
        "frozen states and eight epochs of a head",
        "smollm2-135m",
        REAL | {"samples": 1, "prompts": 1809, "epochs": 8},
        "train",
        1809 / 70 * 60 / 2 + 8 * 8,
    ),
]


@pytest.mark.parametrize(("what", "base", "work", "step", "measured"), RUNS, ids=[run[0] for run in RUNS])
def test_runs_are_foretold_within_half(what: str, base: str, work: dict[str, Any], step: str, measured: float) -> None:
    found = next(cost.seconds for cost in estimate(base, Work(**work)) if cost.step == step)
    assert 1 / 1.5 < found / measured < 1.5, f"{what}: {found:.0f} s, measured {measured:.0f}"


@pytest.mark.parametrize(
    ("placement", "k", "rate", "measured"),
    [("separate", 10, 0, 30.1), ("separate", 10, 0.2, 18.5), ("separate", 10, 1, 8.5), ("head", 4, 0.2, 25.3),
     ("head", 4, 1, 15.8)],
)  # fmt: skip
def test_steering_is_foretold_within_half(placement: str, k: int, rate: float, measured: float) -> None:
    """docs/speed.md, Qwen3-0.6B's shape on two cores of a Xeon."""
    found = steered_speed("qwen3-0.6b", Work(placement=placement, k=k, **BENCH), rate)
    assert 1 / 1.5 < found / measured < 1.5, found


def test_what_is_shared_or_larger_costs_as_it_should() -> None:
    def seconds(base: str = "qwen3-14b", **work: Any) -> dict[str, float]:
        return {c.step: c.seconds for c in estimate(base, Work(**{"hardware": "h100", **work}))}

    one = seconds(reward="qwen3-8b", distill=1000)
    assert set(one) == {"rollouts", "score", "train", "verify", "distill"}
    many = seconds(reward="qwen3-8b", distill=1000, machines=4)
    assert all(many[step] == pytest.approx(one[step] / 4) for step in ("rollouts", "score", "train", "distill"))
    assert many["verify"] == one["verify"]
    assert seconds(samples=8)["train"] == pytest.approx(2 * seconds(samples=4)["train"])
    assert seconds(placement="head")["train"] < seconds(placement="adapter")["train"] / 2
    assert seconds(value="qwen3-0.6b")["train"] < seconds()["train"] / 10
    assert "score" not in seconds()


def test_what_the_arithmetic_is_not_of_is_refused(make_gguf: Callable[..., Path]) -> None:
    """Experts had counted as one dense layer."""
    with pytest.raises(ConfigError, match=r"has \d+ experts; expected a dense transformer"):
        shape_of(str(make_gguf(arch="qwen3moe")))
    with pytest.raises(ConfigError, match="the placement head is trained on the base; leave out value"):
        Work(placement="head", value="qwen3-0.6b")


def test_the_table_adds_up_and_says_what_does_not_fit() -> None:
    work = Work(hardware="rtx-4090", price=0.5, machines=2)
    costs = estimate("llama-3.1-70b", work)
    lines = table(costs, work).splitlines()
    assert lines[0].split() == ["step", "tokens", "operations", "memory", "time", "share", "cost"]
    assert float(lines[len(costs) + 1].split()[-1]) == pytest.approx(sum(c.seconds for c in costs) / 3600, abs=0.01)
    assert "not measured" in lines[-2] and "do not fit its 24" in lines[-1]
    done = CliRunner().invoke(main, ["estimate", "smollm2-135m", "--placement", "head", "--prompts", "1000"])
    assert done.exit_code == 0 and "fitted to runs" in done.output and "with a fifth of them steered" in done.output
    for wrong, message in (
        (Work(hardware="pda"), "expected one of 2-cores"),
        (Work(value="none"), "path of a GGUF or"),
    ):
        with pytest.raises(ConfigError, match=message):
            estimate("qwen3-0.6b", wrong)
