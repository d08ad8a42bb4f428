"""Training as it runs: what is learnt, when it ends, what an interrupted run becomes."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, DataError
from sia_local.files import alone

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
from cuts import Interrupted, at_every_move
from sia_convert.cli import main
from sia_convert.data.examples import Example
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.train import run_folder
from sia_convert.train.config import LoraSettings, Place, TrainConfig
from sia_convert.train.loop import Trainer, _line, train
from sia_convert.train.run_folder import RunFolder
from sia_convert.train.shared import SharedModel
from training import two_epochs


@pytest.fixture
def config(make_hf: Callable[..., Path], scored: Path, tmp_path: Path) -> TrainConfig:
    return two_epochs(make_hf(), scored, tmp_path / "value")


def test_a_run_goes_on_elsewhere_and_under_other_names(
    config: TrainConfig, make_hf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What is merely stored in the model decides nothing; a run of an older program is replaced where that is asked."""
    config, moved = replace(config, epochs=1), tmp_path / "moved"
    report, head = train(config), (Path(config.out) / "head.safetensors").read_bytes()
    ValueCheckpoint.open(config.out).store_spread(0.5, 1, {})
    shutil.copytree(make_hf(), moved)
    capsys.readouterr()
    again = train(replace(config, backbone=str(moved), reward_name="kind", base_name="other"))
    assert "continuing at epoch 2, step 0" in capsys.readouterr().out and again["loss_curve"] == report["loss_curve"]
    found = ValueCheckpoint.open(config.out)
    assert (found.meta.backbone, found.meta.reward_name, found.meta.base_name) == (str(moved), "kind", "other")
    assert found.spread() == 0.5 and (found.folder / "head.safetensors").read_bytes() == head
    monkeypatch.setattr(run_folder, "LAYOUT", 99)
    with pytest.raises(ConfigError, match="or of another version: name another output, or begin again"):
        train(config)
    anew = train(config, anew=True)
    assert "continuing" not in capsys.readouterr().out and anew["loss_curve"] == report["loss_curve"]


def test_the_best_epoch_replaces_the_one_before_whole_or_leaves_none(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between LoRA and head there had been a mix of two epochs."""
    run, out, older = Trainer(config), Path(config.out), tmp_path / "older"

    def save() -> None:
        run.folder.save_model(run.split, 7, run.reader.template, run.stop_token)

    save()
    shutil.move(out, older)
    with torch.no_grad():
        for weight in run.model.trainable().values():
            weight.add_(1.0)

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(older, out)

    def read() -> str | None:
        return ValueCheckpoint.open(out).fingerprint() if (out / "value.json").exists() else None

    found = at_every_move(monkeypatch, begin, save, read)
    assert set(found[:-1]) == {None, ValueCheckpoint.open(older).fingerprint()}
    assert found[-1] not in found[:-1]


def test_held_out_branches_are_read_with_as_few_texts_as_in_training(
    config: TrainConfig, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = {"logits": [0.0] * 2, "means": [0.5, -0.25], "stds": [0.0] * 2, "counts": [2] * 2}
    lines = [json.loads(line) for line in scored.read_text().splitlines()]
    for n, entry in enumerate(lines):
        entry["branches"] = [branch | {"at": at, "ids": [20 + n, 61 + n]} for at in (0, 3)]
    tried = tmp_path / "branched.jsonl"
    tried.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    config = replace(config, data=(str(tried),), loss="branched", held_out=0.9)
    read, values = [], SharedModel.values

    def counted(self: SharedModel, part: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        read.append(len(part))
        return values(self, part)

    monkeypatch.setattr(SharedModel, "values", counted)
    few, whole = Trainer(config), Trainer(replace(config, batch=64))
    texts = len(few.split.held_out)
    figures = few.evaluate()
    assert len(read) > 1 and max(read) == 4 * 5 and sum(read) == texts * 5
    assert whole.evaluate() == pytest.approx(figures, rel=1e-5, abs=1e-6) and read[-1] == texts * 5


@pytest.mark.parametrize("placement", ["separate", "head"])
@pytest.mark.parametrize("saves", [1, 5, 6])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    placement: str, saves: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, placement=placement, head_hidden=8 if placement == "head" else 0)
    whole = train(dataclasses.replace(config, out=f"{config.out}-whole"))
    save_state, left = RunFolder.save_state, [saves]

    def save_then_stop(self: RunFolder, place: Place) -> None:
        save_state(self, place)
        left[0] -= 1
        if not left[0]:
            raise Interrupted

    monkeypatch.setattr(RunFolder, "save_state", save_then_stop)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.setattr(RunFolder, "save_state", save_state)
    report = train(config)
    assert report["epochs"] == whole["epochs"] and report["loss_curve"] == whole["loss_curve"]
    assert len(report["loss_curve"]) == 18
    names = ["head.safetensors", *(["lora_weights/adapter_model.safetensors"] if placement == "separate" else [])]
    for name in names:
        assert (Path(config.out) / name).read_bytes() == (Path(f"{config.out}-whole") / name).read_bytes()


def test_a_learnable_reward_is_learnt(config: TrainConfig) -> None:
    report = train(dataclasses.replace(config, tune="none", epochs=20, patience=20, lr=1e-2))
    losses = [entry["train_loss"] for entry in report["epochs"]]
    assert losses[-1] < 0.5 * losses[0] and report["best"]["loss"] == min(e["loss"] for e in report["epochs"])


def test_branches_are_learnt_and_a_run_goes_on_with_them(
    config: TrainConfig, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even candidates earn more than odd ones at every junction, whatever the text does."""
    lines = [json.loads(line) for line in scored.read_text().splitlines()]
    for n, entry in enumerate(lines):
        ids = [20 + n, 61 + n, 102 + n]
        branch = {"ids": ids, "logits": [0.0] * 3, "means": [(t + 1) % 2 / 4 for t in ids], "stds": [0.0] * 3}
        entry["branches"] = [branch | {"at": at, "counts": [2] * 3} for at in (0, 5)]
    tried = tmp_path / "branched.jsonl"
    tried.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    config = dataclasses.replace(config, data=(str(tried),), tune="none", epochs=6, patience=9, lr=1e-2)
    plain = train(dataclasses.replace(config, loss="td-lambda", out=f"{config.out}-plain"))
    config = dataclasses.replace(config, loss="branched")
    whole = train(config)
    # Beside the loss on the texts stands the one on the differences, which falls too.
    over = [a["train_loss"] - b["train_loss"] for a, b in zip(whole["epochs"], plain["epochs"], strict=True)]
    assert 0 < over[-1] < 0.8 * over[0]
    stopped = dataclasses.replace(config, out=f"{config.out}-stopped", save_every=4)
    save = RunFolder.save_state

    def interrupt(self: RunFolder, place: Place) -> None:
        save(self, place)
        if place.total == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    monkeypatch.setattr(RunFolder, "save_state", save)
    assert train(stopped)["loss_curve"] == whole["loss_curve"]
    with pytest.raises(DataError, match="no text has branches"):
        train(dataclasses.replace(config, data=(str(scored),), out=f"{config.out}-none"))


def test_checkpointing_computes_the_same(config: TrainConfig) -> None:
    config = dataclasses.replace(config, lora=LoraSettings(4, 8, dropout=0.0), epochs=1, accumulate=2, layers=1)
    plain = train(config)
    other = train(dataclasses.replace(config, checkpointing=True, out=f"{config.out}-checkpointed"))
    assert [x for _, x in plain["loss_curve"]] == pytest.approx([x for _, x in other["loss_curve"]], abs=1e-5)
    assert len(plain["loss_curve"]) == 5


def test_training_stops_when_the_held_out_loss_does_and_keeps_the_best(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, worse = Trainer.evaluate, iter([0.3, 0.2, 0.4, 0.5, 0.1])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {**evaluate(self), "loss": next(worse)})
    report = train(dataclasses.replace(config, epochs=9, patience=2))
    assert report["stopped_early"] and len(report["epochs"]) == 4 and report["best"]["epoch"] == 2
    kept = ValueCheckpoint.open(config.out)
    assert kept.meta.train_tokens == report["response_tokens"] // 2
    assert kept.meta.reward_std == report["reward_std"]


def test_lambda_returns_are_no_measure_of_a_model(config: TrainConfig) -> None:
    """They move with its own values: held out, every loss but the trajectory mean is the distance to the reward."""
    held_out = {}
    for loss in ("per-token", "td-lambda"):
        held_out[loss] = Trainer(replace(config, loss=loss, lam=0.5, lora=replace(config.lora, dropout=0.0))).evaluate()
    assert held_out["td-lambda"]["loss"] == held_out["per-token"]["loss"] > 0


def test_one_run_writes_a_folder_and_its_report_is_json(config: TrainConfig, scored: Path, tmp_path: Path) -> None:
    seen: set[int] = set()
    one = tmp_path / "one.jsonl"
    with one.open("w") as out:
        for line in scored.read_text().splitlines(keepends=True):
            if (prompt := json.loads(line)["prompt_id"]) not in seen:
                seen.add(prompt)
                out.write(line)
    only_one = replace(config, data=(str(one),), epochs=1)
    with alone(config.out), pytest.raises(ConfigError, match="another process"):
        train(only_one)
    report = train(only_one)
    assert math.isnan(report["best"]["pairwise"])
    told = (Path(config.out) / "training.json").read_text()
    assert json.loads(told, parse_constant=pytest.fail)["best"]["pairwise"] is None
    assert "no pairs, as no prompt has two texts" in _line(report["best"], True, "mc")


def test_the_command_reports_what_it_learnt(make_hf: Callable[..., Path], scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "value"
    for name in (".state.pt.ab12.tmp", "lora_weights/.adapter_model.safetensors.cd34.tmp"):  # of a killed run
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    some = ["--loss", "td-lambda", "--epochs", "1", "--no-bf16"]
    words = ["train", str(make_hf()), str(scored), "--out", str(out), *some]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert not list(out.rglob("*.tmp"))
    assert " to its lambda-returns, held-out " in result.output and " to the reward, R2 " in result.output
    for name in ("R2", "Spearman", "pairwise", "held-out", "best epoch 1"):
        assert name in result.output
    report = json.loads((out / "training.json").read_text())
    assert {"r2", "spearman", "pairwise"} <= set(report["best"]) and "torch" in report["versions"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    meta = ValueCheckpoint.open(out).meta
    assert (meta.loss, meta.tune, meta.prompt_template) == ("td-lambda 0.95", "lora", tiny.CHAT_TEMPLATE)
    result = CliRunner().invoke(main, [*words, "--lr", "1"])
    assert result.exit_code == 2 and "holds a run with other settings or data" in result.output
