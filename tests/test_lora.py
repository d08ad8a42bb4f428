"""What an adapter says of itself is honoured or refused: values are those of PEFT, or there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sia_local import SIA
from sia_local.errors import IncompatibleError, ModelFileError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
import transformers
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.formats.export import ExportConfig, export_value
from sia_convert.formats.gguf_io import read_gguf
from sia_convert.formats.lora import Lora

IDS = np.random.default_rng(2).integers(3, 384, 40).tolist()


def adapted(folder: Path, backbone: Path, **settings: Any) -> ValueCheckpoint:
    """A value model whose LoRA PEFT made with `settings` and random weights."""
    from peft import LoraConfig, get_peft_model

    checkpoint: ValueCheckpoint = tiny.tiny_checkpoint(folder, backbone)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings})
    torch.manual_seed(3)
    model = get_peft_model(transformers.AutoModel.from_pretrained(backbone), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape))
    model.save_pretrained(str(folder / "lora_weights"))
    return checkpoint


def peft_values(checkpoint: ValueCheckpoint, ids: list[int]) -> np.ndarray:
    from peft import PeftModel

    backbone = transformers.AutoModel.from_pretrained(checkpoint.meta.backbone)
    model = PeftModel.from_pretrained(backbone, str(checkpoint.folder / "lora_weights")).eval()
    with torch.no_grad():
        x = model(torch.tensor([ids])).last_hidden_state[0].double()
    head = checkpoint.reward_head()
    return np.asarray(x @ torch.tensor(head.weight).double() + head.bias)


@pytest.mark.parametrize("layout", ["merged", "adapter"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32, "down_proj": 1}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 8}},
        {"exclude_modules": ["layers.0.self_attn.q_proj"], "init_lora_weights": "gaussian"},
    ],
    ids=["patterns", "rslora", "gaussian"],
)
def test_ranks_and_alphas_of_single_modules_are_honoured(
    settings: dict[str, Any], layout: str, make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    checkpoint = adapted(tmp_path / "value", make_hf(), **settings)
    path = export_value(checkpoint, tmp_path / "value.gguf", tiny_base, ExportConfig(layout, "f32"))
    with SIA.load(tiny_base, path, n_ctx=128, n_threads=1, type_k="f32", type_v="f32", flash_attention="off") as sia:
        prompt = sia.prompt("the old king")
        value: Any = sia.value
        read = list(value.tokens(prompt))
        values = value.trajectory(0, prompt, IDS)
    np.testing.assert_allclose(values, peft_values(checkpoint, [*read, *IDS])[len(read) :], atol=3e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT itself advises against some of these
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_bias": True}, r"is more than a LoRA: lora_bias .its updates have biases."),
        ({"use_dora": True}, "use_dora .DoRA rescales whole weights."),
        ({"modules_to_save": ["norm"]}, "modules_to_save norm"),
        ({"bias": "all"}, "bias 'all'"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices .it holds embeddings of single tokens."),
        ({"init_lora_weights": "pissa"}, "begun with pissa, which takes a part out of the base's weights"),
        ({"init_lora_weights": "olora"}, "begun with olora"),
    ],
)
def test_what_is_more_than_a_lora_is_refused(
    settings: dict[str, Any], message: str, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    backbone = make_hf("qwen2") if settings.get("bias") else make_hf()
    checkpoint = adapted(tmp_path / "value", backbone, **settings)
    with pytest.raises(IncompatibleError, match=message):
        export_value(checkpoint, tmp_path / "value.gguf", None, ExportConfig("merged"))
    assert not (tmp_path / "value.gguf").exists()


def test_settings_that_are_not_known_and_ranks_that_are_not_so_are_refused(
    make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    adapted(tmp_path / "value", make_hf())
    path = tmp_path / "value/lora_weights/adapter_config.json"
    saved = json.loads(path.read_text())
    for change, kind, message in (
        ({"use_newlora": True}, IncompatibleError, "is more than a LoRA: use_newlora True; only plain LoRA"),
        ({"r": 8}, ModelFileError, r"is of rank 4, adapter_config.json says 8"),
        ({"peft_type": "IA3"}, IncompatibleError, "is a IA3 adapter; only LoRA can be merged"),
    ):
        path.write_text(json.dumps({**saved, **change}))
        with pytest.raises(kind, match=message):
            Lora.open(path.parent)
    path.write_text(json.dumps({**saved, "use_newlora": None, "qalora_group_size": 16}))
    assert Lora.open(path.parent).rank == 4


def test_verify_does_not_read_an_adapter_as_export_does(
    make_hf: Callable[..., Path], tiny_base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A scale that export reads wrongly is a difference, not the same mistake on both sides."""
    checkpoint = adapted(tmp_path / "value", make_hf(), lora_alpha=16)
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", make_hf(), prompts=2, samples=1)
    monkeypatch.setattr("sia_convert.formats.lora.scale_of", lambda alpha, rank, rslora: 1.0)
    path = export_value(checkpoint, tmp_path / "value.gguf", tiny_base, ExportConfig("merged", "f32"))
    assert tiny.prove(checkpoint, path, tiny_base, data).failures[0].startswith("max |dV|")
    monkeypatch.undo()
    path = export_value(checkpoint, tmp_path / "value.gguf", tiny_base, ExportConfig("merged", "f32"))
    assert tiny.prove(checkpoint, path, tiny_base, data).failures == ()


@pytest.mark.parametrize(("dtype", "kind"), [("f32", 0), ("f16", 1), ("bf16", 30)])
def test_the_matrices_of_an_adapter_are_of_the_type_asked_for(
    dtype: str, kind: int, make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    checkpoint = tiny.tiny_checkpoint(tmp_path / "value", make_hf())
    path = export_value(checkpoint, tmp_path / "value.gguf", tiny_base, ExportConfig("adapter", dtype))
    assert {tensor.type for tensor in read_gguf(path)[1]} == {kind}
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", make_hf(), prompts=2, samples=1)
    row = tiny.prove(checkpoint, path, tiny_base, data, limit=2)
    assert (row.type, row.failures) == (dtype.upper(), ()) and (row.max_abs < 1e-5) == (dtype == "f32")
