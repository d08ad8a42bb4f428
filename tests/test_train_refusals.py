"""What training refuses, with one sentence, and leaves as it was."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, DataError, IncompatibleError, ModelFileError, NumericError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
from safetensors.torch import load_file, save_file
from sia_convert.cli import main
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.formats.export import export_value
from sia_convert.train.config import LoraSettings, TrainConfig
from sia_convert.train.loop import Trainer, train
from sia_convert.train.model import _check_stored, build
from training import two_epochs


@pytest.fixture
def config(make_hf: Callable[..., Path], scored: Path, tmp_path: Path) -> TrainConfig:
    return two_epochs(make_hf(), scored, tmp_path / "value")


def test_a_lora_over_what_the_checkpoint_lacks_is_refused(make_hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(make_hf(), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"hf lacks 1 weights of its model, such as .*v_proj\.weight"):
        build(folder, "lora", LoraSettings())
    shutil.copy(make_hf() / "model.safetensors", folder)
    model = build(folder, "lora", LoraSettings()).backbone
    save_file({f"other.{name}": x for name, x in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"hf has no layers\.0\..*\.weight, which a LoRA was to change"):
        _check_stored(model, folder)


def test_a_tokenizer_without_an_end_needs_one_where_texts_are_learnt_alone(
    config: TrainConfig, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(config.backbone, tmp_path / "hf")
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    config = replace(config, backbone=str(tmp_path / "hf"), template="raw", epochs=1)
    with pytest.raises(ConfigError, match="no stop token '': name one with --stop-token"):
        Trainer(config)
    train(replace(config, stop_token="<|im_end|>"))
    found = ValueCheckpoint.open(config.out)
    assert found.meta.stop_token == 2
    row = tiny.prove(
        found, export_value(found, tmp_path / "v.gguf", tiny_base), tiny_base, Path(config.data[0]), limit=2
    )
    assert row.failures == ()


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"\x80" + whole[1:]])
def test_a_damaged_state_says_how_to_begin_again(config: TrainConfig, damage: Callable[[bytes], bytes]) -> None:
    config = replace(config, epochs=1, tune="none")
    train(config)
    state = Path(config.out) / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(ConfigError, match=r"state.pt is damaged: begin again with --restart"):
        train(config)
    assert train(config, anew=True)["steps"] == 9


def test_a_run_over_another_backbone_under_the_same_path_is_not_continued(
    config: TrainConfig, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(make_hf(), folder)
    config = replace(config, backbone=str(folder), epochs=1, tune="none")
    train(config)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="holds a run with other settings or data"):
        train(config)


def _rewritten(scored: Path, target: Path, **changes: Any) -> str:
    entries = [{**json.loads(line), **changes} for line in scored.read_text().splitlines()]
    target.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": 0.5}, "all 40 rewards are 0.5: a constant reward teaches nothing"),
        ({"reward": float("nan")}, "trajectory 0-0 has reward nan: expected a finite number"),
        ({"reward": None}, "trajectory 0-0 has no reward: run `sia-convert score` first"),
        ({"tokens": [3, 400]}, "hold token 400, the backbone's vocabulary ends at 399"),
        ({"tokens": []}, "are empty or longer than 512 tokens"),
        ({"prompt": "the king"}, "all trajectories answer one prompt"),
        ({"tokens": "x"}, "line 1: "),
        ({"finish": "eos"}, "finish is 'eos', expected 'stop' or 'length'"),
    ],
)
def test_bad_data_is_one_sentence(
    changes: dict[str, Any], message: str, config: TrainConfig, scored: Path, tmp_path: Path
) -> None:
    if changes.get("tokens") == []:
        changes = {**changes, "finish": "length"}
    path = _rewritten(scored, tmp_path / "bad.jsonl", **changes)
    with pytest.raises(DataError, match=message):
        train(dataclasses.replace(config, data=(path,)))
    assert not (Path(config.out) / "value.json").exists()


def test_an_empty_file_and_wrong_settings_are_one_sentence(
    config: TrainConfig, tmp_path: Path, make_hf: Callable[..., Path]
) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="the trajectory files are empty: sample some"):
        train(dataclasses.replace(config, data=(str(tmp_path / "empty.jsonl"),)))
    with pytest.raises(ConfigError, match="loss 'mse': expected one of trajectory-mean, per-token, td-lambda"):
        dataclasses.replace(config, loss="mse")
    with pytest.raises(ConfigError, match="leave out --tune and --layers"):
        dataclasses.replace(config, placement="adapter", layers=1)
    with pytest.raises(ConfigError, match="layers is 3; expected 1 to the 2 blocks of"):
        train(dataclasses.replace(config, layers=3))
    with pytest.raises(ConfigError, match="LoRA target 'up, down': expected attention or all-linear alone"):
        train(dataclasses.replace(config, lora=LoraSettings(targets=("up, down",))))
    with pytest.raises(ConfigError, match=r"LoRA target 'w1': the backbone has no such layer; expected .*q_proj"):
        train(dataclasses.replace(config, lora=LoraSettings(targets=("q_proj", "w1"))))
    other = tmp_path / "t5"
    tiny.tiny_tokenizer(other)
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 400}
    (other / "config.json").write_text(json.dumps({"model_type": "x", "architectures": ["XForCausalLM"], **shape}))
    with pytest.raises(IncompatibleError, match=r"t5 is a XForCausalLM, which llama.cpp .* does not convert"):
        train(dataclasses.replace(config, backbone=str(other)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_lr": 0.0}, "head-lr is 0.0; expected more than 0"),
        ({"clip": 0.0}, "clip is 0.0; expected more than 0"),
        ({"lr": math.nan}, "lr is nan; expected more than 0"),
        ({"warmup": -5}, "warmup is -5; expected 0 or more"),
        ({"weight_decay": -1.0}, "weight-decay is -1.0; expected 0 or more"),
        ({"head_hidden": -1}, "head-hidden is -1; expected 0 or more"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"limit": -1}, "limit is -1; expected 1 or more"),
    ],
)
def test_a_setting_that_would_train_nothing_or_the_other_way_is_refused(
    changes: dict[str, Any], message: str, config: TrainConfig
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **changes)
    with pytest.raises(ConfigError, match="alpha 0"):
        LoraSettings(alpha=0)


def test_a_last_step_that_diverges_is_an_error_and_leaves_no_model(config: TrainConfig) -> None:
    with pytest.raises(NumericError, match=r"the held-out loss is nan: lower --lr \(now 1e\+30\)"):
        train(replace(config, epochs=1, batch=64, lr=1e30))
    assert not (Path(config.out) / "value.json").exists() and not (Path(config.out) / "training.json").exists()


def test_a_missing_lora_is_one_sentence(config: TrainConfig, tiny_base: Path, tmp_path: Path) -> None:
    checkpoint = tiny.tiny_checkpoint(tmp_path / "value", Path(config.backbone))
    (tmp_path / "value/lora_weights/adapter_config.json").unlink()
    with pytest.raises(ModelFileError, match="no LoRA at"):
        export_value(checkpoint, tmp_path / "value.gguf", tiny_base)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["train", "export"])
def test_a_full_disk_leaves_no_half_file(
    what: str, config: TrainConfig, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "value"
    if what == "train":
        monkeypatch.setattr(os, "fsync", _full)
        words = ["train", config.backbone, *config.data, "--out", str(folder), "--epochs", "1", "--no-bf16"]
    else:
        tiny.tiny_checkpoint(folder, Path(config.backbone))
        (folder / "old.gguf").write_text("as before")
        monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", _full)
        words = ["export", str(folder), str(folder / "old.gguf"), "--base", str(tiny_base)]
    before = sorted(path.name for path in folder.rglob("*") if path.is_file())
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "space and run again" in result.output.splitlines()[-1]
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == before
    assert what == "train" or (folder / "old.gguf").read_text() == "as before"
