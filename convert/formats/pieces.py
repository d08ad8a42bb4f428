"""The SentencePiece vocabulary of a GGUF beside a tokenizer.json, for llama.cpp's converter, which reads no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gguf_io import KV
from .tensors import read_json
from .vocab import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED


def is_sentencepiece(fields: Mapping[str, KV]) -> bool:
    return fields["tokenizer.ggml.model"].value == "llama" if "tokenizer.ggml.model" in fields else False


def write_pieces(fields: Mapping[str, KV], folder: Path) -> None:
    """tokenizer.model, and what tokenizer_config.json has to say of control and user-defined tokens.

    The converter makes the same tokens, scores and types of them again; the scores of those two kinds, which say
    nothing, it sets to -1000.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # whose classes are made when it is imported

    def field(name: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.ggml.{name}")
        return default if found is None else found.value

    tokens = [token.decode() for token in fields["tokenizer.ggml.tokens"].value]
    types = list(fields["tokenizer.ggml.token_type"].value)
    scores = list(fields["tokenizer.ggml.scores"].value)
    unknown = field("unknown_token_id")
    if unknown is None:
        unknown = types.index(UNKNOWN) if UNKNOWN in types else 0
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(tokens)
    model.trainer_spec.unk_id = unknown
    model.trainer_spec.unk_piece = tokens[unknown]
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        index = field(f"{theirs}_token_id", -1)
        setattr(model.trainer_spec, f"{ours}_id", index)
        if index >= 0:
            setattr(model.trainer_spec, f"{ours}_piece", tokens[index])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(field("add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    pieces = [
        token.replace(" ", SPACE) if kind == USER_DEFINED else token for token, kind in zip(tokens, types, strict=True)
    ]
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        kind = UNKNOWN if i == unknown else NORMAL if kind == UNKNOWN else kind
        model.pieces.add(piece=piece, score=score, type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    for name in ("add_bos_token", "add_eos_token"):
        if (given := field(name)) is not None:
            settings[name] = given
    settings["added_tokens_decoder"] = {
        str(i): {"content": piece, "special": kind == CONTROL, "normalized": False}
        | {"lstrip": False, "rstrip": False, "single_word": False}
        for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    }
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
