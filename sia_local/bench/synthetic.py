"""Random-weight GGUF files in the shapes of published models, so that anyone can bench without a download.

These weights say nothing about quality. They say everything about cost: tensor shapes, quantization types,
vocabulary size, tokenizer size and file layout are those of a real model of the shape, and a decode does not
know that its weights are noise. Logits are neither constant nor peaked on one token (standard deviation 2.5
over the vocabulary), so gates, candidate sets and samplers do their ordinary work.

`ensure_*` writes a file once and finds it the next time. Value models are written next to their base: `value`
(layouts merged and lean), `value-adapter` (a random LoRA) and `value-head`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import cache_root, put, scratch
from ..llama import keys as keys
from ..values.qhead import Joint
from ..values.qhead_file import QHeadMeta, write_qhead
from .shapes import Shape, parse_shape, vocabulary

VERSION = 2  # part of every cached file's name: raise it when what is written changes
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
VALUE_TEMPLATE = "<|im_start|>user\n{{ prompt }}<|im_end|>\n<|im_start|>assistant\n"
_BLOCK = 1 << 22  # random numbers drawn for the layers; every tensor is cut from them at random offsets
_LOGIT_STD = 2.5


def cache_dir() -> Path:
    """Where synthetic files live between runs: `$XDG_CACHE_HOME/sia_local`, or `~/.cache/sia_local`."""
    return cache_root()


# --- weights


def _rows(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Independent normal f16 rows, drawn in chunks: no two rows of an embedding may be equal."""
    out = np.empty(shape, np.float16)
    for at in range(0, shape[0], 8192):
        part = rng.standard_normal((min(8192, shape[0] - at), shape[1]), dtype=np.float32)
        out[at : at + len(part)] = part * np.float32(scale)
    return out


class _Noise:
    """Layer weights cut from one block of normal numbers, scaled once for each fan-in."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block = rng.standard_normal(_BLOCK, dtype=np.float32)
        self._scaled: dict[float, np.ndarray] = {}

    def __call__(self, shape: tuple[int, int], scale: float) -> np.ndarray:
        block = self._scaled.setdefault(scale, (self._block * np.float32(scale)).astype(np.float16))
        out = np.empty(shape[0] * shape[1], np.float16)
        piece = _BLOCK // 4
        for at in range(0, len(out), piece):
            start = int(self._rng.integers(0, _BLOCK - piece))
            n = min(piece, len(out) - at)
            out[at : at + n] = block[start : start + n]
        return out.reshape(shape)


Tensor = tuple[str, tuple[int, ...], type, Callable[[], np.ndarray]]  # name, shape, dtype, how to make it


def _embedding(dims: tuple[int, int], rng: np.random.Generator) -> Tensor:
    return "token_embd.weight", dims, np.float16, partial(_rows, rng, dims, _LOGIT_STD * dims[1] ** -0.5)


def _layers(shape: Shape, noise: _Noise) -> Iterator[Tensor]:
    q, kv, d, ff = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim, shape.n_embd, shape.n_ff
    matrices = {
        "attn_q": (q, d),
        "attn_k": (kv, d),
        "attn_v": (kv, d),
        "attn_output": (d, q),
        "ffn_gate": (ff, d),
        "ffn_up": (ff, d),
        "ffn_down": (d, ff),
    }
    norms = {"attn_norm": d, "attn_q_norm": shape.head_dim, "attn_k_norm": shape.head_dim, "ffn_norm": d}
    for i in range(shape.n_layer):
        for name, dims in matrices.items():
            yield f"blk.{i}.{name}.weight", dims, np.float16, partial(noise, dims, dims[1] ** -0.5)
        for name, n in norms.items():
            yield f"blk.{i}.{name}.weight", (n,), np.float32, partial(np.ones, n, np.float32)
    yield "output_norm.weight", (d,), np.float32, partial(np.ones, d, np.float32)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "Writing synthetic models needs the gguf package, which is not installed: pip install 'sia-local[bench]'."
        ) from None
    return gguf


def _write(path: Path, shape: Shape, metadata: Callable[[Any], None], tensors: list[Tensor]) -> None:
    """One GGUF, tensor after tensor, so that memory holds the largest tensor and not the model."""
    gguf = _gguf()
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(f"synthetic {shape.name}")
    writer.add_description("Random weights: for measuring cost, not quality.")
    metadata(writer)
    for name, dims, dtype, _ in tensors:
        writer.add_tensor_info(name, dims, np.dtype(dtype), int(np.prod(dims)) * np.dtype(dtype).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, _, make in tensors:
        writer.write_tensor_data(make())
    writer.close()


def _dimensions(writer: Any, shape: Shape) -> None:
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)


def _tokenizer(writer: Any, shape: Shape) -> None:
    tokens, types, merges, special = vocabulary(shape.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_pad_token_id(special["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def _head(writer: Any, shape: Shape, kind: str, rng: np.random.Generator) -> np.ndarray:
    """The `sia.*` keys of a value model. Returns the head, f32[n_embd]; V is of order 1."""
    weight = (rng.standard_normal(shape.n_embd) / shape.n_embd**0.5).astype(np.float32)
    tokens = vocabulary(shape.n_vocab)[0]
    writer.add_uint32(keys.VERSION, keys.CONTRACT_VERSION)
    writer.add_string(keys.KIND, kind)
    writer.add_array(keys.HEAD_WEIGHT, weight.tolist())
    writer.add_float32(keys.HEAD_BIAS, 0.125)
    writer.add_float32(keys.REWARD_MEAN, 0.0)
    writer.add_float32(keys.REWARD_STD, 1.0)
    writer.add_float32(keys.VALUE_SPREAD, 1.0)
    writer.add_string(keys.VOCAB_SHA256, keys.vocab_sha256(t.encode() for t in tokens))
    writer.add_string(keys.PROMPT_TEMPLATE, VALUE_TEMPLATE)
    writer.add_string(keys.REWARD_NAME, "none (random weights)")
    return weight


# --- files


def write_base(path: Path, shape: Shape, seed: int = 0) -> None:
    """A language model in F16: layers, tied embeddings, tokenizer, chat template."""
    rng = np.random.default_rng(seed)
    embd = (shape.n_vocab, shape.n_embd)

    def metadata(writer: Any) -> None:
        _dimensions(writer, shape)
        _tokenizer(writer, shape)

    _write(path, shape, metadata, [_embedding(embd, rng), *_layers(shape, _Noise(rng))])


def write_value(path: Path, shape: Shape, layout: str = "merged", seed: int = 1) -> None:
    """A value model in F16.

    `merged` holds embeddings and tokenizer; `lean` has a vocabulary of one word, whose logit is V, and takes
    its embedding rows from a trailer (see `append_rows`).
    """
    rng = np.random.default_rng(seed)
    lean = layout == "lean"
    weight = np.empty(0, np.float32)

    def metadata(writer: Any) -> None:
        nonlocal weight
        _dimensions(writer, shape)
        weight = _head(writer, shape, "value", rng)
        writer.add_string(keys.LAYOUT, layout)
        if lean:
            writer.add_tokenizer_model("no_vocab")
            writer.add_vocab_size(1)
        else:
            _tokenizer(writer, shape)

    one = (1, shape.n_embd)
    if lean:
        ends: list[Tensor] = [
            ("token_embd.weight", one, np.float32, lambda: np.zeros(one, np.float32)),
            ("output.weight", one, np.float32, lambda: weight.reshape(one)),
        ]
    else:
        ends = [_embedding((shape.n_vocab, shape.n_embd), rng)]
    _write(path, shape, metadata, [*ends, *_layers(shape, _Noise(rng))])


def append_rows(path: Path, shape: Shape, seed: int = 1) -> None:
    """Appends the trailer of a lean value model: random Q8_0 embedding rows, then the footer."""
    gguf = _gguf()
    rng, q8 = np.random.default_rng(seed), gguf.GGMLQuantizationType.Q8_0
    scale = np.float32(_LOGIT_STD * shape.n_embd**-0.5)
    with open(path, "ab") as file:
        for at in range(0, shape.n_vocab, 8192):
            rows = rng.standard_normal((min(8192, shape.n_vocab - at), shape.n_embd), dtype=np.float32)
            gguf.quants.quantize(rows * scale, q8).tofile(file)
        file.write(keys.TRAILER_FOOTER.pack(int(q8), shape.n_embd, shape.n_vocab, 0, keys.TRAILER_MAGIC))


def write_head(path: Path, shape: Shape, seed: int = 2) -> None:
    """A `value-head` file: metadata only, read on the hidden states of the base of this shape."""
    rng = np.random.default_rng(seed)

    def metadata(writer: Any) -> None:
        _head(writer, shape, "value-head", rng)

    _write(path, shape, metadata, [])


def write_adapter(path: Path, shape: Shape, rank: int = 16, seed: int = 3) -> None:
    """A `value-adapter` file: random LoRA on q, k, v and o of the base of this shape, alpha 2 * rank, F16."""
    rng = np.random.default_rng(seed)
    q, kv, d = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim, shape.n_embd
    sizes = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
    tensors: list[Tensor] = []
    for i in range(shape.n_layer):
        for name, (n_out, n_in) in sizes.items():
            for part, dims, scale in (
                ("lora_a", (rank, n_in), n_in**-0.5),
                ("lora_b", (n_out, rank), 0.1 * rank**-0.5),
            ):
                make = partial(_rows, rng, dims, scale)
                tensors.append((f"blk.{i}.{name}.weight.{part}", dims, np.float16, make))

    def metadata(writer: Any) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 2.0 * rank)
        _head(writer, shape, "value-adapter", rng)

    _write(path, shape, metadata, tensors)


def write_random_qhead(path: Path, shape: Shape, n_hidden: int = 256) -> None:
    rng = np.random.default_rng(0)

    def matrix(*size: int) -> Any:
        return (rng.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)

    qhead = Joint(
        weight=matrix(n_hidden),
        token_weight=matrix(n_hidden, shape.n_embd),
        token_bias=np.zeros(shape.n_embd, np.float32),
        hidden_weight=matrix(n_hidden, shape.n_embd),
        hidden_bias=np.zeros(n_hidden, np.float32),
        spread=1.0,
    )
    write_qhead(path, qhead, QHeadMeta())


def ensure(
    shape: Shape | str,
    kind: str = "base",
    folder: Path | None = None,
    ftype: str = "Q4_K_M",
    n_threads: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """The path of a synthetic file, written first if it is not there.

    `kind`: base, value (merged), lean, adapter, head or qhead. `ftype` is the quantization of base and value models
    (`F16` keeps them as written). `say` is told before something slow happens. Twice the size of an F16 model
    must be free in `folder` (default: `cache_dir()`) while a model is quantized.
    """
    shape = parse_shape(shape) if isinstance(shape, str) else shape
    if kind not in ("base", "value", "lean", "adapter", "head", "qhead"):
        raise ConfigError(f"Got the synthetic kind {kind!r}; expected base, value, lean, adapter, head or qhead.")
    folder = cache_dir() if folder is None else Path(folder)
    stem = f"synthetic{VERSION}-{shape.name.replace('/', '-div')}-{kind}"
    path = folder / (f"{stem}.gguf" if kind in ("adapter", "head", "qhead") else f"{stem}-{ftype}.gguf")
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    say(f"writing {path} (random weights, once)")
    with scratch(path) as room:
        half, done = room / "f16.gguf", room / "new.gguf"
        if kind == "adapter":
            write_adapter(done, shape)
        elif kind == "head":
            write_head(done, shape)
        elif kind == "qhead":
            write_random_qhead(done, shape)
        else:
            if kind == "base":
                write_base(half, shape)
            else:
                write_value(half, shape, "lean" if kind == "lean" else "merged")
            if ftype == "F16":
                os.replace(half, done)
            else:
                from ..llama.quantize import quantize

                quantize(half, done, ftype, n_threads)
            if kind == "lean":
                append_rows(done, shape)
        put(done, path)
    return path
