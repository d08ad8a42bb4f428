"""Writes GGUF, a base or a value model in one of four layouts: aside, loaded back, then moved."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sia_local.config import setting
from sia_local.errors import ConfigError, IncompatibleError, ModelFileError
from sia_local.files import aside
from sia_local.llama import keys

from ..provenance import provenance_json
from ..settings import check_choice
from . import foreign, native
from .arch import Hparams, is_native
from .checkpoint import Head, ValueCheckpoint
from .gguf_io import KV, read_gguf, text, u32, write_gguf
from .hf import Backbone
from .tensors import read_json
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
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ConfigError(f"spread is {self.spread}; expected more than 0, in reward units")

    @property
    def row_type(self) -> str:
        return self.rows or ("f32" if self.dtype == "f32" else "f16")


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
    agreed, fingerprint = agree(own, base, folder)
    return agreed.resized(n_vocab), fingerprint


def agree(own: Vocab | None, base: Path | None, folder: Path) -> tuple[Vocab, str]:
    """The tokenizer of the folder, else the base's, and the fingerprint to store; IncompatibleError if they differ."""
    theirs = Vocab.from_gguf(base) if base is not None else own
    if theirs is None:
        raise IncompatibleError(f"{folder} has no tokenizer: add it, or give the base GGUF with --base")
    if base is not None and own is not None and not own.agrees_with(theirs):
        raise IncompatibleError(
            f"the tokenizer in {folder} does not match that of {base.name}: ids would mean different things; "
            "use a value backbone of the same model family"
        )
    return own or theirs, theirs.sha256


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
    if (Path(folder) / "config.json").is_file() and not is_native(read_json(Path(folder) / "config.json")):
        title = name or Path(folder).resolve().name
        target = named(Path(out), title, dtype)
        with aside(target) as temporary:
            foreign.write_base(Path(folder), temporary, dtype, pre, title)
            check_loads(temporary)
        return target
    backbone = Backbone.open(folder)
    vocab = Vocab.from_hf(backbone.folder, backbone.hparams.n_vocab, pre)
    if not backbone.hparams.tied and "lm_head.weight" not in backbone.tensors:
        raise IncompatibleError(f"{backbone.folder.name} has no lm_head: expected a causal language model")
    title = name or backbone.folder.resolve().name
    target = named(Path(out), title, dtype)
    with aside(target) as temporary:
        native.write_base(temporary, backbone, vocab, general(title, dtype), dtype)
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
    title = config.name or f"{backbone.folder.resolve().name}-value"
    target = named(Path(out), title, dtype, layout == "adapter")
    if base_path is not None and layout in ("adapter", "head"):
        _check_same_shape(backbone, base_path)
    if layout == "lean" and config.row_type == "base" and checkpoint.meta.tune == "full":
        raise IncompatibleError("rows cannot come from a base that was trained whole: choose f16, q8_0 or f32")

    def fields(fingerprint: str) -> dict[str, KV]:
        kind = {"adapter": "value-adapter", "head": "value-head"}.get(layout, "value")
        about = general(title, dtype, "adapter" if layout == "adapter" else "model")
        named_layout = {keys.LAYOUT: text(layout)} if kind == "value" else {}
        return {**about, **checkpoint.fields(kind, fingerprint, config.spread), **named_layout}

    with aside(target) as temporary:
        if isinstance(backbone.sizes, Hparams):
            vocab, fingerprint = find_vocab(backbone.folder, backbone.sizes.n_vocab, base_path, config.pre)
            _by_ourselves(temporary, checkpoint, backbone, vocab, layout, config, fields(fingerprint))
        else:
            _by_llamacpp(temporary, checkpoint, backbone, base_path, layout, config, fields)
        check_loads(temporary, checkpoint.reward_head(), base_path)
    return target


def _by_ourselves(
    path: Path,
    checkpoint: ValueCheckpoint,
    backbone: Backbone,
    vocab: Vocab,
    layout: str,
    config: ExportConfig,
    fields: dict[str, KV],
) -> None:
    """A value model of an architecture that is converted here."""
    if layout == "merged":
        native.write_base(path, backbone, vocab, fields, config.dtype)
    elif layout == "lean":
        native.write_lean(path, backbone, checkpoint.reward_head(), fields, config.dtype)
        rows = config.row_type
        native.append_rows(path, lambda: backbone.get("embed_tokens.weight"), rows, backbone.sizes.n_embd)
    elif layout == "adapter":
        native.write_adapter(path, backbone, fields, config.dtype)
    else:
        write_gguf(path, backbone.sizes.arch, fields, [])


def _by_llamacpp(
    path: Path,
    checkpoint: ValueCheckpoint,
    backbone: Backbone,
    base: Path | None,
    layout: str,
    config: ExportConfig,
    fields: Callable[[str], dict[str, KV]],
) -> None:
    """A value model of an architecture that is not converted here."""
    with foreign.converted(backbone, layout, config.dtype, config.pre, path) as made:
        about = fields(agree(made.vocab, base, backbone.folder)[1])
        if layout == "merged":
            made.write_merged(path, about)
        elif layout == "lean":
            head = checkpoint.reward_head().weight
            made.write_lean(path, about, head)
            native.append_rows(path, made.embedding_rows, config.row_type, len(head))
        elif layout == "adapter":
            made.write_adapter(path, about, len(backbone.lora.pairs if backbone.lora else ()))
        elif base is None:
            raise IncompatibleError(f"a head over a {backbone.sizes.arch} is written for its base: give it with --base")
        else:
            write_gguf(path, str(read_gguf(base)[0]["general.architecture"].value), about, [])


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
            f"`sia-convert train --tune {tune}{f' --layers {layers}' if layers else ''}`: export it as merged or lean"
        )
    if layout == "head" and (tune != "none" or layers):
        raise IncompatibleError(
            "the head layout needs a frozen, whole backbone: train one with `sia-convert train --placement head`"
        )


def _check_same_shape(backbone: Backbone, base: Path) -> None:
    fields, _ = read_gguf(base)
    h = backbone.sizes
    arch = str(fields["general.architecture"].value)
    theirs = {
        "architecture": arch,
        "width": fields[f"{arch}.embedding_length"].value,
        "blocks": fields[f"{arch}.block_count"].value,
    }
    # Hugging Face's name of an architecture is not llama.cpp's, which says so itself when it loads an adapter.
    ours = {"architecture": h.arch if isinstance(h, Hparams) else arch, "width": h.n_embd, "blocks": h.n_layer}
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
