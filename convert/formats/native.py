"""llama, qwen2 and qwen3 as GGUF without llama.cpp's converter: bases, and value models in the four layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sia_local.errors import IncompatibleError
from sia_local.llama.embeddings import write_trailer

from .arch import block_of, gguf_name, reorder_rows
from .checkpoint import Head
from .gguf_io import KV, Tensor, encode, f32, text, u32, write_gguf
from .hf import Backbone
from .vocab import Vocab


def backbone_tensors(backbone: Backbone, dtype: str, *, lm_head: bool) -> Iterator[Tensor]:
    """Every block and the final norm in GGUF's names and row order; embeddings and lm_head with `lm_head`.

    IncompatibleError for a weight that llama.cpp has no place for.
    """
    h = backbone.hparams
    factors = h.rope_factors()
    if factors is not None:
        yield Tensor("rope_freqs.weight", factors.shape, lambda: factors)
    for name in sorted(backbone.tensors, key=lambda n: (block_of(n) is not None, block_of(n) or 0, n)):
        block = block_of(name)
        if block is not None and block >= backbone.n_layer:
            continue
        if name == "score.weight" or name.endswith("rotary_emb.inv_freq"):
            continue
        if name == "lm_head.weight" and (h.tied or not lm_head):
            continue
        if name == "embed_tokens.weight" and not lm_head:
            continue
        target = gguf_name(name)
        if target is None or (h.arch != "llama" and "attn_output.bias" in target):
            raise IncompatibleError(
                f"{backbone.folder.name} has the weight {name}, which llama.cpp's {h.arch} has no place for"
            )

        def load(name: str = name, target: str = target) -> np.ndarray:
            return reorder_rows(h, target, backbone.get(name))

        shape = backbone.tensors.shape(name)
        yield Tensor(target, shape, load, dtype if len(shape) == 2 else "f32")


def write_base(path: Path, backbone: Backbone, vocab: Vocab, fields: dict[str, KV], dtype: str) -> None:
    """A whole model: a base, or a value model of the merged layout. Weights are of the type `dtype`."""
    h = backbone.hparams
    fields = {**fields, **h.fields(backbone.n_layer), **vocab.fields}
    write_gguf(path, h.arch, fields, backbone_tensors(backbone, dtype, lm_head=True))


def write_lean(path: Path, backbone: Backbone, head: Head, fields: dict[str, KV], dtype: str) -> None:
    """A model without a vocabulary, whose only logit is the value; its embedding rows are left out."""
    h = backbone.hparams
    fields = {
        **fields,
        **h.fields(backbone.n_layer),
        f"{h.arch}.vocab_size": u32(1),
        "tokenizer.ggml.model": text("no_vocab"),
    }
    tensors = [
        Tensor("token_embd.weight", (1, h.n_embd), lambda: np.zeros((1, h.n_embd), np.float32)),
        Tensor("output.weight", (1, h.n_embd), lambda: head.weight.reshape(1, -1)),
        *backbone_tensors(backbone, dtype, lm_head=False),
    ]
    write_gguf(path, h.arch, fields, tensors)


def append_rows(path: Path, load: Callable[[], np.ndarray], row_type: str, n_embd: int) -> None:
    """The embedding rows of a lean file behind its tensors; none where they are the base's."""
    import gguf

    if row_type == "base":
        return
    if row_type == "q8_0" and n_embd % 32:
        raise IncompatibleError(f"Q8_0 rows need a width divisible by 32, this model is {n_embd} wide: use f16")
    encoded = encode(load(), row_type)
    with path.open("ab") as handle:
        bytes_a_row = encoded.reshape(len(encoded), -1).view(np.uint8)
        write_trailer(handle, bytes_a_row, int(gguf.GGMLQuantizationType[row_type.upper()]), n_embd)


def write_adapter(path: Path, backbone: Backbone, fields: dict[str, KV], dtype: str) -> None:
    """The LoRA alone, which lies over the base's own weights."""
    h, lora = backbone.hparams, backbone.lora
    assert lora is not None
    # llama.cpp scales by alpha / rank; rank-stabilised LoRA divides by its root.
    fields = {**fields, "adapter.type": text("lora"), "adapter.lora.alpha": f32(lora.scale * lora.rank)}
    tensors = []
    for module in sorted(lora.pairs):
        a, b = lora.for_one_alpha(module)
        target = gguf_name(f"{module}.weight")
        if target is None:
            raise IncompatibleError(f"the LoRA touches {module}, which has no place in an adapter file")
        ordered = reorder_rows(h, target, b)
        tensors.append(Tensor(f"{target}.lora_a", a.shape, lambda a=a: a, dtype))  # type: ignore[misc]
        tensors.append(Tensor(f"{target}.lora_b", b.shape, lambda b=ordered: b, dtype))  # type: ignore[misc]
    write_gguf(path, h.arch, fields, tensors)
