"""Tiny random models of the architectures that llama.cpp's converter takes, as transformers makes and saves them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import tiny
from sia_convert.formats import llamacpp
from sia_convert.formats.llamacpp import Job

SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 16,
        },
    ),
    "qwen35": (
        "Qwen3_5TextConfig",
        {
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,  # more than key heads, which the converter then sorts otherwise
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "rope_parameters": ROPE,
        },
    ),
    "lfm2": (
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
    ),
    "granitehybrid": (
        "GraniteMoeHybridConfig",
        {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "mamba_n_heads": 4,
            "mamba_n_groups": 1,  # as published; with more, transformers up to 5.18 computes otherwise
            "mamba_d_state": 16,
            "mamba_d_head": 32,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "qwen3moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}


def hybrid_hf(name: str, folder: Path, **changes: Any) -> Path:
    """A random causal LM of CONFIGS with its tokenizer, in `folder`. No weight is where it would not be noticed."""
    import transformers

    kind, over = CONFIGS[name]
    config = getattr(transformers, kind)(**{**SHAPE, **over, **changes})
    return _saved(transformers.AutoModelForCausalLM, config, folder)


def seeing_hf(folder: Path) -> Path:
    """A random Qwen3.5 as it is published, with a part that sees."""
    import transformers

    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(
        text_config={**SHAPE, **CONFIGS["qwen35"][1]},
        vision_config={**sight, "patch_size": 4, "num_position_embeddings": 16},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return _saved(transformers.AutoModelForImageTextToText, config, folder)


def _saved(auto: Any, config: Any, folder: Path) -> Path:
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # it would advise kernels for GPUs
    root = tiny.tiny_tokenizer(folder)
    model = auto.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for where, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.add_(0.2 * noise)
            elif "conv" in where:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_((0.5 if "embed" in where else 0.08) * noise)
    model.save_pretrained(root)
    return root


class KeptConverter:
    """`llamacpp.run` with one process for many calls, since importing PyTorch takes longer than converting."""

    def __init__(self) -> None:
        script = Path(llamacpp.__file__).with_name("llamacpp_worker.py")
        words = [sys.executable, str(script), str(llamacpp.converter())]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, *jobs: Job) -> None:
        source, sink = self.process.stdin, self.process.stdout
        assert source is not None and sink is not None
        for job in jobs:
            source.write(llamacpp.line(job))
            source.flush()
            llamacpp.check(job, json.loads(sink.readline()))

    def __enter__(self) -> KeptConverter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
