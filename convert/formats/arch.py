"""What llama, qwen2 and qwen3 look like in Hugging Face and in GGUF: hyperparameters, names, row order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sia_local.errors import IncompatibleError

from .gguf_io import KV, f32, text, u32

SUPPORTED = ("llama", "qwen2", "qwen3")
_FAMILY = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)$")
_ROW_ORDERED = ("attn_q.", "attn_k.")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base frequency and the scaling of the checkpoint, if any."""

    theta: float = 10000.0
    kind: str = "default"  # default, linear, yarn or llama3
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """What must be known of a backbone whose conversion is llama.cpp's. `arch` is Hugging Face's name of it."""

    arch: str
    n_layer: int
    n_embd: int
    n_vocab: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Sizes:
        """From a config.json; of a model that sees or hears, its language model's part."""
        inner = config.get("text_config") or config
        try:
            sizes = (inner["num_hidden_layers"], inner["hidden_size"], inner["vocab_size"])
        except KeyError as error:
            raise IncompatibleError(
                f"config.json of a {config.get('model_type')} has no {error.args[0]}; expected a language model"
            ) from error
        return cls(str(config.get("model_type", "?")), *map(int, sizes))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, KV]) -> Sizes:
        arch = str(fields["general.architecture"].value)
        tokens = fields.get("tokenizer.ggml.tokens")
        sizes = (fields[f"{arch}.block_count"].value, fields[f"{arch}.embedding_length"].value)
        return cls(arch, *sizes, len(tokens.value) if tokens else 0)


@dataclass(frozen=True)
class Hparams:
    """Shape of a backbone. `n_vocab` counts embedding rows, which may exceed the tokenizer's tokens."""

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx: int
    rms_eps: float
    n_vocab: int
    tied: bool
    rope: Rope = Rope()

    def __post_init__(self) -> None:
        if self.arch not in SUPPORTED:
            raise IncompatibleError(
                f"architecture {self.arch!r} is not supported: expected one of {', '.join(SUPPORTED)}"
            )
        if self.n_head % self.n_head_kv:
            raise IncompatibleError(f"{self.n_head} heads cannot share {self.n_head_kv} key/value heads")
        if self.arch == "qwen2" and self.head_dim * self.n_head != self.n_embd:
            raise IncompatibleError(
                f"qwen2 with {self.n_head} heads of {self.head_dim} does not fill its width {self.n_embd}; "
                "llama.cpp reads only such models"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Hparams:
        """From a config.json of transformers 4 (`rope_scaling`) or 5 (`rope_parameters`)."""
        kind = str(config.get("model_type", "?"))
        if kind not in _FAMILY:
            raise IncompatibleError(f"architecture {kind!r} is not supported: expected one of {', '.join(SUPPORTED)}")
        needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        for name in (*needed, "max_position_embeddings", "rms_norm_eps"):
            if config.get(name) is None:
                raise IncompatibleError(f"config.json of a {kind} has no {name}; expected a language model")
        if config.get("hidden_act", "silu") != "silu":
            raise IncompatibleError(f"activation {config['hidden_act']!r} is not supported: expected 'silu'")
        windowed = config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window")
        if windowed or "sliding_attention" in (config.get("layer_types") or ()):
            raise IncompatibleError(
                "the checkpoint uses sliding-window attention, which llama.cpp does not compute for this "
                "architecture; use one with full attention"
            )
        n_head = int(config["num_attention_heads"])
        return cls(
            arch=_FAMILY[kind],
            n_layer=int(config["num_hidden_layers"]),
            n_embd=int(config["hidden_size"]),
            n_ff=int(config["intermediate_size"]),
            n_head=n_head,
            n_head_kv=int(config.get("num_key_value_heads") or n_head),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // n_head),
            n_ctx=int(config["max_position_embeddings"]),
            rms_eps=float(config["rms_norm_eps"]),
            n_vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            rope=_rope(config),
        )

    @classmethod
    def from_gguf(cls, fields: Mapping[str, KV]) -> Hparams:
        """From a base GGUF's metadata. A llama3-scaled model keeps its factors in a tensor, not read here."""
        arch = str(fields["general.architecture"].value)
        if arch not in SUPPORTED:
            raise IncompatibleError(
                f"a GGUF of architecture {arch!r} is not taken back to Hugging Face, only of "
                f"{', '.join(SUPPORTED)} and gemma3; "
                "use the folder it was converted from"
            )

        def get(name: str, default: Any = None) -> Any:
            found = fields.get(f"{arch}.{name}")
            if found is None and default is None:
                raise IncompatibleError(f"the base GGUF lacks the metadata key {arch}.{name}")
            return default if found is None else found.value

        n_embd, n_head = get("embedding_length"), get("attention.head_count")
        tokens = fields.get("tokenizer.ggml.tokens")
        scaling = {
            key: get(f"rope.scaling.{name}")
            for key, name in (
                ("factor", "factor"),
                ("original_max_position_embeddings", "original_context_length"),
                ("attention_factor", "attn_factor"),
                ("beta_fast", "yarn_beta_fast"),
                ("beta_slow", "yarn_beta_slow"),
            )
            if f"{arch}.rope.scaling.{name}" in fields
        }
        if "attention_factor" in scaling:
            scaling["attention_factor"] *= _yarn_magnitude(scaling["factor"])
        rope = get("rope.scaling.type", "none")
        if rope not in ("none", "linear", "yarn"):
            raise IncompatibleError(f"RoPE scaling {rope!r} is not taken back to Hugging Face: expected linear or yarn")
        return cls(
            arch=arch,
            n_layer=get("block_count"),
            n_embd=n_embd,
            n_ff=get("feed_forward_length"),
            n_head=n_head,
            n_head_kv=get("attention.head_count_kv", n_head),
            head_dim=get("attention.key_length", n_embd // n_head),
            n_ctx=get("context_length"),
            rms_eps=get("attention.layer_norm_rms_epsilon"),
            n_vocab=len(tokens.value) if tokens else get("vocab_size"),
            tied=False,
            rope=Rope(get("rope.freq_base", 10000.0), "default" if rope == "none" else rope, scaling),
        )

    def fields(self, n_layer: int | None = None) -> dict[str, KV]:
        """The `<arch>.*` metadata; `n_layer` overrides the depth."""
        a, s = self.arch, self.rope.settings
        out = {
            f"{a}.context_length": u32(self.n_ctx),
            f"{a}.embedding_length": u32(self.n_embd),
            f"{a}.block_count": u32(self.n_layer if n_layer is None else n_layer),
            f"{a}.feed_forward_length": u32(self.n_ff),
            f"{a}.attention.head_count": u32(self.n_head),
            f"{a}.attention.head_count_kv": u32(self.n_head_kv),
            f"{a}.attention.key_length": u32(self.head_dim),
            f"{a}.attention.value_length": u32(self.head_dim),
            f"{a}.attention.layer_norm_rms_epsilon": f32(self.rms_eps),
            f"{a}.rope.dimension_count": u32(self.head_dim),
            f"{a}.rope.freq_base": f32(self.rope.theta),
        }
        if self.rope.kind in ("linear", "yarn"):
            out[f"{a}.rope.scaling.type"] = text(self.rope.kind)
            out[f"{a}.rope.scaling.factor"] = f32(s["factor"])
        if self.rope.kind == "yarn":
            original = s.get("original_max_position_embeddings") or self.n_ctx
            out[f"{a}.rope.scaling.original_context_length"] = u32(original)
            if s.get("attention_factor") is not None:
                # llama.cpp multiplies by yarn's own 1 + 0.1 ln(factor); the checkpoint's factor is absolute.
                own = _yarn_magnitude(s["factor"])
                out[f"{a}.rope.scaling.attn_factor"] = f32(float(s["attention_factor"]) / own)
            for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
                if s.get(ours) is not None:
                    out[f"{a}.rope.scaling.{theirs}"] = f32(s[ours])
        return out

    def hf_config(self, *, tied: bool, attention_bias: bool) -> dict[str, Any]:
        """A config.json for these dimensions, as transformers 4 and 5 read it."""
        scaling = {"rope_type": self.rope.kind, **self.rope.settings}
        config = {
            "architectures": [f"{self.arch.capitalize()}ForCausalLM"],
            "model_type": self.arch,
            "num_hidden_layers": self.n_layer,
            "hidden_size": self.n_embd,
            "intermediate_size": self.n_ff,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.n_ctx,
            "rms_norm_eps": self.rms_eps,
            "vocab_size": self.n_vocab,
            "tie_word_embeddings": tied,
            "rope_theta": self.rope.theta,
            "rope_scaling": None if self.rope.kind == "default" else scaling,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        }
        if self.arch != "qwen2":  # which has biases always, and no setting for them
            config["attention_bias"] = attention_bias
        return config

    def rope_factors(self) -> np.ndarray | None:
        """float32 [head_dim / 2] divisors of the frequencies for llama3 scaling (the tensor rope_freqs)."""
        if self.rope.kind != "llama3":
            return None
        s = self.rope.settings
        factor, low, high = (float(s[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        original = float(s["original_max_position_embeddings"])
        frequency = self.rope.theta ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        turns = original * frequency / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _yarn_magnitude(factor: Any) -> float:
    return 1.0 + 0.1 * math.log(float(factor))


def _rope(config: Mapping[str, Any]) -> Rope:
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(settings.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise IncompatibleError(f"RoPE scaling {kind!r} is not supported: expected default, linear, yarn or llama3")
    if kind == "llama3" and _FAMILY[str(config["model_type"])] != "llama":
        raise IncompatibleError("llama3 RoPE scaling on a qwen model has no place in llama.cpp's format")
    if settings.get("truncate") is False or settings.get("mscale"):
        raise IncompatibleError("llama.cpp computes yarn without mscale and with truncate = true; this differs")
    if config.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        raise IncompatibleError("partial rotary embeddings are not supported for these architectures")
    return Rope(theta, kind, settings)


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an architecture that is converted here; the others are llama.cpp's."""
    return config.get("model_type") in _FAMILY


def canonical(name: str) -> str:
    """A checkpoint's tensor name without the wrappers' prefixes: `layers.0.…`, `embed_tokens.weight`, …"""
    name = re.sub(r"^(base_model\.model\.|_orig_mod\.|module\.)+", "", name)
    return re.sub(r"^(model\.|language_model\.)+", "", name)


def gguf_name(name: str) -> str | None:
    """GGUF name of a canonical tensor name; None for one that llama.cpp has no place for."""
    if name in _TOP:
        return _TOP[name]
    if name == "lm_head.weight":
        return "output.weight"
    found = _BLOCK.match(name)
    if not found or found[2] not in _PARTS:
        return None
    return f"blk.{found[1]}.{_PARTS[found[2]]}.{found[3]}"


def hf_name(name: str) -> str | None:
    """The checkpoint's name of a GGUF tensor, the inverse of `gguf_name`; None for one that has no counterpart."""
    if name == "output.weight":
        return "lm_head.weight"
    for ours, theirs in _TOP.items():
        if name == theirs:
            return f"model.{ours}"
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    part = next((ours for ours, theirs in _PARTS.items() if found and theirs == found[2]), None)
    return f"model.layers.{found[1]}.{part}.{found[3]}" if found and part else None


def block_of(name: str) -> int | None:
    """Index of the block that a canonical name belongs to."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


def reorder_rows(hparams: Hparams, gguf: str, rows: np.ndarray) -> np.ndarray:
    """Rows of a Q or K projection (weight, bias or LoRA B) in GGUF's order; everything else unchanged.

    Hugging Face rotates the two halves of a head, llama.cpp's llama rotates neighbours: [2, d/2] becomes
    [d/2, 2] within each head. qwen models rotate halves in both.
    """
    if hparams.arch != "llama" or not any(part in gguf for part in _ROW_ORDERED):
        return rows
    heads = hparams.n_head if "attn_q." in gguf else hparams.n_head_kv
    split = rows.reshape(heads, 2, hparams.head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def restore_rows(hparams: Hparams, gguf: str, rows: np.ndarray) -> np.ndarray:
    """Undoes `reorder_rows`."""
    if hparams.arch != "llama" or not any(part in gguf for part in _ROW_ORDERED):
        return rows
    heads = hparams.n_head if "attn_q." in gguf else hparams.n_head_kv
    split = rows.reshape(heads, hparams.head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)
