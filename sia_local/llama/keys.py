"""Metadata keys of a SIA value model in GGUF (contract versions 1 to 4), shared by the runtime and `convert`.

Every key lives in the `sia.` namespace; llama.cpp ignores unknown metadata keys and `llama_model_quantize`
keeps them, which is why the head travels here: a tensor it does not know makes llama.cpp refuse the file,
and a head that is never a tensor is never quantized.

A file names the lowest version that knows its kind: value, value-adapter and value-head stay at 1 and readable by
the programs of their time; value-qhead came with 2, its joint form with 3, sums with 4.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

CONTRACT_VERSION = 1  # of the three kinds of `KINDS`
QHEAD_VERSION = 2  # of a value-qhead
JOINT_VERSION = 3  # of one in the joint form
SUM_VERSION = 4  # of one that is a sum

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

# A Q-head, reward units up to a constant of s. h is the base's final normed hidden state, e_y the row of its output
# embedding. joint: Q(s, y) = scale * (v . act(A h + c + B e_y) + u . e_y); bilinear:
# scale * (f(h) . B e_y + u . e_y), f(h) = W h + b, or W act(A h + c) + b. m is n_hidden in the joint form, else rank.
# sum: the sum of such terms, number i = 0, 1, … with form, rank, scale, f.* and token.* under `sia.qhead.i.`.
# Arrays marked * are f32, or u16 holding the bits of IEEE half precision (GGUF has no array of halves); row major.
QHEAD_FORM = "sia.qhead.form"  # str: joint, bilinear or sum, absent in version 2: bilinear
QHEAD_TERMS = "sia.qhead.terms"  # u32, of a sum alone
QHEAD_RANK = "sia.qhead.rank"  # u32, bilinear alone
QHEAD_N_EMBD = "sia.qhead.n_embd"  # u32, width of h and of e
QHEAD_WEIGHT = "sia.qhead.f.weight"  # *[n_hidden], v; or W *[rank * n_embd], *[rank * n_hidden] with a hidden layer
QHEAD_BIAS = "sia.qhead.f.bias"  # *[rank], b, bilinear alone
QHEAD_HIDDEN_WEIGHT = "sia.qhead.f.hidden.weight"  # *[n_hidden * n_embd], A
QHEAD_HIDDEN_BIAS = "sia.qhead.f.hidden.bias"  # *[n_hidden], c
QHEAD_ACTIVATION = "sia.qhead.f.activation"  # str: silu, relu or gelu
QHEAD_TOKEN_WEIGHT = "sia.qhead.token.weight"  # *[m * n_embd], B
QHEAD_TOKEN_BIAS = "sia.qhead.token.bias"  # *[n_embd], u
QHEAD_SCALE = "sia.qhead.scale"  # f32
# V(s) = w h + b, reward units, for show; absent where the teacher knows differences only.
QHEAD_LEVEL_WEIGHT = "sia.qhead.level.weight"  # f32[n_embd]
QHEAD_LEVEL_BIAS = "sia.qhead.level.bias"  # f32
# How it was distilled, on held-out prompts.
QHEAD_TEACHER = "sia.qhead.teacher"  # str
QHEAD_JUNCTIONS = "sia.qhead.junctions"  # u64, junctions learned from
QHEAD_K = "sia.qhead.k"  # u32, candidates a junction
QHEAD_R2 = "sia.qhead.r2"  # f32, share of the teacher's variance within junctions that it explains
QHEAD_AGREEMENT = "sia.qhead.agreement"  # f32, share of junctions with the teacher's favourite at beta 2
QHEAD_GAIN_SHARE = "sia.qhead.gain_share"  # f32, share of the teacher's one-step gain at beta 2
QHEAD_AVERAGE = "sia.qhead.average"  # str, of which files it is the average, with their weights

KINDS = ("value", "value-adapter", "value-head")
QHEAD_KIND = "value-qhead"
KINDS_BY_VERSION = {1: KINDS, **dict.fromkeys((QHEAD_VERSION, JOINT_VERSION, SUM_VERSION), (*KINDS, QHEAD_KIND))}
LAYOUTS = ("merged", "lean")

TEXT, TEXTS, WHOLE, WHOLES = "text", "an array of texts", "a whole number", "an array of whole numbers"
NUMBER, NUMBERS = "a number", "an array of numbers"
_WHOLE, _NUMBER, _NUMBERS, _A_LAYER = (WHOLE,), (NUMBER, WHOLE), (NUMBERS, WHOLES), (WHOLE, WHOLES)
_EXPECTED = {
    **dict.fromkeys((VERSION, TRAIN_TOKENS, QHEAD_RANK, QHEAD_N_EMBD, QHEAD_JUNCTIONS, QHEAD_K, QHEAD_TERMS), _WHOLE),
    **dict.fromkeys(("general.file_type", "split.no", "split.count"), _WHOLE),
    **dict.fromkeys((HEAD_BIAS, REWARD_MEAN, REWARD_STD, VALUE_SPREAD, QHEAD_SCALE, QHEAD_LEVEL_BIAS), _NUMBER),
    **dict.fromkeys((QHEAD_R2, QHEAD_AGREEMENT, QHEAD_GAIN_SHARE), _NUMBER),
    **dict.fromkeys((HEAD_WEIGHT, HEAD_HIDDEN_WEIGHT, HEAD_HIDDEN_BIAS, QHEAD_LEVEL_WEIGHT), _NUMBERS),
    **dict.fromkeys((QHEAD_WEIGHT, QHEAD_BIAS, QHEAD_HIDDEN_WEIGHT, QHEAD_HIDDEN_BIAS), _NUMBERS),
    **dict.fromkeys((QHEAD_TOKEN_WEIGHT, QHEAD_TOKEN_BIAS), _NUMBERS),
    **dict.fromkeys((KIND, LAYOUT, HEAD_ACTIVATION, VOCAB_SHA256, PROMPT_TEMPLATE, BASE_NAME, REWARD_NAME), (TEXT,)),
    **dict.fromkeys((TRAIN_LOSS, QHEAD_ACTIVATION, QHEAD_FORM, QHEAD_TEACHER, QHEAD_AVERAGE), (TEXT,)),
    **dict.fromkeys(("general.architecture", "general.name", "general.type"), (TEXT,)),
    **dict.fromkeys(("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"), (TEXT,)),
    "tokenizer.ggml.tokens": (TEXTS,),
    "tokenizer.ggml.token_type": (WHOLES,),
}
# Of a model's own architecture, by how the key ends; some have a number a layer.
_OF_MODEL = {
    **dict.fromkeys(
        ("context_length", "embedding_length", "block_count", "expert_count", "expert_group_count"), _WHOLE
    ),
    **dict.fromkeys(("expert_group_used_count", "nextn_predict_layers", "rope.dimension_count"), _WHOLE),
    **dict.fromkeys(("attention.key_length", "attention.value_length", "shortconv.l_cache"), _WHOLE),
    **dict.fromkeys(("ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "ssm.group_count"), _WHOLE),
    **dict.fromkeys(("ssm.time_step_rank", "full_attention_interval", "attention.sliding_window"), _WHOLE),
    **dict.fromkeys(("attention.head_count", "attention.head_count_kv", "feed_forward_length"), _A_LAYER),
    **dict.fromkeys(("expert_used_count", "attention.recurrent_layers"), _A_LAYER),
    **dict.fromkeys(("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"), _NUMBER),
    "rope.scaling.type": (TEXT,),
}


_TERM = re.compile(r"sia\.qhead\.([0-9]+)\.(.*)", re.DOTALL)


def of_term(key: str, number: int) -> str:
    """The key of a term of a sum that means what `key`, of `sia.qhead.`, means of a Q-head that is no sum."""
    return f"sia.qhead.{number}.{key.removeprefix('sia.qhead.')}"


def expected(key: str) -> tuple[str, ...] | None:
    """What a metadata value may be, in words; None for a key that nothing here reads."""
    if (term := _TERM.fullmatch(key)) is not None:
        key = f"sia.qhead.{term[2]}"
    return _EXPECTED.get(key) or _OF_MODEL.get(key.partition(".")[2])


def kind_of(value: Any) -> str:
    """What a metadata value is, in the words of expected()."""
    if isinstance(value, str):
        return TEXT
    if isinstance(value, list):
        return TEXTS
    if isinstance(value, np.ndarray):
        return NUMBERS if value.dtype.kind == "f" else WHOLES
    return NUMBER if isinstance(value, float) else WHOLE


# A lean file may carry the embedding rows after the tensor data, closed by this footer:
# ggml type, n_embd, n_rows, reserved (0), magic.
TRAILER_FOOTER = struct.Struct("<IIII8s")
TRAILER_MAGIC = b"SIAEMBD1"


def vocab_sha256(tokens: Iterable[bytes]) -> str:
    """Fingerprint of a vocabulary: sha256 over every token's u64 little-endian length and bytes.

    `tokens` are the entries of `tokenizer.ggml.tokens` in order, UTF-8. Two models whose fingerprints agree
    give one id one meaning, which is what a value model needs to score a base model's candidates.
    """
    return hashlib.sha256(fingerprinted(tokens)).hexdigest()


def fingerprinted(tokens: Iterable[bytes]) -> bytes:
    """What a fingerprint hashes of these tokens."""
    return b"".join(part for token in tokens for part in (len(token).to_bytes(8, "little"), token))
