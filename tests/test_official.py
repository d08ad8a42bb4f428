"""Checkpoints as the paper's code saves them, with random weights."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from loading import EXACT, source

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
import transformers
from cuts import at_every_move
from sia_convert.cli import main
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.formats.export import export_base
from sia_convert.formats.official import import_official
from sia_convert.formats.tensors import TensorFolder, read_json
from tiny import prove

from sia_local import SIA

KINDS = ("causal_lm", "sequence_classification")
LLAMA32: dict[str, Any] = {
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip


@pytest.fixture
def backbone(request: pytest.FixtureRequest, make_hf: Callable[..., Path], tmp_path: Path) -> tuple[str, Path, Path]:
    """What the published value models stand on, with random weights, and the causal LM that its GGUF is made of: a
    Qwen3 base itself, or a reward model over Llama 3.2 (LlamaForSequenceClassification, no lm_head, a score)."""
    if request.param == "causal_lm":
        return request.param, make_hf(), make_hf()
    causal, folder = make_hf("llama", **LLAMA32), tiny.tiny_tokenizer(tmp_path / "skywork")
    auto = transformers.AutoModelForSequenceClassification
    auto.from_pretrained(causal, num_labels=1, pad_token_id=0).save_pretrained(folder)
    return request.param, folder, causal


def official(folder: Path, backbone: Path, kind: str) -> Path:
    """lora_weights/ written by PEFT, token_reward_head.pt and model_config.json."""
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(8)
    if kind == "causal_lm":
        whole, task = transformers.AutoModelForCausalLM.from_pretrained(backbone), TaskType.CAUSAL_LM
    else:
        auto = transformers.AutoModelForSequenceClassification
        whole, task = auto.from_pretrained(backbone, num_labels=1, pad_token_id=0), TaskType.SEQ_CLS
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=targets, task_type=task)
    model = get_peft_model(whole, settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(str(folder / "lora_weights"))
    head = {"weight": torch.randn(1, 64) * 0.1, "bias": torch.tensor([0.5])}
    torch.save({"token_reward_head": head, "step": 30}, folder / "token_reward_head.pt")
    config = {
        "base_model_path": str(backbone), "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "hidden_size": 64,
        "model_type": kind, "step": 30,
    }  # fmt: skip
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder


def peft_values(folder: Path, backbone: Path, kind: str, ids: list[int]) -> np.ndarray:
    """The official forward pass: PEFT over the whole model, the head on its last hidden state."""
    from peft import PeftModel

    if kind == "causal_lm":
        whole = transformers.AutoModelForCausalLM.from_pretrained(backbone)
    else:
        auto = transformers.AutoModelForSequenceClassification
        whole = auto.from_pretrained(backbone, num_labels=1, pad_token_id=0)
    model = PeftModel.from_pretrained(whole, str(folder / "lora_weights")).eval()
    head = torch.load(folder / "token_reward_head.pt", weights_only=True)["token_reward_head"]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return (hidden @ head["weight"][0] + head["bias"]).numpy()


@pytest.mark.parametrize("layout", ["lean", "merged", "adapter"])
@pytest.mark.parametrize("backbone", KINDS, indirect=True)
def test_imports_exports_and_verifies(backbone: tuple[str, Path, Path], layout: str, tmp_path: Path) -> None:
    kind, place, causal = backbone
    folder, base = official(tmp_path / "official", place, kind), export_base(causal, tmp_path / "base.gguf", "f32")
    out, gguf = tmp_path / "value", tmp_path / "value.gguf"
    words = ["import-official", str(folder), str(out), "--gguf", str(gguf), "--base", str(base), "--dtype", "f32"]
    result = CliRunner().invoke(main, [*words, "--layout", layout])
    assert result.exit_code == 0, result.output
    if kind == "sequence_classification":
        assert read_json(place / "config.json")["architectures"] == ["LlamaForSequenceClassification"]
        assert {"score.weight"} <= set(TensorFolder.open(place)) and "lm_head.weight" not in TensorFolder.open(place)
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", place, prompts=3, samples=1)
    row = prove(ValueCheckpoint.open(out), gguf, base, data)
    assert row.failures == () and row.kind == layout and row.max_abs < 1e-3
    ids = list(range(3, 40))
    with SIA.load(base, gguf, EXACT) as sia:
        prompt = sia.prompt("hi", raw=True)
        values = source(sia).trajectory(0, prompt, ids)
    wanted = peft_values(folder, place, kind, [*prompt.tokens, *ids])[-len(ids) :]
    np.testing.assert_allclose(values, wanted, atol=2e-4)


class Payload:
    """Pickled code: writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def _pickled(folder: Path) -> None:
    code = {"token_reward_head": Payload(folder / "ran")}
    (folder / "token_reward_head.pt").write_bytes(pickle.dumps(code, protocol=2))


def _head(folder: Path, **tensors: torch.Tensor) -> None:
    torch.save({"token_reward_head": tensors}, folder / "token_reward_head.pt")


def _config(folder: Path, **changes: object) -> None:
    path = folder / "model_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pickled, "token_reward_head.pt holds pickled code or is damaged and was not loaded"),
        (lambda f: shutil.rmtree(f / "lora_weights"), "no folder lora_weights in"),
        (lambda f: (f / "token_reward_head.pt").unlink(), "no head at"),
        (lambda f: (f / "model_config.json").unlink(), "no model_config.json in"),
        (lambda f: (f / "lora_weights/adapter_config.json").unlink(), "no LoRA at"),
        (lambda f: _head(f, weight=torch.ones(1, 48), bias=torch.ones(1)), "reads 48 values, model_config.json says"),
        (lambda f: _head(f, weight=torch.ones(2, 64), bias=torch.ones(2)), r"weight [2, 64] and bias [2], expected"),
        (lambda f: _head(f, weight=torch.full((1, 64), torch.nan), bias=torch.ones(1)), "NaN or infinite weights"),
        (lambda f: _config(f, model_type="t5"), "model_type 't5': expected 'causal_lm' or 'sequence_classification'"),
        (lambda f: _config(f, lora_r=16), "lora_weights has r 4 and alpha 8, model_config.json says r 16"),
        (lambda f: _config(f, base_model_path="/none"), "no backbone at /none: download it"),
    ],
)  # fmt: skip
def test_damage_is_one_sentence_and_runs_no_code(
    damage: Callable[[Path], object], message: str, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = official(tmp_path / "official", make_hf(), "causal_lm")
    damage(folder)
    result = CliRunner().invoke(main, ["import-official", str(folder), str(tmp_path / "value")])
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1
    assert not (tmp_path / "value").exists() and not (folder / "ran").exists()


def test_a_lora_of_another_backbone_is_refused(make_hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = official(tmp_path / "official", make_hf(), "causal_lm")
    words = ["import-official", str(folder), str(tmp_path / "value"), "--backbone", str(make_hf("qwen2", seed=9))]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "is this the backbone it was trained on?" in result.output
    assert not (tmp_path / "value").exists()


def test_an_interrupted_import_is_no_model_or_the_one_before(
    make_hf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an older import there had been the new LoRA under the older head."""
    folder, out = official(tmp_path / "official", make_hf(), "causal_lm"), tmp_path / "value"
    older = tiny.tiny_checkpoint(tmp_path / "older", make_hf())

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(older.folder, out)

    def read() -> str | None:
        return ValueCheckpoint.open(out).fingerprint() if (out / "value.json").exists() else None

    found = at_every_move(monkeypatch, begin, lambda: import_official(folder, out), read)
    new = import_official(folder, tmp_path / "new").fingerprint()
    assert found[-1] == new and set(found[:-1]) == {None, older.fingerprint()}
