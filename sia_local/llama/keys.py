"""Metadata keys of a SIA value model in GGUF (contract version 1), shared by the runtime and `convert`.

Every key lives in the `sia.` namespace; llama.cpp ignores unknown metadata keys and `llama_model_quantize`
keeps them, which is why the head travels here: a tensor it does not know makes llama.cpp refuse the file,
and a head that is never a tensor is never quantized.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

CONTRACT_VERSION = 1

VERSION = "sia.version"  # u32
KIND = "sia.kind"  # str, one of KINDS
LAYOUT = "sia.layout"  # str, one of LAYOUTS (kind `value` only)
HEAD_WEIGHT = "sia.head.weight"  # f32[n_embd], or f32[n_hidden] when a hidden layer is present
HEAD_BIAS = "sia.head.bias"  # f32
HEAD_HIDDEN_WEIGHT = "sia.head.hidden.weight"  # f32[n_hidden * n_embd], row major (one row a hidden unit)
HEAD_HIDDEN_BIAS = "sia.head.hidden.bias"  # f32[n_hidden]
HEAD_ACTIVATION = "sia.head.activation"  # str: silu, relu or gelu
REWARD_MEAN = "sia.reward.mean"  # f32, reward units: what training subtracted (already undone in the head)
REWARD_STD = "sia.reward.std"  # f32, reward units: what training divided by (already undone in the head)
VALUE_SPREAD = "sia.value.spread"  # f32, reward units: std of V among a junction's candidates
VOCAB_SHA256 = "sia.vocab.sha256"  # str
PROMPT_TEMPLATE = "sia.prompt_template"  # str, jinja: how the value model reads the prompt
BASE_NAME = "sia.base.name"  # str
REWARD_NAME = "sia.reward.name"  # str
TRAIN_LOSS = "sia.train.loss"  # str
TRAIN_TOKENS = "sia.train.tokens"  # u64

KINDS = ("value", "value-adapter", "value-head")
LAYOUTS = ("merged", "lean")

# A lean file may carry the embedding rows after the tensor data, closed by this footer:
# ggml type, n_embd, n_rows, reserved (0), magic.
TRAILER_FOOTER = struct.Struct("<IIII8s")
TRAILER_MAGIC = b"SIAEMBD1"


def vocab_sha256(tokens: Iterable[bytes]) -> str:
    """Fingerprint of a vocabulary: sha256 over every token's u64 little-endian length and bytes.

    `tokens` are the entries of `tokenizer.ggml.tokens` in order, UTF-8. Two models whose fingerprints agree
    give one id one meaning, which is what a value model needs to score a base model's candidates.
    """
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(len(token).to_bytes(8, "little"))
        digest.update(token)
    return digest.hexdigest()
