"""Training in several processes, and the words that start them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, SiaError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from sia_convert.cli import main
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.train.config import TrainConfig
from sia_convert.train.launch import launch
from sia_convert.train.launch import main as main_of_launch
from sia_convert.train.loop import train
from sia_convert.train.model import load
from training import two_epochs


@pytest.fixture
def config(make_hf: Callable[..., Path], scored: Path, tmp_path: Path) -> TrainConfig:
    return two_epochs(make_hf(), scored, tmp_path / "value")


def test_two_processes_train_the_model_that_one_does(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches a step: of one process, or one of each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lora = replace(config.lora, dropout=0.0)  # each process draws its own
    config = replace(config, head_hidden=8, lora=lora, accumulate=2, epochs=1)
    alone = train(config)
    two = replace(config, out=f"{config.out}-two", accumulate=1)
    launch(two, tmp_path / "job.json", 2)
    report = json.loads((Path(two.out) / "training.json").read_text())
    assert (alone["processes"], report["processes"]) == (1, 2)
    assert [loss for _, loss in report["loss_curve"]] == pytest.approx([x for _, x in alone["loss_curve"]], abs=1e-5)
    assert report["best"]["loss"] == pytest.approx(alone["best"]["loss"], abs=1e-5)
    one, other = (load(ValueCheckpoint.open(folder)) for folder in (config.out, two.out))
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)
    # The bias began at 0, which is the mean reward: it has learned something.
    assert abs(float(other.head.out.bias) - report["reward_mean"]) > 1e-4


def test_accelerates_own_configuration_passes_through(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], check: bool, env: dict[str, str]) -> object:
        assert env == dict(os.environ)
        asked.append(words)
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr("sia_convert.train.launch.subprocess.run", run)
    own = tmp_path / "fsdp.yaml"
    with pytest.raises(ConfigError, match=r"no file at .*expected what `accelerate config` writes"):
        launch(config, tmp_path / "job.json", accelerate=own)
    own.touch()
    with pytest.raises(SiaError, match="ended with code 1"):
        launch(config, tmp_path / "job.json", 8, own, restart=True)
    words = ["-m", "accelerate.commands.launch", "--config_file", str(own), "--num_processes", "8", "--module"]
    assert asked[0][1:] == [*words, "sia_convert.train.launch", str(tmp_path / "job.json"), "--restart"]
    assert main_of_launch(str(tmp_path / "job.json")) == 2  # eight were asked for, here is one


def test_threads_are_those_of_each_process(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(words: list[str], check: bool, env: dict[str, str]) -> object:
        asked.append(env["OMP_NUM_THREADS"])
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("sia_convert.train.launch.subprocess.run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["train", config.backbone, config.data[0], "--out", str(tmp_path / "value"), "--processes", "2"]
    for more in ([], ["--threads", "3"]):
        assert CliRunner().invoke(main, [*words, *more]).exit_code == 0
    assert asked == ["1", "3"]
    # What the processes read lies beside the folder, wherever that is.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words[4] = "."
    assert CliRunner().invoke(main, words).exit_code == 0 and (tmp_path / "here-train.json").is_file()
