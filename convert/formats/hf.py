"""A Hugging Face folder: its weights by name and one at a time, with a LoRA merged on the way, and its tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import ConfigError, DataError, IncompatibleError, ModelFileError

from .arch import SUPPORTED, Hparams, Sizes, gguf_name, is_native
from .gguf_io import read_gguf
from .lora import Lora, check_lora
from .tensors import TensorFolder, read_json


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """The tokenizer of a Hugging Face folder or name."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a damaged file may raise anything
        name = Path(folder).name
        raise DataError(f"{name} has no tokenizer that transformers can read ({str(error)[:120]})") from error


def adds_bos(tokenizer: Any) -> bool:
    """Whether a text begins with the begin-of-sequence token without spelling it; chat templates that spell it do not
    say so."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


@dataclass
class Backbone:
    """A Hugging Face backbone: configuration, weights, and what training changed in them.

    sizes: Hparams of the architectures that are converted here, Sizes of those that llama.cpp's converter takes.
    """

    folder: Path
    config: dict[str, Any]
    sizes: Hparams | Sizes
    tensors: TensorFolder
    lora: Lora | None = None
    tuned: TensorFolder | None = None  # weights that replace those of `tensors`
    layers: int | None = None  # only so many blocks are kept

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        lora: Lora | None = None,
        tuned: TensorFolder | None = None,
        layers: int | None = None,
    ) -> Backbone:
        root = Path(folder)
        if not (root / "config.json").is_file():
            raise ModelFileError(f"no model at {root}: expected a Hugging Face folder with config.json")
        config = read_json(root / "config.json")
        sizes = Hparams.from_hf(config) if is_native(config) else Sizes.from_hf(config)
        check_layers(root, sizes, layers)
        found = cls(root, config, sizes, TensorFolder.open(root), lora, tuned, layers)
        if "embed_tokens.weight" not in found.tensors:
            raise IncompatibleError(
                f"{root.name} has no embed_tokens.weight: expected a language model's checkpoint whose embeddings "
                "have that name"
            )
        width = found.tensors.shape("embed_tokens.weight")
        if width[1] != sizes.n_embd:
            raise IncompatibleError(f"{root}: embeddings are {width[1]} wide, config.json says {sizes.n_embd}")
        if lora is not None:
            shapes = {name: found.tensors.shape(name) for name in found.tensors if name.endswith(".weight")}
            check_lora(lora, shapes, root.name)
        return found

    @classmethod
    def from_gguf(cls, base: str | os.PathLike[str], lora: Lora | None = None) -> Backbone:
        """The shape of a base GGUF without its weights: enough for what is laid over the base itself."""
        path = Path(base)
        fields, tensors = read_gguf(path)
        held = {t.name: t.shape for t in tensors}
        if fields["general.architecture"].value not in SUPPORTED:
            if lora:
                raise IncompatibleError(
                    f"the LoRA over {path.name} is converted with the configuration of its Hugging Face folder; give "
                    "that with --backbone"
                )
            return cls(path, {}, Sizes.from_gguf(fields), TensorFolder(path))
        modules = lora.pairs if lora else {}
        shapes = {f"{m}.weight": held.get(str(gguf_name(f"{m}.weight")), ()) for m in modules}
        check_lora(lora, shapes, path.name)
        return cls(path, {}, Hparams.from_gguf(fields), TensorFolder(path), lora)

    @property
    def n_layer(self) -> int:
        return self.layers or self.sizes.n_layer

    @property
    def hparams(self) -> Hparams:
        """The whole configuration, of an architecture that is converted here."""
        assert isinstance(self.sizes, Hparams)
        return self.sizes

    def get(self, name: str) -> np.ndarray:
        """float32 weight by canonical name, tuned and merged."""
        weight = (self.tuned if self.tuned is not None and name in self.tuned else self.tensors).get(name)
        delta = self.lora.delta(name.removesuffix(".weight")) if self.lora and name.endswith(".weight") else None
        return weight if delta is None else weight + delta


def check_layers(root: Path, sizes: Hparams | Sizes, layers: int | None) -> None:
    """ConfigError for a number of blocks that cannot be kept."""
    if layers is not None and not 1 <= layers <= sizes.n_layer:
        raise ConfigError(f"layers is {layers}; expected 1 to the {sizes.n_layer} blocks of {root.name}")
    if layers is not None and not isinstance(sizes, Hparams):
        raise ConfigError(
            f"layers is {layers}, but a {sizes.arch} is converted whole; only {', '.join(SUPPORTED)} can be shortened"
        )


def load_whole(kind: Any, name: str, new: str | None = None, **options: Any) -> Any:
    """kind.from_pretrained(name, **options), all of whose weights are in the checkpoint; new: the module that need not
    be. IncompatibleError for a checkpoint that lacks others: transformers fills them with random numbers in silence."""
    model, told = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True, **options)
    missing = sorted(key for key in told["missing_keys"] if new is None or not key.startswith(f"{new}."))
    if missing:
        raise IncompatibleError(
            f"{name} lacks {len(missing)} weights of its model, such as {missing[0]}, which would be random numbers: "
            "expected a whole checkpoint of this very kind of model"
        )
    return model
