"""Layers and hyperparameters of the tiny random models in models.py, one entry an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np

N_VOCAB, N_EMBD, N_FF, N_HEAD, N_KV, HEAD_DIM, N_LAYER, N_CTX = 320, 64, 96, 4, 2, 16, 2, 512
WINDOW, CONV, STATE, N_EXPERT = 16, 4, 16, 4
SSM_HEADS, GROUPS = 4, 2
Weights = dict[str, np.ndarray]


class Draw:
    """Random weights of one model, in the order they are asked for."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def matrix(self, *shape: int) -> np.ndarray:
        return (self.rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float32)

    def norm(self, *shape: int) -> np.ndarray:
        return (1 + 0.1 * self.rng.standard_normal(shape)).astype(np.float32)

    def small(self, *shape: int) -> np.ndarray:
        return (0.1 * self.rng.standard_normal(shape)).astype(np.float32)

    def decay(self, *shape: int) -> np.ndarray:
        return -np.exp(self.small(*shape))


def _attention(d: Draw, qk_norm: bool = False, gated: bool = False) -> Weights:
    q, kv = N_HEAD * HEAD_DIM, N_KV * HEAD_DIM
    out = {
        "attn_q.weight": d.matrix(q * (1 + gated), N_EMBD),
        "attn_output.weight": d.matrix(N_EMBD, q),
        "attn_k.weight": d.matrix(kv, N_EMBD),
        "attn_v.weight": d.matrix(kv, N_EMBD),
    }
    if qk_norm:
        out |= {"attn_q_norm.weight": d.norm(HEAD_DIM), "attn_k_norm.weight": d.norm(HEAD_DIM)}
    return out


def _ffn(d: Draw) -> Weights:
    return {
        "ffn_gate.weight": d.matrix(N_FF, N_EMBD),
        "ffn_up.weight": d.matrix(N_FF, N_EMBD),
        "ffn_down.weight": d.matrix(N_EMBD, N_FF),
    }


def _mamba(d: Draw, i: int) -> Weights:
    inner, dt = 2 * N_EMBD, 4
    return {
        "attn_norm.weight": d.norm(N_EMBD),
        "ssm_in.weight": d.matrix(2 * inner, N_EMBD),
        "ssm_conv1d.weight": d.matrix(inner, CONV),
        "ssm_conv1d.bias": d.small(inner),
        "ssm_x.weight": d.matrix(dt + 2 * STATE, inner),
        "ssm_dt.weight": d.matrix(inner, dt),
        "ssm_dt.bias": d.small(inner),
        "ssm_a": d.decay(inner, STATE),
        "ssm_d": d.norm(inner),
        "ssm_out.weight": d.matrix(N_EMBD, inner),
    }


def _ssm2(d: Draw) -> Weights:
    inner = 2 * N_EMBD
    conv = inner + 2 * GROUPS * STATE
    return {
        "ssm_in.weight": d.matrix(inner + conv + SSM_HEADS, N_EMBD),
        "ssm_conv1d.weight": d.matrix(conv, CONV),
        "ssm_conv1d.bias": d.small(conv),
        "ssm_dt.bias": d.small(SSM_HEADS),
        "ssm_a": d.decay(SSM_HEADS, 1),
        "ssm_d": d.norm(SSM_HEADS, 1),
        "ssm_norm.weight": d.norm(GROUPS, inner // GROUPS),
        "ssm_out.weight": d.matrix(N_EMBD, inner),
    }


def _mamba2(d: Draw, i: int) -> Weights:
    return {"attn_norm.weight": d.norm(N_EMBD), **_ssm2(d)}


def _granite(d: Draw, i: int) -> Weights:
    mixer = _ssm2(d) if i == 0 else _attention(d)
    return {"attn_norm.weight": d.norm(N_EMBD), **mixer, "ffn_norm.weight": d.norm(N_EMBD), **_ffn(d)}


def _nemotron(d: Draw, i: int) -> Weights:
    mlp = {"ffn_up.weight": d.matrix(N_FF, N_EMBD), "ffn_down.weight": d.matrix(N_EMBD, N_FF)}
    return {"attn_norm.weight": d.norm(N_EMBD), **(_ssm2(d), _attention(d), mlp)[i]}


def _lfm2(d: Draw, i: int) -> Weights:
    mixer = _attention(d, qk_norm=True)
    if i == 0:
        mixer = {
            "shortconv.conv.weight": d.matrix(N_EMBD, CONV),
            "shortconv.in_proj.weight": d.matrix(3 * N_EMBD, N_EMBD),
            "shortconv.out_proj.weight": d.matrix(N_EMBD, N_EMBD),
        }
    return {"attn_norm.weight": d.norm(N_EMBD), **mixer, "ffn_norm.weight": d.norm(N_EMBD), **_ffn(d)}


def _qwen35(d: Draw, i: int) -> Weights:
    mixer = _attention(d, qk_norm=True, gated=True)
    if i == 0:
        key = value = GROUPS * STATE
        mixer = {
            "attn_qkv.weight": d.matrix(2 * key + value, N_EMBD),
            "attn_gate.weight": d.matrix(value, N_EMBD),
            "ssm_conv1d.weight": d.matrix(2 * key + value, CONV),
            "ssm_dt.bias": d.small(GROUPS),
            "ssm_a": d.decay(GROUPS),
            "ssm_beta.weight": d.matrix(GROUPS, N_EMBD),
            "ssm_alpha.weight": d.matrix(GROUPS, N_EMBD),
            "ssm_norm.weight": d.norm(STATE),
            "ssm_out.weight": d.matrix(N_EMBD, value),
        }
    norms = {"attn_norm.weight": d.norm(N_EMBD), "post_attention_norm.weight": d.norm(N_EMBD)}
    return {**norms, **mixer, **_ffn(d)}


def _gemma3(d: Draw, i: int) -> Weights:
    names = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    norms = {f"{name}.weight": d.norm(N_EMBD) for name in names}
    return {**norms, **_attention(d, qk_norm=True), **_ffn(d)}


def _qwen3moe(d: Draw, i: int) -> Weights:
    return {
        "attn_norm.weight": d.norm(N_EMBD),
        "ffn_norm.weight": d.norm(N_EMBD),
        **_attention(d, qk_norm=True),
        "ffn_gate_inp.weight": d.matrix(N_EXPERT, N_EMBD),
        "ffn_gate_exps.weight": d.matrix(N_EXPERT, N_FF, N_EMBD),
        "ffn_up_exps.weight": d.matrix(N_EXPERT, N_FF, N_EMBD),
        "ffn_down_exps.weight": d.matrix(N_EXPERT, N_EMBD, N_FF),
    }


def _gptoss(d: Draw, i: int) -> Weights:
    heads = {"attn_q": N_HEAD * HEAD_DIM, "attn_k": N_KV * HEAD_DIM, "attn_v": N_KV * HEAD_DIM, "attn_output": N_EMBD}
    return {
        "attn_norm.weight": d.norm(N_EMBD),
        "post_attention_norm.weight": d.norm(N_EMBD),
        **_attention(d),
        **{f"{name}.bias": d.small(width) for name, width in heads.items()},
        "attn_sinks.weight": d.norm(N_HEAD),
        "ffn_gate_inp.weight": d.matrix(N_EXPERT, N_EMBD),
        "ffn_gate_inp.bias": d.small(N_EXPERT),
        "ffn_gate_exps.weight": d.matrix(N_EXPERT, N_FF, N_EMBD),
        "ffn_gate_exps.bias": d.small(N_EXPERT, N_FF),
        "ffn_up_exps.weight": d.matrix(N_EXPERT, N_FF, N_EMBD),
        "ffn_up_exps.bias": d.small(N_EXPERT, N_FF),
        "ffn_down_exps.weight": d.matrix(N_EXPERT, N_EMBD, N_FF),
        "ffn_down_exps.bias": d.small(N_EXPERT, N_EMBD),
    }


def _ssm_keys(writer: gguf.GGUFWriter, inner: int, rank: int, groups: int = 0) -> None:
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(rank)
    if groups:
        writer.add_ssm_group_count(groups)


def _mamba_keys(writer: gguf.GGUFWriter) -> None:
    _ssm_keys(writer, 2 * N_EMBD, 4)


def _ssm2_keys(writer: gguf.GGUFWriter) -> None:
    _ssm_keys(writer, 2 * N_EMBD, SSM_HEADS, GROUPS)


def _nemotron_keys(writer: gguf.GGUFWriter) -> None:
    _ssm2_keys(writer)
    writer.add_layer_norm_eps(1e-5)


def _lfm2_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_uint32("lfm2.shortconv.l_cache", CONV)


def _qwen35_keys(writer: gguf.GGUFWriter) -> None:
    _ssm_keys(writer, GROUPS * STATE, GROUPS, GROUPS)
    writer.add_uint32("qwen35.full_attention_interval", 2)
    writer.add_array("qwen35.rope.dimension_sections", [3, 3, 2, 0])


def _gemma3_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(WINDOW)
    writer.add_array("gemma3.attention.sliding_window_pattern", [True, False])


def _qwen3moe_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(N_FF)


def _gptoss_keys(writer: gguf.GGUFWriter) -> None:
    _qwen3moe_keys(writer)
    writer.add_sliding_window(WINDOW)


def _no_keys(writer: gguf.GGUFWriter) -> None:
    """All of it is in the common ones."""


@dataclass(frozen=True)
class Architecture:
    """layer: the weights of block i, without its prefix. heads, kv, ff: of each block. adapted: what an adapter is
    over, in the last block."""

    layer: Callable[[Draw, int], Weights]
    keys: Callable[[gguf.GGUFWriter], None]
    heads: int | list[int] = N_HEAD
    kv: int | list[int] = N_KV
    ff: int | list[int] = N_FF
    n_layer: int = N_LAYER
    adapted: tuple[str, ...] = ("blk.1.attn_q.weight", "blk.1.attn_v.weight")
    output_norm: str = "output_norm.weight"


SSM_ADAPTED = ("blk.1.ssm_in.weight", "blk.1.ssm_out.weight")
ARCHITECTURES = {
    "mamba": Architecture(_mamba, _mamba_keys, heads=0, kv=0, ff=0, adapted=SSM_ADAPTED),
    "mamba2": Architecture(_mamba2, _ssm2_keys, heads=0, kv=0, ff=0, adapted=SSM_ADAPTED),
    "lfm2": Architecture(_lfm2, _lfm2_keys, kv=[0, N_KV], output_norm="token_embd_norm.weight"),
    "qwen35": Architecture(_qwen35, _qwen35_keys),
    "granitehybrid": Architecture(_granite, _ssm2_keys, kv=[0, N_KV]),
    "nemotron_h": Architecture(_nemotron, _nemotron_keys, kv=[0, N_KV, 0], ff=[0, 0, N_FF], n_layer=3),
    "gemma3": Architecture(_gemma3, _gemma3_keys),
    "qwen3moe": Architecture(_qwen3moe, _qwen3moe_keys),
    "gpt-oss": Architecture(_gptoss, _gptoss_keys),
}
WINDOWED = ("gemma3", "gpt-oss")
RECURRENT = ("mamba", "mamba2", "lfm2", "qwen35", "granitehybrid", "nemotron_h")


def layers(arch: str, rng: np.random.Generator) -> Weights:
    found, draw = ARCHITECTURES[arch], Draw(rng)
    out = {f"blk.{i}.{name}": w for i in range(found.n_layer) for name, w in found.layer(draw, i).items()}
    return out | {found.output_norm: draw.norm(N_EMBD)}
