"""Dimensions of a transformer, by name or from a GGUF, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sia_local.errors import ConfigError

# Bits a weight of a whole file, embeddings included, as llama.cpp's quantization makes them of such models.
BITS = {"F32": 32.0, "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q4_1": 5.0, "Q4_0": 4.6}


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped-query attention and gated feed-forward layers; norms and biases are left out."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool = True

    @property
    def blocks(self) -> int:
        """Weights of the layers."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.feed_forward)

    @property
    def output(self) -> int:
        """Weights of the output layer."""
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        return self.blocks + self.output * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Of one token in an f16 cache."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_width

    def flops(self, context: float, logits: bool) -> float:
        """Of one token's forward pass behind `context` others: two a weight, and four a number that attention reads."""
        attention = 4 * self.layers * self.heads * self.head_width * context
        return 2.0 * (self.blocks + (self.output if logits else 0)) + attention


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49_152),
    "qwen3-0.6b": Shape(28, 1024, 3072, 16, 8, 128, 151_936),
    "qwen3-1.7b": Shape(28, 2048, 6144, 16, 8, 128, 151_936),
    "qwen3-4b": Shape(36, 2560, 9728, 32, 8, 128, 151_936),
    "qwen3-8b": Shape(36, 4096, 12_288, 32, 8, 128, 151_936, tied=False),
    "qwen3-14b": Shape(40, 5120, 17_408, 40, 8, 128, 151_936, tied=False),
    "qwen3-32b": Shape(64, 5120, 25_600, 64, 8, 128, 151_936, tied=False),
    "llama-3.1-8b": Shape(32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
    "llama-3.1-70b": Shape(80, 8192, 28_672, 64, 8, 128, 128_256, tied=False),
}


def shape_of(name: str) -> Shape:
    """A name of SHAPES, or the path of a GGUF. ConfigError for neither, and for what is no such transformer."""
    if name.lower() in SHAPES:
        return SHAPES[name.lower()]
    if not Path(name).is_file():
        raise ConfigError(f"model {name!r}: expected the path of a GGUF or one of {', '.join(SHAPES)}")
    from sia_local.llama.gguf import GgufMetadata

    with GgufMetadata(name) as meta:
        arch = meta.get("general.architecture")

        def key(suffix: str, default: object = None) -> int:
            found = meta.get(f"{arch}.{suffix}", default)
            if not isinstance(found, int):
                raise ConfigError(f"{name}: {arch}.{suffix} is {found!r}; expected a dense transformer's whole number")
            return found

        if experts := meta.get(f"{arch}.expert_count"):
            raise ConfigError(f"{name}: has {experts} experts; expected a dense transformer, whose arithmetic this is")
        heads = key("attention.head_count")
        width = key("embedding_length")
        tokens = meta.get("tokenizer.ggml.tokens")
        return Shape(
            key("block_count"),
            width,
            key("feed_forward_length"),
            heads,
            key("attention.head_count_kv", heads),
            key("attention.key_length", width // heads),
            len(tokens) if tokens is not None else key("vocab_size"),
            tied="output.weight" not in meta.tensors(),
        )
