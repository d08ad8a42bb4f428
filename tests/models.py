"""Random-weight GGUFs for the runtime's tests, written directly: no torch, milliseconds each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import gguf
import numpy as np
from architectures import ARCHITECTURES, HEAD_DIM, N_CTX, N_EMBD, N_FF, N_HEAD, N_KV, N_LAYER, N_VOCAB

from sia_local.bench.shapes import vocabulary
from sia_local.llama import keys

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokens(n_vocab: int = N_VOCAB, over: dict[str, Any] | None = None) -> list[str]:
    over = over or {}
    words = [over.get("renamed", {}).get(i, word) for i, word in enumerate(vocabulary(n_vocab)[0])]
    words += over.get("marks", {})
    return words + [f"[PAD{i}]" for i in range(len(words), len(words) + over.get("padding", 0))]


def head(seed: int = 5) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(N_EMBD).astype(np.float32), 0.25


def _layers(arch: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    if arch in ARCHITECTURES:
        return architectures.layers(arch, rng)

    def matrix(out: int, into: int) -> np.ndarray:
        return (rng.standard_normal((out, into)) * 1.5 / np.sqrt(into)).astype(np.float32)

    def norm(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    out: dict[str, np.ndarray] = {}
    for i in range(N_LAYER):
        b = f"blk.{i}."
        q, kv = N_HEAD * HEAD_DIM, N_KV * HEAD_DIM
        out |= {b + "attn_norm.weight": norm(N_EMBD), b + "ffn_norm.weight": norm(N_EMBD)}
        out |= {b + "attn_q.weight": matrix(q, N_EMBD), b + "attn_output.weight": matrix(N_EMBD, q)}
        out |= {b + "attn_k.weight": matrix(kv, N_EMBD), b + "attn_v.weight": matrix(kv, N_EMBD)}
        out |= {b + "ffn_gate.weight": matrix(N_FF, N_EMBD), b + "ffn_up.weight": matrix(N_FF, N_EMBD)}
        out[b + "ffn_down.weight"] = matrix(N_EMBD, N_FF)
        if arch == "qwen2":
            for name, n in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
                out[f"{b}{name}.bias"] = (0.1 * rng.standard_normal(n)).astype(np.float32)
        if arch == "qwen3":
            out |= {b + "attn_q_norm.weight": norm(HEAD_DIM), b + "attn_k_norm.weight": norm(HEAD_DIM)}
    out["output_norm.weight"] = norm(N_EMBD)
    return out


def _hparams(writer: gguf.GGUFWriter) -> None:
    found = ARCHITECTURES.get(writer.arch)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(found.n_layer if found else N_LAYER)
    writer.add_feed_forward_length(found.ff if found else N_FF)
    writer.add_head_count(found.heads if found else N_HEAD)
    writer.add_head_count_kv(found.kv if found else N_KV)
    if found:
        found.keys(writer)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)


def _tokenizer(writer: gguf.GGUFWriter, n_vocab: int, over: dict[str, Any]) -> None:
    _, types, merges, special = vocabulary(n_vocab)
    types += [*over.get("marks", {}).values(), *[5] * over.get("padding", 0)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens(n_vocab, over))
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(special["<|im_end|>"])
    if over.get("bos", True):
        writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_add_bos_token(over.get("add_bos", False))
    writer.add_add_eos_token(over.get("add_eos", False))
    if template := over.get("template", TEMPLATE):
        writer.add_chat_template(template)


def _contract(writer: gguf.GGUFWriter, kind: str, n_vocab: int, over: dict[str, Any]) -> None:
    weight, bias = head()
    writer.add_uint32(keys.VERSION, over.get("version", keys.CONTRACT_VERSION))
    writer.add_string(keys.KIND, kind)
    writer.add_array(keys.HEAD_WEIGHT, [float(x) for x in over.get("head", weight)])
    writer.add_float32(keys.HEAD_BIAS, bias)
    if "hidden" in over:
        writer.add_array(keys.HEAD_HIDDEN_WEIGHT, [float(x) for x in np.ravel(over["hidden"])])
        writer.add_array(keys.HEAD_HIDDEN_BIAS, [0.5] * len(over["head"]))
    writer.add_float32(keys.VALUE_SPREAD, over.get("spread", 0.5))
    writer.add_string(keys.PROMPT_TEMPLATE, over.get("template", TEMPLATE))
    digest = keys.vocab_sha256(t.encode() for t in tokens(n_vocab, {**over, "renamed": {}}))
    writer.add_string(keys.VOCAB_SHA256, over.get("sha256", digest))


def _qhead(path: Path, rng: np.random.Generator, over: dict[str, Any]) -> Path:
    from sia_local.values.qhead import Bilinear, Joint, QHead, Sum
    from sia_local.values.qhead_file import QHeadMeta, write_qhead

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    qhead: QHead
    qhead = joint = Joint(
        weight=matrix(24),
        token_weight=matrix(24, N_EMBD),
        token_bias=matrix(N_EMBD),
        hidden_weight=matrix(24, N_EMBD),
        hidden_bias=matrix(24),
        spread=over.get("spread", 0.5),
        level_weight=matrix(N_EMBD) if over.get("level", True) else None,
        level_bias=0.25,
    )
    if over.get("summed"):
        bilinear = Bilinear(
            weight=matrix(8, N_EMBD), bias=matrix(8), token_weight=matrix(8, N_EMBD), token_bias=matrix(N_EMBD)
        )
        qhead = Sum(parts=(joint, bilinear), spread=joint.spread, level_weight=joint.level_weight, level_bias=0.25)
    vocab = keys.vocab_sha256(t.encode() for t in tokens(over.get("n_vocab", N_VOCAB), {**over, "renamed": {}}))
    write_qhead(path, qhead, QHeadMeta(vocab_sha256=over.get("sha256", vocab)), dtype="f32")
    return path


def write(path: Path, arch: str = "qwen3", kind: str = "base", seed: int = 0, **over: Any) -> Path:
    """kind: base, merged, lean, adapter, head or qhead.

    over: n_vocab, marks (more tokens: their type), padding (rows), renamed (id: token), split (tensors a file),
    template, bos, add_bos, add_eos,
    version, sha256, head, hidden, spread, nan, ascii, layout, summed (a Q-head of two terms).
    ascii: the likeliest tokens are plain text, no halves of characters and no end.
    """
    rng = np.random.default_rng(seed)
    if kind == "qhead":
        return _qhead(path, rng, over)
    n_vocab = over.get("n_vocab", N_VOCAB)
    writer = gguf.GGUFWriter(str(path), arch, split_max_tensors=over.get("split", 0))
    writer.add_name(path.stem)
    layers = _layers(arch, rng)
    n_rows = n_vocab + len(over.get("marks", {})) + over.get("padding", 0)
    embeddings = rng.standard_normal((n_rows, N_EMBD)).astype(np.float32)
    output = (rng.standard_normal((n_rows, N_EMBD)) * 2 / np.sqrt(N_EMBD)).astype(np.float32)
    if over.get("ascii"):
        plain = [all(c.isascii() or c in "ĠĊ" for c in t) and "<|" not in t for t in tokens(n_vocab)]
        output[~np.array(plain)] = 0
    weights: dict[str, np.ndarray] = {}
    if kind in ("base", "merged"):
        _hparams(writer)
        writer.add_vocab_size(n_rows)
        _tokenizer(writer, n_vocab, over)
        weights = {"token_embd.weight": embeddings, "output.weight": output, **layers}
        if over.get("nan"):
            weights["output_norm.weight"] = np.full(N_EMBD, np.nan, np.float32)
    elif kind == "lean":
        _hparams(writer)
        writer.add_vocab_size(1)
        writer.add_tokenizer_model("no_vocab")
        weights = {"token_embd.weight": np.zeros((1, N_EMBD), np.float32), "output.weight": head()[0][None], **layers}
    elif kind == "adapter":
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 4.0)
        found = ARCHITECTURES.get(arch)
        for name in found.adapted if found else ("blk.1.attn_q.weight", "blk.1.attn_v.weight"):
            shape = layers[name].shape
            weights[f"{name}.lora_a"] = rng.standard_normal((4, shape[1])).astype(np.float32) / 8
            weights[f"{name}.lora_b"] = rng.standard_normal((shape[0], 4)).astype(np.float32) / 8
    if kind != "base":
        kinds = {"merged": "value", "lean": "value", "adapter": "value-adapter", "head": "value-head"}
        _contract(writer, kinds[kind], n_vocab, over)
        if kind in keys.LAYOUTS:
            writer.add_string(keys.LAYOUT, over.get("layout", kind))
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if over.get("split"):
        path = next(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))
    if kind == "lean":
        from sia_local.llama.embeddings import write_trailer

        with path.open("ab") as handle:
            write_trailer(handle, embeddings.view(np.uint8).reshape(n_rows, -1), 0, N_EMBD)
    return path
