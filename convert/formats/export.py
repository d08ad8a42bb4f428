"""Writes GGUF, a base or a value model in one of four layouts: aside, loaded back, then moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sia_local.config import setting
from sia_local.errors import IncompatibleError, ModelFileError
from sia_local.llama import keys
from sia_local.llama.embeddings import write_trailer

from ..aside import aside, provenance_json
from ..settings import check_choice
from .arch import block_of, gguf_name, reorder_rows
from .checkpoint import Head, ValueCheckpoint
from .gguf_io import KV, Tensor, encode, f32, read_gguf, text, u32, write_gguf
from .hf import Backbone
from .vocab import Vocab

LAYOUTS = ("merged", "lean", "adapter", "head")
DTYPES = {"f32": 0, "f16": 1, "bf16": 32}
ROW_TYPES = ("f16", "q8_0", "f32", "base")


@dataclass(frozen=True)
class BaseConfig:
    """How a base model is written."""

    dtype: str = setting("f16", "Type of the weights.", choices=tuple(DTYPES))
    pre: str | None = setting(None, "llama.cpp's name of the pre-tokenizer, where the tokenizer's is not recognised.")
    name: str | None = setting(None, "general.name of the file.", show="the folder's name")

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class ExportConfig:
    """How a value model is written."""

    layout: str | None = setting(
        None,
        "merged: a standard GGUF with the LoRA merged. lean: without a vocabulary, its only logit is V. "
        "adapter: a LoRA over the base's own weights. head: the head alone, over the frozen base.",
        choices=LAYOUTS,
        show="by placement; lean for separate",
    )
    dtype: str = setting("f16", "Type of the weights.", choices=tuple(DTYPES))
    rows: str | None = setting(
        None,
        "Format of a lean file's embedding rows; base: none, the base model's are used.",
        choices=ROW_TYPES,
        show="f32 beside f32 weights, else f16",
    )
    spread: float | None = setting(None, "Spread of V among candidates.", show="as `sia-convert spread` found it")
    name: str | None = setting(None, "general.name of the file.")
    pre: str | None = setting(None, "llama.cpp's name of the pre-tokenizer, where the tokenizer's is not recognised.")

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, (None, *LAYOUTS))
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("rows", self.rows, (None, *ROW_TYPES))

    @property
    def row_type(self) -> str:
        return self.rows or ("f32" if self.dtype == "f32" else "f16")


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


def general(name: str, dtype: str, kind: str = "model") -> dict[str, KV]:
    """The `general.*` metadata and what made the file."""
    return {
        "general.type": text(kind),
        "general.name": text(name),
        "general.file_type": u32(DTYPES[dtype]),
        "general.quantization_version": u32(2),
        "sia.made_by": text(provenance_json()),
    }


def find_vocab(folder: Path, n_vocab: int, base: Path | None, pre: str | None = None) -> tuple[Vocab, str]:
    """Vocabulary with `n_vocab` entries and the fingerprint to store (the base's, if one is given).

    The folder's tokenizer must agree with the base's; without one, the base's is used. IncompatibleError if
    the two differ.
    """
    own = None
    if (folder / "tokenizer.json").exists() or (folder / "tokenizer.model").exists():
        own = Vocab.from_hf(folder, n_vocab, pre)
    if base is None:
        if own is None:
            raise IncompatibleError(f"{folder} has no tokenizer: add it, or give the base GGUF with --base")
        return own, own.sha256
    theirs = Vocab.from_gguf(base)
    if own is not None and not own.agrees_with(theirs):
        raise IncompatibleError(
            f"the tokenizer in {folder} does not match that of {base.name}: ids would mean different things; "
            "use a value backbone of the same model family"
        )
    return (own or theirs).resized(n_vocab), theirs.sha256


def named(out: Path, name: str, encoding: str, adapter: bool = False) -> Path:
    """`out`, or a file in it named by gguf-py's convention when it is a folder."""
    if not out.is_dir():
        return out
    import gguf

    stem = gguf.naming_convention(name, None, None, None, None, encoding, "LoRA" if adapter else None)
    return out / f"{stem}.gguf"


def export_base(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = BaseConfig.dtype,
    pre: str | None = None,
    name: str | None = None,
) -> Path:
    """A Hugging Face causal LM as GGUF with tokenizer and chat template. Returns the path written."""
    backbone = Backbone.open(folder)
    vocab = Vocab.from_hf(backbone.folder, backbone.hparams.n_vocab, pre)
    if not backbone.hparams.tied and "lm_head.weight" not in backbone.tensors:
        raise IncompatibleError(f"{backbone.folder.name} has no lm_head: expected a causal language model")
    title = name or backbone.folder.resolve().name
    target = named(Path(out), title, dtype)
    fields = {**general(title, dtype), **backbone.hparams.fields(), **vocab.fields}
    with aside(target) as temporary:
        write_gguf(temporary, backbone.hparams.arch, fields, backbone_tensors(backbone, dtype, lm_head=True))
        check_loads(temporary)
    return target


def export_value(
    checkpoint: ValueCheckpoint,
    out: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    config: ExportConfig | None = None,
) -> Path:
    """A trained value model as GGUF. Returns the path written.

    `base`: the GGUF it will steer, whose tokenizer is the one to agree with. Raises IncompatibleError when base,
    backbone and layout do not fit together.
    """
    config = config or ExportConfig()
    layout, dtype = config.layout or default_layout(checkpoint), config.dtype
    check_layout(checkpoint, layout)
    base_path = Path(base) if base is not None else None
    # An adapter or a head holds no weight of the backbone, so the base's own file can stand in for it.
    backbone = checkpoint.open_backbone(base_path if layout in ("adapter", "head") else None)
    vocab, fingerprint = find_vocab(backbone.folder, backbone.hparams.n_vocab, base_path, config.pre)
    title = config.name or f"{backbone.folder.resolve().name}-value"
    target = named(Path(out), title, dtype, layout == "adapter")
    if base_path is not None and layout in ("adapter", "head"):
        _check_same_shape(backbone, base_path)
    kind = {"adapter": "value-adapter", "head": "value-head"}.get(layout, "value")
    fields = {
        **general(title, dtype, "adapter" if layout == "adapter" else "model"),
        **checkpoint.fields(kind, fingerprint, config.spread),
    }
    with aside(target) as temporary:
        {"merged": _merged, "lean": _lean, "adapter": _adapter, "head": _head}[layout](
            temporary, checkpoint, backbone, vocab, fields, dtype, config.row_type
        )
        check_loads(temporary, checkpoint.reward_head(), base_path)
    return target


def default_layout(checkpoint: ValueCheckpoint) -> str:
    return layout_for(checkpoint.meta.placement, checkpoint.head.hidden_weight is not None)


def layout_for(placement: str, hidden: bool) -> str:
    """The layout of the placement a model was trained for; one of its own is lean where its head allows it.

    On a CPU the runtime spares both layouts the output layer of a large vocabulary; lean needs none anywhere, loads
    faster and takes less memory (`sia-local bench`).
    """
    if placement in ("adapter", "head"):
        return placement
    return "merged" if hidden else "lean"


def check_layout(checkpoint: ValueCheckpoint, layout: str) -> None:
    m = checkpoint.meta
    check_trained(layout, m.tune, m.layers, checkpoint.head.hidden_weight is not None)


def check_trained(layout: str, tune: str, layers: int | None, hidden: bool) -> None:
    """IncompatibleError when what was trained (`hidden`: a head with a hidden layer) has no place in `layout`."""
    if layout == "lean" and hidden:
        raise IncompatibleError("the lean layout holds a linear head only; this head has a hidden layer: use merged")
    if layout == "adapter" and (tune != "lora" or layers):
        raise IncompatibleError(
            "the adapter layout needs a LoRA over the whole base; this model was trained with "
            f"--tune {tune}{f' --layers {layers}' if layers else ''}: export it as merged or lean"
        )
    if layout == "head" and (tune != "none" or layers):
        raise IncompatibleError("the head layout needs a frozen, whole backbone: train with --placement head")


def _merged(
    path: Path,
    _: ValueCheckpoint,
    backbone: Backbone,
    vocab: Vocab,
    fields: dict[str, KV],
    dtype: str,
    rows: str,
) -> None:
    h = backbone.hparams
    fields |= {keys.LAYOUT: text("merged"), **h.fields(backbone.n_layer), **vocab.fields}
    write_gguf(path, h.arch, fields, backbone_tensors(backbone, dtype, lm_head=True))


def _lean(
    path: Path,
    checkpoint: ValueCheckpoint,
    backbone: Backbone,
    vocab: Vocab,
    fields: dict[str, KV],
    dtype: str,
    rows: str,
) -> None:
    import gguf

    h = backbone.hparams
    head = checkpoint.reward_head()
    fields |= {
        keys.LAYOUT: text("lean"),
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
    if rows == "base":
        if checkpoint.meta.tune == "full":
            raise IncompatibleError("rows cannot come from the base after --tune full: choose f16, q8_0 or f32")
        return
    if rows == "q8_0" and h.n_embd % 32:
        raise IncompatibleError(f"Q8_0 rows need a width divisible by 32, this model is {h.n_embd} wide: use f16")
    encoded = encode(backbone.get("embed_tokens.weight"), rows)
    with path.open("ab") as handle:
        bytes_a_row = encoded.reshape(len(encoded), -1).view(np.uint8)
        write_trailer(handle, bytes_a_row, int(gguf.GGMLQuantizationType[rows.upper()]), h.n_embd)


def _adapter(
    path: Path,
    checkpoint: ValueCheckpoint,
    backbone: Backbone,
    _: Vocab,
    fields: dict[str, KV],
    dtype: str,
    __: str,
) -> None:
    h, lora = backbone.hparams, backbone.lora
    if lora is None:
        raise IncompatibleError("this value model has no LoRA to export as an adapter")
    # llama.cpp scales by alpha / rank; rank-stabilised LoRA divides by its root.
    fields |= {"adapter.type": text("lora"), "adapter.lora.alpha": f32(lora.scale * lora.rank)}
    tensors = []
    for module in sorted(lora.pairs):
        a, b = lora.for_one_alpha(module)
        target = gguf_name(f"{module}.weight")
        if target is None:
            raise IncompatibleError(f"the LoRA touches {module}, which has no place in an adapter file")
        ordered = reorder_rows(h, target, b)
        tensors.append(Tensor(f"{target}.lora_a", a.shape, lambda a=a: a))  # type: ignore[misc]
        tensors.append(Tensor(f"{target}.lora_b", b.shape, lambda b=ordered: b))  # type: ignore[misc]
    write_gguf(path, h.arch, fields, tensors)


def _head(
    path: Path,
    checkpoint: ValueCheckpoint,
    backbone: Backbone,
    _: Vocab,
    fields: dict[str, KV],
    __: str,
    ___: str,
) -> None:
    write_gguf(path, backbone.hparams.arch, fields, [])


def _check_same_shape(backbone: Backbone, base: Path) -> None:
    fields, _ = read_gguf(base)
    h = backbone.hparams
    arch = str(fields["general.architecture"].value)
    theirs = {
        "architecture": arch,
        "width": fields[f"{arch}.embedding_length"].value,
        "blocks": fields[f"{arch}.block_count"].value,
    }
    ours = {"architecture": h.arch, "width": h.n_embd, "blocks": h.n_layer}
    if theirs != ours:
        raise IncompatibleError(
            f"{base.name} is {_shape(theirs)}, the value model was trained on {_shape(ours)}: give the GGUF of "
            "the same model"
        )


def _shape(values: dict[str, object]) -> str:
    return f"{values['architecture']} with {values['blocks']} blocks of width {values['width']}"


def check_loads(path: Path, head: Head | None = None, base: Path | None = None) -> None:
    """Loads a file back through the runtime and compares its head. ModelFileError when either fails."""
    from sia_local.llama.gguf import GgufMetadata
    from sia_local.llama.model import LoraAdapter, Model

    with GgufMetadata(path) as meta:
        kind = meta.get(keys.KIND)
        stored = meta.get(keys.HEAD_WEIGHT)
    if head is not None and not (stored is not None and np.array_equal(stored, head.weight)):
        raise ModelFileError(f"the head read back from {path} is not the one written; nothing was kept")
    if kind in (None, "value"):
        Model(path).close()
    elif kind == "value-adapter" and base is not None:
        with Model(base) as model:
            LoraAdapter(model, path).close()
