"""What gemma3 looks like in GGUF and in Hugging Face, for the way back: the way there is llama.cpp's converter's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sia_local.errors import IncompatibleError

from .gguf_io import KV

ARCH = "gemma3"
# The one model that scales attention by the share of its width a head has, and not by the head's own.
_SCALED_BY_WIDTH = 62
_PERIOD = 6
_LOCAL_THETA = 10000.0
_PARTS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class Gemma3Form:
    """A gemma3 GGUF as transformers' Gemma3ForCausalLM: the language model alone. settings: its config.json."""

    settings: Mapping[str, Any]

    @classmethod
    def from_gguf(cls, fields: Mapping[str, KV]) -> Gemma3Form:
        """From a base's metadata, with llama.cpp's defaults for what is not there."""

        def get(name: str, default: Any = None) -> Any:
            found = fields.get(f"{ARCH}.{name}")
            if found is None and default is None:
                raise IncompatibleError(f"the base GGUF lacks the metadata key {ARCH}.{name}")
            value = default if found is None else found.value
            # 1e-6 is stored as the float32 next to it.
            return float(str(np.float32(value))) if isinstance(value, float) else value

        n_layer, n_embd, n_head = get("block_count"), get("embedding_length"), get("attention.head_count")
        head_dim = get("attention.key_length", n_embd // n_head)
        if get("attention.value_length", head_dim) != head_dim:
            raise IncompatibleError(f"a gemma3 whose keys are {head_dim} wide has values of another width")
        window = get("attention.sliding_window", 0)
        full = {"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)}
        if (kind := get("rope.scaling.type", "none")) == "linear":
            full |= {"rope_type": "linear", "factor": get("rope.scaling.factor")}
        elif kind != "none":
            raise IncompatibleError(f"a gemma3 with RoPE scaling {kind!r}: expected linear, or none")
        local = {"rope_type": "default", "rope_theta": get("rope.freq_base_swa", _LOCAL_THETA)}
        return cls(
            {
                "architectures": ["Gemma3ForCausalLM"],
                "model_type": "gemma3_text",
                "num_hidden_layers": n_layer,
                "hidden_size": n_embd,
                "intermediate_size": get("feed_forward_length"),
                "num_attention_heads": n_head,
                "num_key_value_heads": get("attention.head_count_kv", n_head),
                "head_dim": head_dim,
                "max_position_embeddings": get("context_length"),
                "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
                "query_pre_attn_scalar": n_embd // n_head if n_layer == _SCALED_BY_WIDTH else head_dim,
                "sliding_window": window or 4096,
                "layer_types": _layer_types(get("attention.sliding_window_pattern", _PERIOD), n_layer, window),
                "rope_parameters": {"full_attention": full, "sliding_attention": local},
                "final_logit_softcapping": get("final_logit_softcapping", 0.0) or None,
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False,
                "torch_dtype": "float32",
            }
        )

    @property
    def arch(self) -> str:
        return ARCH

    def name(self, gguf: str) -> str | None:
        """The checkpoint's name of a GGUF tensor; None for one that has no counterpart."""
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", gguf)
        if found and found[2] in _PARTS:
            return f"model.layers.{found[1]}.{_PARTS[found[2]]}.weight"
        return _TOP.get(gguf)

    def restore(self, gguf: str, rows: np.ndarray) -> np.ndarray:
        """A float32 tensor as the checkpoint has it: GGUF adds the 1 of the norms' 1 + w to w."""
        return rows - np.float32(1.0) if gguf.endswith("norm.weight") else rows

    def checkpoint(self, weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """config.json, and the weights it goes with."""
        rows = len(weights["model.embed_tokens.weight"])
        return {**self.settings, "vocab_size": rows, "tie_word_embeddings": "lm_head.weight" not in weights}, weights


def _layer_types(pattern: Any, n_layer: int, window: int) -> list[str]:
    """pattern: whether each layer has the window, or the period of those that have none."""
    if isinstance(pattern, list):
        windowed = [bool(each) for each in pattern[:n_layer]]
    else:
        windowed = [i % (pattern or math.inf) < (pattern or math.inf) - 1 for i in range(n_layer)]
    return ["sliding_attention" if window and each else "full_attention" for each in windowed]
