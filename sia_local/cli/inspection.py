"""What a GGUF holds for this program, from its metadata alone, and whether a base and a value model fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..llama import keys
from ..llama.costs import MemoryCost, is_recurrent, memory_cost
from ..llama.gguf import GgufMetadata
from ..llama.quantize import quantization_name
from ..llama.sound import check_sound
from ..reasoning import find_format


@dataclass(frozen=True)
class Inspection:
    """kind: `base`, or a value model's (keys.KINDS, keys.QHEAD_KIND). parts: files it lies in. parameters: of all
    tensors. window: tokens that layers with a sliding window see, 0 for none. reasoning: how the chat template marks
    it. recurrent: its memory cannot forget a token, a branch copies it. memory: what a sequence costs, of a file with
    weights of its own. sia: every `sia.*` entry, weights by their count."""

    path: Path
    parts: int
    kind: str
    layout: str | None
    architecture: str
    name: str | None
    quantization: str | None
    size_bytes: int
    parameters: int
    n_layer: int | None
    n_embd: int | None
    n_ctx_train: int | None
    n_vocab: int
    tokenizer: str | None
    vocab_sha256: str | None
    chat_template: bool
    reasoning: str | None
    window: int
    recurrent: bool
    memory: MemoryCost | None
    sia: dict[str, Any]


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Raises ModelFileError for a file that is not a whole GGUF."""
    with GgufMetadata(path) as meta:
        check_sound(meta, meta.texts("tokenizer.ggml.tokens"))
        tensors = meta.tensors()
        size = sum(map(_whole_size, meta.parts))
        arch = meta.get("general.architecture", "?")
        sia = {key: meta.get(key) for key in sorted(meta.keys()) if key.startswith("sia.")}
        for key, entry in sia.items():
            if hasattr(entry, "shape"):
                sia[key] = f"{len(entry)} numbers"
        kind = meta.get(keys.KIND, "value" if keys.HEAD_WEIGHT in meta else "base")
        own_weights = kind in ("base", "value") and bool(tensors)
        file_type = meta.get("general.file_type")
        template = meta.get("tokenizer.chat_template")
        reasons = find_format("auto", template, lambda _: False) if template else None
        return Inspection(
            path=meta.path,
            parts=len(meta.parts),
            kind=kind,
            layout=meta.get(keys.LAYOUT, "merged") if kind == "value" else None,
            architecture=arch,
            name=meta.get("general.name"),
            quantization=None if file_type is None or not own_weights else quantization_name(int(file_type)),
            size_bytes=size,
            parameters=sum(prod(shape) for shape in tensors.values()),
            n_layer=meta.get(f"{arch}.block_count"),
            n_embd=meta.get(f"{arch}.embedding_length"),
            n_ctx_train=meta.get(f"{arch}.context_length"),
            n_vocab=meta.array_length("tokenizer.ggml.tokens"),
            tokenizer=meta.get("tokenizer.ggml.model"),
            vocab_sha256=meta.vocab_sha256() or meta.get(keys.VOCAB_SHA256),
            chat_template=template is not None,
            reasoning=reasons.name if reasons is not None else None,
            window=int(meta.get(f"{arch}.attention.sliding_window") or 0),
            recurrent=is_recurrent(meta),
            memory=memory_cost(meta) if own_weights else None,
            sia=sia,
        )


def _whole_size(part: GgufMetadata) -> int:
    """Bytes of one file. Raises ModelFileError for one that ends before its tensors do."""
    size = part.path.stat().st_size
    end = max((sum(part.tensor_span(name)[1:]) for name in part.own_tensors()), default=0)
    if end > size:
        raise ModelFileError(
            f"{part.path}: the file is truncated, it holds {size} bytes and its tensors reach to {end}; download or "
            "convert it again"
        )
    return size


def check_fit(base: str | os.PathLike[str], value: str | os.PathLike[str]) -> None:
    """Loads both as a generation would, with a short context. Raises what SIA.load raises."""
    from ..generation.sia import SIA

    SIA.load(base, value, n_ctx=64).close()
