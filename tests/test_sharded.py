"""A backbone that several processes share: what FSDP and DeepSpeed train is what one process does.

Each run is interrupted after its first saved state, and continued.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.train.config import LoraSettings, TrainConfig
from sia_convert.train.launch import _starter
from sia_convert.train.loop import train
from sia_convert.train.model import load

MACHINE = {
    "compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "main_process_port": 0,
    "mixed_precision": "no", "dynamo_backend": "no", "use_cpu": False,
}  # fmt: skip
FSDP = {
    "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_sync_module_states": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(make_hf: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Two epochs of nine batches, four an optimiser step and one in the last, where a process has none of its own."""
    folder = tmp_path_factory.mktemp("sharded")
    data = tiny.tiny_trajectories(folder / "scored.jsonl", make_hf(), prompts=10)
    lora = LoraSettings(r=4, alpha=8, dropout=0.0)  # each process draws its own
    return TrainConfig(
        backbone=str(make_hf()), data=(str(data),), out=str(folder / "one"), lora=lora, epochs=2, batch=4, accumulate=4,
        lr=3e-3, head_hidden=8, clip=0.05, save_every=2, bf16=False,
    )  # fmt: skip


def run(accelerate: dict[str, Any], runs: list[tuple[dict[str, str], TrainConfig]], folder: Path) -> list[str]:
    """Two processes train each of `runs`, with what its environment adds to accelerate's; what wrapped the backbone."""
    told, job = folder / "accelerate.yaml", folder / "job.json"
    told.write_text(json.dumps(MACHINE | accelerate))  # JSON is YAML
    job.write_text(json.dumps([(added, dataclasses.asdict(config)) for added, config in runs]))
    words = [sys.executable, *_starter(2, told)[:-1], str(Path(__file__).with_name("sharded.py")), str(job)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("continuing at epoch") == len(runs), done.stdout
    return [line.removeprefix("as ") for line in done.stdout.splitlines() if line.startswith("as ")]


def same(one: TrainConfig, two: TrainConfig) -> None:
    alone, shared = (json.loads((Path(c.out) / "training.json").read_text()) for c in (one, two))
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert [loss for _, loss in shared["loss_curve"]] == pytest.approx([x for _, x in alone["loss_curve"]], abs=1e-5)
    assert [e["loss"] for e in shared["epochs"]] == pytest.approx([e["loss"] for e in alone["epochs"]], abs=1e-5)
    models = [load(ValueCheckpoint.open(c.out)) for c in (one, two)]
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_fsdp_trains_the_model_that_one_process_does(
    recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = {
        "lora": recipe,
        "full": replace(recipe, out=f"{recipe.out}-full", tune="full"),
        "head": replace(recipe, out=f"{recipe.out}-head", placement="head"),
    }
    runs = [
        (added, replace(alone[name], out=str(tmp_path / f"{name}{i}"), accumulate=2))
        for i, (name, added) in enumerate((
            ("lora", {}), ("full", {}), ("head", {}),
            ("lora", {"FSDP_VERSION": "1"}), ("lora", {"ACCELERATE_USE_FSDP": "false"}),
        ))
    ]  # fmt: skip
    kinds = run({"distributed_type": "FSDP", "fsdp_config": FSDP}, runs, tmp_path)
    assert kinds == [
        "FSDP FSDPPeftModel", "FSDP FSDPQwen3Model", "FSDP FSDPQwen3Model", "FSDP FullyShardedDataParallel",
        "MULTI_CPU DistributedDataParallel",
    ]  # fmt: skip
    for config in alone.values():
        train(config)
    for _, config in runs:
        same(alone[Path(config.out).name[:4]], config)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_trains_the_model_that_one_process_does(
    stage: int, recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed clips the backbone alone: here nothing is to be clipped."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = replace(recipe, clip=1e3, out=f"{recipe.out}-unclipped-{stage}")
    shared = replace(recipe, out=str(tmp_path / "two"), accumulate=2)
    settings = {"zero_stage": stage, "gradient_accumulation_steps": 4, "zero3_init_flag": stage == 3}
    kinds = run({"distributed_type": "DEEPSPEED", "deepspeed_config": settings}, [({}, shared)], tmp_path)
    assert kinds == ["DEEPSPEED DeepSpeedEngine"]
    train(recipe)
    same(recipe, shared)
