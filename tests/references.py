"""Models of the shapes that are written here, and the values that PEFT computes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sia_convert.formats.checkpoint import ValueCheckpoint

from sia_local import SIA

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-linear": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": LINEAR}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16, "num_key_value_heads": 1}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-yarn": ("qwen3", {"tie_word_embeddings": True, "rope_parameters": {**YARN, "attention_factor": 1.3}}),
}  # fmt: skip
IDS = np.random.default_rng(2).integers(3, 384, 90).tolist()


def load(base: Path, value: Path | None = None) -> SIA:
    return SIA.load(base, value, n_ctx=256, n_threads=1, type_k="f32", type_v="f32", flash_attention="off")


def peft_values(checkpoint: ValueCheckpoint, ids: list[int]) -> np.ndarray:
    """V after every token, float64 [n]: PEFT's own forward pass and the head by hand."""
    backbone = transformers.AutoModel.from_pretrained(checkpoint.meta.backbone)
    if checkpoint.meta.tune == "lora":
        from peft import PeftModel

        backbone = PeftModel.from_pretrained(backbone, str(checkpoint.folder / "lora_weights"))
    with torch.no_grad():
        x = backbone.eval()(torch.tensor([ids])).last_hidden_state[0].double()
    h = checkpoint.head
    if h.hidden_weight is not None:
        x = torch.nn.functional.silu(x @ torch.tensor(h.hidden_weight).double().T + torch.tensor(h.hidden_bias))
    values = x @ torch.tensor(h.weight).double() + h.bias
    return (values * checkpoint.meta.reward_std + checkpoint.meta.reward_mean).numpy()
