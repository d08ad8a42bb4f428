"""Shapes and vocabulary of the synthetic models that `sia-local bench` measures."""

from __future__ import annotations

import string
from dataclasses import dataclass, replace

from ..errors import ConfigError

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # tokenizer.ggml.token_type


@dataclass(frozen=True)
class Shape:
    """The dimensions of a qwen3 model with tied embeddings (the lm_head is the embedding matrix)."""

    name: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int = 128
    n_vocab: int = 151_936
    n_ctx_train: int = 40_960

    def __post_init__(self) -> None:
        if self.n_embd % 256 or self.n_ff % 256:
            raise ConfigError(
                f"The shape {self.name!r} has widths {self.n_embd} and {self.n_ff}; K-quants need multiples of 256."
            )

    @property
    def layer_params(self) -> int:
        attention = self.n_embd * self.head_dim * 2 * (self.n_head + self.n_head_kv)
        return attention + 3 * self.n_embd * self.n_ff

    @property
    def params(self) -> int:
        """Matrix weights a decode with logits reads: the layers and the tied embedding as lm_head."""
        return self.n_layer * self.layer_params + self.n_vocab * self.n_embd

    def fraction(self, n: int) -> Shape:
        """The same vocabulary with about 1/n of the weights: width by sqrt(n), the rest by depth."""
        width = max(256, round(self.n_embd / n**0.5 / 256) * 256)
        heads = max(1, self.n_head * width // self.n_embd)
        kv = max(1, self.n_head_kv * width // self.n_embd)
        ff = max(256, round(self.n_ff * width / self.n_embd / 256) * 256)
        thin = replace(self, name=f"{self.name}/{n}", n_embd=width, n_ff=ff, n_head=heads, n_head_kv=kv, n_layer=1)
        depth = round((self.params / n - self.n_vocab * width) / thin.layer_params)
        return replace(thin, n_layer=max(1, depth))


SHAPES = {
    "qwen3-0.6b": Shape("qwen3-0.6b", n_layer=28, n_embd=1024, n_ff=3072, n_head=16, n_head_kv=8),
    "qwen3-1.7b": Shape("qwen3-1.7b", n_layer=28, n_embd=2048, n_ff=6144, n_head=16, n_head_kv=8),
    "tiny": Shape("tiny", n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, head_dim=64, n_vocab=2048),
}


def parse_shape(spec: str) -> Shape:
    """`qwen3-0.6b`, `qwen3-1.7b`, `tiny` (for tests), or one of them with a fraction: `qwen3-0.6b/4`."""
    name, slash, part = spec.partition("/")
    if name not in SHAPES or (slash and (not part.isdigit() or int(part) < 2)):
        raise ConfigError(
            f"Got the synthetic shape {spec!r}; expected one of {', '.join(SHAPES)}, "
            "optionally with a fraction of at least 2 such as qwen3-0.6b/4."
        )
    return SHAPES[name].fraction(int(part)) if slash else SHAPES[name]


def byte_alphabet() -> list[str]:
    """The printable character that byte-level BPE writes for each byte 0..255 (GPT-2's convention)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = (chr(256 + i) for i in range(256))
    return [chr(b) if b in shown else next(hidden) for b in range(256)]


def vocabulary(n_vocab: int) -> tuple[list[str], list[int], list[str], dict[str, int]]:
    """A made-up byte-level BPE vocabulary: (tokens, token types, merges, ids of the special tokens).

    Words are strings of letter pairs. Every word has the merge that forms it, so the tokenizer has as many
    merges to load as a real one: start-up time is honest. Ids above the control tokens are unused padding; in
    the full vocabulary the control tokens have Qwen's ids.
    """
    n_padding = 290 if n_vocab > 4096 else 0
    n_words = n_vocab - n_padding - 3
    space = byte_alphabet()[ord(" ")]
    tokens = byte_alphabet()
    merges: list[str] = []

    def add(left: str, right: str) -> None:
        if len(tokens) < n_words:
            tokens.append(left + right)
            merges.append(f"{left} {right}")

    letters = string.ascii_lowercase
    pairs = [a + b for a in letters for b in letters]
    for pair in pairs:
        add(pair[0], pair[1])
    for word in [*letters, *pairs]:
        add(space, word)
    for i in range(len(pairs) ** 2):
        if len(tokens) == n_words:
            break
        left, right = pairs[i % len(pairs)], pairs[(i * 7 + i // len(pairs)) % len(pairs)]
        add(left, right)
        add(space + left, right)
    special = {"<|endoftext|>": n_words, "<|im_start|>": n_words + 1, "<|im_end|>": n_words + 2}
    tokens += [*special, *(f"[PAD{n_words + 3 + i}]" for i in range(n_padding))]
    types = [_NORMAL] * n_words + [_CONTROL] * 3 + [_UNUSED] * n_padding
    return tokens, types, merges, special
