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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, DataError, IncompatibleError, ModelFileError, SiaError
from sia_local.files import alone

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
from safetensors.torch import load_file, save_file
from sia_convert.cli import main
from sia_convert.data.examples import Reader, load_split
from sia_convert.data.trajectories import Trajectory
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.formats.export import export_value
from sia_convert.formats.hf import load_tokenizer
from sia_convert.train import loop
from sia_convert.train.config import LoraSettings, TrainConfig
from sia_convert.train.launch import launch
from sia_convert.train.launch import main as main_of_launch
from sia_convert.train.loop import Trainer, _line, train
from sia_convert.train.model import _check_stored, build, load


@pytest.fixture(scope="module")
def data(make_hf: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_trajectories(tmp_path_factory.mktemp("data") / "scored.jsonl", make_hf(), prompts=10)


@pytest.fixture
def config(make_hf: Callable[..., Path], data: Path, tmp_path: Path) -> TrainConfig:
    """Two epochs of nine steps with LoRA and dropout."""
    return TrainConfig(
        backbone=str(make_hf()),
        data=(str(data),),
        out=str(tmp_path / "value"),
        lora=LoraSettings(r=4, alpha=8),
        epochs=2,
        batch=4,
        lr=3e-3,
        save_every=2,
        bf16=False,
    )


def test_an_example_is_prompt_response_and_the_stop_token(make_hf: Callable[..., Path]) -> None:
    reader = Reader(load_tokenizer(make_hf()))
    stop = reader.tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = "<|im_start|>user\nthe king<|im_end|>\n<|im_start|>assistant\n"
    prompt = reader.tokenizer(chat).input_ids
    trajectory = Trajectory("0-0", 0, "the king", chat, [40, 41], "x", "stop", 0.5)
    example = reader.example(trajectory)
    assert example.ids == (*prompt, 40, 41, stop) and example.start == len(prompt)
    assert reader.example(dataclasses.replace(trajectory, finish="length")).ids == (*prompt, 40, 41)


def turns(end: str) -> str:
    return "{% for m in messages %}<|user|>{{ m.content }}" + end + "{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (turns("<end_of_turn>\n"), "<end_of_turn>"),  # Gemma 3
        (turns("{{ '<|return|>' if loop.last else '<|end|>' }}"), "<|return|>"),  # gpt-oss
        (turns("<|end|>\n") + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", "<|end|>"),  # Phi 3.5
        (turns("<|stop|><eos>"), "<eos>"),  # Command R7B
        (turns("\n<|stop|>\n"), "<|stop|>"),  # Nemotron Nano v2
        (turns(" {{ eos_token }}"), "<eos>"),  # Mistral
        (turns("{{ '<eos>' if m.role == 'user' else '<|end|>' }}"), "<|end|>"),
        (turns(""), "<eos>"),  # GLM: the next turn ends it
        ("<|user|>{{ messages[0].content }}<|end|>", "<|end|>"),
        ("{{ none + 1 }}<|end|><eos>", "<eos>"),
        ("raw", "<eos>"),
    ],
)
def test_a_response_ends_as_the_template_ends_an_answer(template: str, end: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    marks = ["<|user|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|stop|>"]
    whole = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    whole.add_special_tokens([*marks, "<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>")
    assert tokenizer.convert_ids_to_tokens(Reader(tokenizer, template).stop_token) == end
    assert tokenizer.convert_ids_to_tokens(Reader(tokenizer, template, "<|user|>").stop_token) == "<|user|>"


def test_no_prompt_is_on_both_sides_and_training_rewards_set_the_scale(
    make_hf: Callable[..., Path], data: Path
) -> None:
    reader = Reader(load_tokenizer(make_hf()))
    split = load_split([data], reader, 400, held_out=0.3, max_length=512, seed=1)
    train_prompts, held_out = ({e.prompt_id for e in part} for part in (split.train, split.held_out))
    assert not train_prompts & held_out and len(held_out) == 3 and len(train_prompts) == 7
    rewards = np.array([e.reward for e in split.train])
    assert (split.mean, split.std) == (rewards.mean(), rewards.std())
    assert load_split([data], reader, 400, held_out=0.3, max_length=512, seed=2).held_out != split.held_out


def test_a_backbone_without_positions_sets_no_longest_text(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*told: Any) -> Any:
        model = build(*told)
        model.backbone.config = SimpleNamespace(hidden_size=model.backbone.config.hidden_size)
        return model

    monkeypatch.setattr(loop, "build", without)
    kept = Trainer(replace(config, tune="none")).split
    assert kept.dropped == 0 and kept.train and kept.held_out


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
    monkeypatch.setattr(loop, "LAYOUT", 99)
    with pytest.raises(ConfigError, match="or of another version: name another output, or begin again"):
        train(config)
    anew = train(config, anew=True)
    assert "continuing" not in capsys.readouterr().out and anew["loss_curve"] == report["loss_curve"]


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


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("placement", ["separate", "head"])
@pytest.mark.parametrize("saves", [1, 5, 6])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    placement: str, saves: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, placement=placement, head_hidden=8 if placement == "head" else 0)
    whole = train(dataclasses.replace(config, out=f"{config.out}-whole"))
    save_state, left = Trainer.save_state, [saves]

    def save_then_stop(self: Trainer) -> None:
        save_state(self)
        left[0] -= 1
        if not left[0]:
            raise Interrupted

    monkeypatch.setattr(Trainer, "save_state", save_then_stop)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.setattr(Trainer, "save_state", save_state)
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
    config: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even candidates earn more than odd ones at every junction, whatever the text does."""
    lines = [json.loads(line) for line in data.read_text().splitlines()]
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
    save = Trainer.save_state

    def interrupt(self: Trainer) -> None:
        save(self)
        if self.place.total == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    monkeypatch.setattr(Trainer, "save_state", save)
    assert train(stopped)["loss_curve"] == whole["loss_curve"]
    with pytest.raises(DataError, match="no text has branches"):
        train(dataclasses.replace(config, data=(str(data),), out=f"{config.out}-none"))


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


def test_one_run_writes_a_folder_and_its_report_is_json(config: TrainConfig, data: Path, tmp_path: Path) -> None:
    seen: set[int] = set()
    one = tmp_path / "one.jsonl"
    with one.open("w") as out:
        for line in data.read_text().splitlines(keepends=True):
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


def test_the_command_reports_what_it_learnt(make_hf: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "value"
    for name in (".state.pt.ab12.tmp", "lora_weights/.adapter_model.safetensors.cd34.tmp"):  # of a killed run
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    words = ["train", str(make_hf()), str(data), "--out", str(out), "--loss", "td-lambda", "--epochs", "1", "--no-bf16"]
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


def _rewritten(data: Path, target: Path, **changes: Any) -> str:
    entries = [{**json.loads(line), **changes} for line in data.read_text().splitlines()]
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
        ({"prompt_id": 3}, "all trajectories answer one prompt"),
        ({"tokens": "x"}, "line 1: "),
        ({"finish": "eos"}, "finish is 'eos', expected 'stop' or 'length'"),
    ],
)
def test_bad_data_is_one_sentence(
    changes: dict[str, Any], message: str, config: TrainConfig, data: Path, tmp_path: Path
) -> None:
    if changes.get("tokens") == []:
        changes = {**changes, "finish": "length"}
    path = _rewritten(data, tmp_path / "bad.jsonl", **changes)
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
