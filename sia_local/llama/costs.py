"""What a sequence costs in memory, from a file's metadata: KV bytes a token, bytes of recurrent state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .ggml import row_bytes
from .gguf import GgufMetadata

_F16, _F32 = 1, 0
# Where a file does not say it: one layer of so many has no window, the last (load_swa_pattern of the pinned release).
_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4, "olmo2": 4}


@dataclass(frozen=True)
class MemoryCost:
    """kv_bytes: of one token, in all layers with attention, which sequences share; state_bytes: of one sequence, which
    every branch has of its own (llama.cpp keeps it in f32). window_bytes: those of kv_bytes in layers that look no
    further back than a sliding window."""

    kv_bytes: int
    state_bytes: int
    window_bytes: int = 0


def memory_cost(meta: GgufMetadata, type_k: int = _F16, type_v: int = _F16) -> MemoryCost | None:
    """None for an architecture whose state is not laid out as those known here. The layouts are those of
    llama_hparams::n_embd_r and n_embd_s."""
    arch = str(meta.get("general.architecture", "?"))

    def key(name: str, default: Any = 0) -> Any:
        return meta.get(f"{arch}.{name}", default)

    layers, width = int(key("block_count")), int(key("embedding_length"))
    if not layers or not width or any(name.startswith(f"{arch}.wkv.") for name in list(meta.keys())):
        return None
    heads = _a_layer(key("attention.head_count"), layers)
    kv = _a_layer(key("attention.head_count_kv", heads), layers)
    head_width = width // max(1, int(heads.max()))
    recurrent = _recurrent_layers(arch, key, layers, kv)
    # falcon-h1 does both in every layer. Later layers may use what earlier ones keep.
    attends = (kv > 0) & (~recurrent | (arch == "falcon-h1"))
    attends &= np.arange(layers) < (20 if arch == "gemma3n" else layers - int(key("attention.shared_kv_layers")))
    narrow = _windowed_layers(arch, key, layers)
    k, v = (_widths(key, f"attention.{name}_length", head_width, narrow) for name in ("key", "value"))
    rows = np.array(
        [row_bytes(type_k, int(n)) + row_bytes(type_v, int(m)) for n, m in zip(kv * k, kv * v, strict=True)], np.int64
    )
    if conv := int(key("shortconv.l_cache")):
        state = width * (conv - 1)
    else:
        inner, size = int(key("ssm.inner_size")), int(key("ssm.state_size"))
        state = max(0, int(key("ssm.conv_kernel")) - 1) * (inner + 2 * int(key("ssm.group_count")) * size)
        state += inner * size
    windowed = attends & narrow
    state_bytes = row_bytes(_F32, state) * int(recurrent.sum())
    return MemoryCost(int(rows[attends].sum()), state_bytes, int(rows[windowed].sum()))


def is_recurrent(meta: GgufMetadata) -> bool:
    """Whether the header describes a recurrent state (state space, RWKV, short convolution), alone or in a hybrid."""
    arch = meta.get("general.architecture", "?")
    return any(key.startswith((f"{arch}.ssm.", f"{arch}.wkv.", f"{arch}.shortconv.")) for key in list(meta.keys()))


def _a_layer(value: Any, layers: int) -> Any:
    return np.broadcast_to(np.asarray(value, np.int64), layers) if np.ndim(value) == 0 else np.asarray(value, np.int64)


def _widths(key: Any, name: str, usual: int, windowed: Any) -> Any:
    """int[layers]: the width of a head, which layers with a window may have of their own."""
    width = int(key(name, usual))
    return np.where(windowed, int(key(f"{name}_swa", width)), width)


def _windowed_layers(arch: str, key: Any, layers: int) -> Any:
    """bool[layers]: those with a sliding window, none where that is not known."""
    pattern = key("attention.sliding_window_pattern", _PERIODS.get(arch, 1))
    if not key("attention.sliding_window"):
        return np.zeros(layers, bool)
    if np.ndim(pattern):
        return np.asarray(pattern, bool)[:layers]
    return np.arange(1, layers + 1) % max(1, int(pattern)) != 0


def _recurrent_layers(arch: str, key: Any, layers: int, kv: Any) -> Any:
    """bool[layers]: those with a recurrent state."""
    if key("shortconv.l_cache"):
        return kv == 0
    if not key("ssm.inner_size"):
        return np.zeros(layers, bool)
    if arch == "falcon-h1":
        return np.ones(layers, bool)
    if (listed := key("attention.recurrent_layers", None)) is not None:
        return np.broadcast_to(np.asarray(listed, bool), layers)
    if arch.startswith(("qwen35", "qwen3next")):
        return np.arange(1, layers + 1) % int(key("full_attention_interval", 4)) != 0
    feed = _a_layer(key("feed_forward_length"), layers)
    # nemotron_h: a block is one of the three, attention, state space or feed forward.
    return (kv == 0) & (feed == 0) if np.ndim(key("feed_forward_length")) else kv == 0
