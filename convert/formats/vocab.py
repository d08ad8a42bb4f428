"""The tokenizer of a GGUF file: from a Hugging Face folder, or taken over from another GGUF."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sia_local.errors import IncompatibleError, ModelFileError
from sia_local.files import read_text
from sia_local.llama.keys import vocab_sha256

from .gguf_io import KV, boolean, f32_array, i32_array, read_gguf, text, text_array, u32
from .hf import adds_bos, load_tokenizer
from .tensors import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (expression of the Split step or None, digits one by one, ByteLevel's own expression, known words taken whole without
# merging) -> llama.cpp's name
_PRE_TOKENIZERS = {
    (_WORDS % "", False, False, False): "qwen2",
    (_WORDS % "{1,3}", False, False, True): "llama-bpe",
    (_WORDS % "{1,3}", False, False, False): "smaug-bpe",
    (None, False, True, False): "gpt-2",
    (None, True, True, False): "smollm",
}


@dataclass(frozen=True)
class Vocab:
    """Tokens as stored in `tokenizer.ggml.tokens` and every `tokenizer.*` field of the file."""

    tokens: list[bytes]
    fields: dict[str, KV]

    @property
    def sha256(self) -> str:
        return vocab_sha256(self.tokens)

    @property
    def chat_template(self) -> str | None:
        found = self.fields.get("tokenizer.chat_template")
        return None if found is None else str(found.value)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> Vocab:
        fields, _ = read_gguf(path)
        return cls.from_fields(fields, path)

    @classmethod
    def from_fields(cls, fields: Mapping[str, KV], path: str | os.PathLike[str]) -> Vocab:
        tokens = fields.get("tokenizer.ggml.tokens")
        if tokens is None:
            raise IncompatibleError(f"{path} has no vocabulary; give a base GGUF with its tokenizer")
        kept = {
            key: field
            for key, field in fields.items()
            if key.startswith("tokenizer.") and not (isinstance(field.value, list) and not field.value)
        }
        return cls(list(tokens.value), kept)

    @classmethod
    def from_hf(cls, folder: str | os.PathLike[str], n_vocab: int, pre: str | None = None) -> Vocab:
        """Byte-level BPE (tokenizer.json) or SentencePiece (tokenizer.model), padded to `n_vocab` tokens.

        `pre` names llama.cpp's pre-tokenizer where the one in tokenizer.json is not recognised.
        """
        root = Path(folder)
        settings = read_json(root / "tokenizer_config.json") if (root / "tokenizer_config.json").exists() else {}
        spec = read_json(root / "tokenizer.json") if (root / "tokenizer.json").exists() else None
        if spec is not None and _is_byte_level(spec):
            tokens, fields = _byte_level(root, spec, n_vocab, pre)
        elif (root / "tokenizer.model").exists():
            tokens, fields = _sentencepiece(_pieces(root / "tokenizer.model"), spec, settings, n_vocab)
        elif spec is not None and spec.get("model", {}).get("byte_fallback"):
            tokens, fields = _sentencepiece(_pieces_from_json(spec), spec, settings, n_vocab)
        else:
            raise IncompatibleError(
                f"{root} has no tokenizer this can write: expected tokenizer.json with byte-level BPE, "
                "or a SentencePiece tokenizer.model"
            )
        fields.update(_specials(root, settings, spec, tokens))
        # What transformers does, which settings and post-processor do not always say alike.
        fields["tokenizer.ggml.add_bos_token"] = boolean(adds_bos(load_tokenizer(root)))
        template = _chat_template(root, settings)
        if template:
            fields["tokenizer.chat_template"] = text(template)
        return cls(tokens, fields)

    def resized(self, n_vocab: int) -> Vocab:
        """With padding added or removed at the end; IncompatibleError if real tokens would be lost."""
        if n_vocab == len(self.tokens):
            return self
        if n_vocab < len(_unpadded(self.tokens)):
            raise IncompatibleError(
                f"the vocabulary has {len(_unpadded(self.tokens))} tokens, the model only {n_vocab} embedding rows"
            )
        tokens = [*self.tokens[:n_vocab], *(_entry(i) for i in range(len(self.tokens), n_vocab))]
        fields = {**self.fields, "tokenizer.ggml.tokens": text_array(tokens)}
        for name, filler in (("token_type", UNUSED), ("scores", -1000.0)):
            old = fields.get(f"tokenizer.ggml.{name}")
            if old is not None:
                values = [*old.value[:n_vocab], *[filler] * (n_vocab - len(old.value))]
                fields[f"tokenizer.ggml.{name}"] = old._replace(value=values)
        return Vocab(tokens, fields)

    def agrees_with(self, other: Vocab) -> bool:
        """Whether every id means the same in both; padding at the end (`[PAD…]`) does not count."""
        return _unpadded(self.tokens) == _unpadded(other.tokens)


def _entry(index: int) -> bytes:
    return f"[PAD{index}]".encode()


def _unpadded(tokens: list[bytes]) -> list[bytes]:
    end = len(tokens)
    while end and tokens[end - 1] == _entry(end - 1):
        end -= 1
    return tokens[:end]


def _steps(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = spec.get("pre_tokenizer") or {}
    return list(found.get("pretokenizers", [found])) if found else []


def _is_byte_level(spec: Mapping[str, Any]) -> bool:
    return spec.get("model", {}).get("type") == "BPE" and any(s.get("type") == "ByteLevel" for s in _steps(spec))


def _pre_name(spec: Mapping[str, Any]) -> str | None:
    # llama.cpp changes no text before it splits; that it does not compose characters (NFC) is the same for all models.
    before = spec.get("normalizer") or {}
    other = any(step.get("type") not in (None, "NFC") for step in before.get("normalizers", [before]))
    regex, digits, own = None, False, False
    for step in _steps(spec):
        if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            other |= regex is not None or "Regex" not in step["pattern"]
            regex = step["pattern"].get("Regex")
        elif step["type"] == "Digits":
            digits = bool(step.get("individual_digits"))
        elif step["type"] == "ByteLevel":
            own = bool(step.get("use_regex", True))
            other |= bool(step.get("add_prefix_space"))
        else:
            other = True
    whole = bool(spec["model"].get("ignore_merges"))
    return None if other else _PRE_TOKENIZERS.get((regex, digits, own, whole))


def _byte_level(root: Path, spec: dict[str, Any], n_vocab: int, pre: str | None) -> tuple[list[bytes], dict[str, KV]]:
    name = pre or _pre_name(spec)
    if name is None:
        raise IncompatibleError(
            f"{root}/tokenizer.json splits text in a way that is not known here (known: "
            f"{', '.join(sorted(_PRE_TOKENIZERS.values()))}); name llama.cpp's pre-tokenizer with --pre"
        )
    by_id = {index: token for token, index in spec["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for added in spec.get("added_tokens", []):
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    tokens, types = _padded(by_id, kinds, n_vocab, root)
    merges = []
    for merge in spec["model"]["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        merges.append(f"{left} {right}".encode())
    fields = {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(name),
        "tokenizer.ggml.tokens": text_array(tokens),
        "tokenizer.ggml.token_type": i32_array(types),
        "tokenizer.ggml.merges": text_array(merges),
    }
    if not merges:
        raise IncompatibleError(f"{root}/tokenizer.json has no merges; llama.cpp needs at least one")
    return tokens, fields


def _padded(
    by_id: Mapping[int, str], kinds: Mapping[int, int], n_vocab: int, root: Path
) -> tuple[list[bytes], list[int]]:
    if by_id and max(by_id) >= n_vocab:
        raise IncompatibleError(
            f"the tokenizer in {root} has {max(by_id) + 1} tokens, the model {n_vocab} embedding rows: "
            "they do not belong together"
        )
    tokens = [by_id.get(i, f"[PAD{i}]").encode() for i in range(n_vocab)]
    return tokens, [kinds.get(i, UNUSED) for i in range(n_vocab)]


def _pieces(path: Path) -> tuple[list[tuple[str, float, int]], bool]:
    """(piece, score, type) of a SentencePiece model and whether it puts a space in front of the text."""
    pieces: list[tuple[str, float, int]] = []
    prefix = True
    try:
        for number, value in _protobuf(path.read_bytes()):
            if number == 1:
                entry = dict(_protobuf(value))
                score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
                pieces.append((entry[1].decode(), score, entry.get(3, NORMAL)))
            elif number == 3:
                prefix = bool(dict(_protobuf(value)).get(3, 1))
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path} is not a SentencePiece model") from error
    return pieces, prefix


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: varints as int, the rest as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            if key & 7 != 2:
                raise ValueError("wire type")
            size = varint()
        yield key >> 3, data[at : at + size]
        at += size


def _pieces_from_json(spec: Mapping[str, Any]) -> tuple[list[tuple[str, float, int]], bool]:
    """SentencePiece BPE as tokenizer.json keeps it: ids are in merge order, so the id gives the score."""
    vocab = sorted(spec["model"]["vocab"].items(), key=lambda item: item[1])
    unknown = spec["model"].get("unk_token")
    pieces = []
    for piece, index in vocab:
        byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        pieces.append((piece, float(-index), BYTE if byte else UNKNOWN if piece == unknown else NORMAL))
    steps = spec.get("normalizer") or {}
    prefix = any(s.get("type") == "Prepend" for s in steps.get("normalizers", [steps]))
    prefix |= any(s.get("prepend_scheme") in ("first", "always") for s in _steps(spec))
    return pieces, prefix


def _sentencepiece(
    source: tuple[list[tuple[str, float, int]], bool],
    spec: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    n_vocab: int,
) -> tuple[list[bytes], dict[str, KV]]:
    pieces, prefix = source
    by_id = {i: piece for i, (piece, _, _) in enumerate(pieces)}
    kinds = {i: kind for i, (_, _, kind) in enumerate(pieces)}
    scores = {i: score for i, (_, score, _) in enumerate(pieces)}
    added = list(spec.get("added_tokens", [])) if spec else []
    for index, entry in (settings.get("added_tokens_decoder") or {}).items():
        added.append({"id": int(index), **entry})
    for entry in added:
        index = entry["id"]
        if index in kinds and kinds[index] in (UNKNOWN, BYTE):
            continue
        # llama.cpp looks for these in the text as it was given, not in pieces.
        by_id[index] = entry["content"] if entry.get("special") else entry["content"].replace(SPACE, " ")
        kinds[index] = CONTROL if entry.get("special") else USER_DEFINED
        scores.setdefault(index, -1000.0)
    tokens, types = _padded(by_id, kinds, n_vocab, Path("."))
    if "add_prefix_space" in settings and settings["add_prefix_space"] is not None:
        prefix = bool(settings["add_prefix_space"])
    return tokens, {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.pre": text("default"),
        "tokenizer.ggml.tokens": text_array(tokens),
        "tokenizer.ggml.scores": f32_array([scores.get(i, -1000.0) for i in range(n_vocab)]),
        "tokenizer.ggml.token_type": i32_array(types),
        "tokenizer.ggml.add_space_prefix": boolean(prefix),
    }


def _specials(
    root: Path, settings: Mapping[str, Any], spec: Mapping[str, Any] | None, tokens: list[bytes]
) -> dict[str, KV]:
    ids = {token: i for i, token in reversed(list(enumerate(tokens)))}
    mapped = settings
    if (root / "special_tokens_map.json").exists():
        mapped = {**read_json(root / "special_tokens_map.json"), **{k: v for k, v in settings.items() if v}}
    found: dict[str, KV] = {}
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in names.items():
        value = mapped.get(f"{ours}_token")
        content = value.get("content") if isinstance(value, Mapping) else value
        if content and content.encode() in ids:
            found[f"tokenizer.ggml.{theirs}_token_id"] = u32(ids[content.encode()])
    config = read_json(root / "config.json") if (root / "config.json").exists() else {}
    for ours in ("bos", "eos"):
        value = config.get(f"{ours}_token_id")
        key = f"tokenizer.ggml.{ours}_token_id"
        if key not in found and isinstance(value, int) and 0 <= value < len(tokens):
            found[key] = u32(value)
    value = settings.get("add_eos_token")
    if value is None:
        value = _added_by_template(spec, mapped.get("eos_token"))
    found["tokenizer.ggml.add_eos_token"] = boolean(bool(value))
    return found


def _added_by_template(spec: Mapping[str, Any] | None, token: Any) -> bool:
    content = token.get("content") if isinstance(token, Mapping) else token
    step = (spec or {}).get("post_processor") or {}
    steps = [step, *step.get("processors", [])]
    single = [part for s in steps for part in s.get("single") or []]
    return any(part.get("SpecialToken", {}).get("id") == content for part in single) if content else False


def _chat_template(root: Path, settings: Mapping[str, Any]) -> str | None:
    if (root / "chat_template.jinja").exists():
        return read_text(root / "chat_template.jinja", "a chat template")
    found = settings.get("chat_template")
    if isinstance(found, list):
        by_name = {entry["name"]: entry["template"] for entry in found}
        found = by_name.get("default") or next(iter(by_name.values()), None)
    return found if isinstance(found, str) else None
