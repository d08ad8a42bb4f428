"""Weights of a Hugging Face folder, read by name and one at a time, with a LoRA merged on the way."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import DataError, IncompatibleError, ModelFileError

from .arch import Hparams, canonical, gguf_name
from .gguf_io import read_gguf


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file; DataError for anything else."""
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds no JSON object")
    return loaded


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """The tokenizer of a Hugging Face folder or name."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        name = Path(folder).name
        raise DataError(f"{name} has no tokenizer that transformers can read ({str(error)[:120]})") from error


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """`torch.load` that runs no code of the file; ModelFileError for a file with anything but tensors."""
    import pickle

    import torch

    if not Path(path).is_file():
        raise ModelFileError(f"no file at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError) as error:
        raise ModelFileError(
            f"{path} holds pickled code or is damaged and was not loaded: save plain tensors "
            "(torch.save of a dict of tensors, or safetensors)"
        ) from error


@dataclass
class TensorFolder:
    """Tensors of a folder of safetensors (or plain .bin) files under their canonical names."""

    folder: Path
    index: dict[str, tuple[Path, str]] = field(default_factory=dict)
    _loaded: dict[Path, dict[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], stem: str = "model") -> TensorFolder:
        """Indexes `<stem>*.safetensors`, else `pytorch_model*.bin` / `<stem>.bin`. ModelFileError if none."""
        from safetensors import SafetensorError, safe_open

        root = Path(folder)
        found = cls(root)
        for file in sorted(root.glob(f"{stem}*.safetensors")):
            try:
                with safe_open(file, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 (not a dict)
                        found.index[canonical(name)] = (file, name)
            except SafetensorError as error:
                raise ModelFileError(f"{file} is truncated or not a safetensors file") from error
        if not found.index:
            for file in sorted([*root.glob("pytorch_model*.bin"), *root.glob(f"{stem}.bin")]):
                found._loaded[file] = load_torch_file(file)
                found.index.update({canonical(name): (file, name) for name in found._loaded[file]})
        if not found.index:
            raise ModelFileError(f"{root} holds no {stem}*.safetensors: expected a folder with weights")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.index

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def shape(self, name: str) -> tuple[int, ...]:
        file, key = self.index[name]
        if file in self._loaded:
            return tuple(self._loaded[file][key].shape)
        from safetensors import safe_open

        with safe_open(file, framework="pt") as handle:
            return tuple(handle.get_slice(key).get_shape())

    def get(self, name: str) -> np.ndarray:
        """float32 copy of a tensor."""
        file, key = self.index[name]
        if file in self._loaded:
            tensor = self._loaded[file][key]
        else:
            from safetensors import safe_open

            with safe_open(file, framework="pt") as handle:
                tensor = handle.get_tensor(key)
        array: np.ndarray = tensor.float().numpy()
        return array


@dataclass
class Lora:
    """Low-rank updates by canonical module name (`layers.0.self_attn.q_proj`): A [r, in], B [out, r]."""

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    alpha: float
    rank: int
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def delta(self, module: str) -> np.ndarray | None:
        """scale * B @ A, float32 [out, in]; None for a module without an update."""
        pair = self.pairs.get(module)
        return None if pair is None else np.float32(self.scale) * (pair[1] @ pair[0])

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Lora:
        """Reads a PEFT folder; ModelFileError when missing, IncompatibleError for what cannot be merged."""
        root = Path(folder)
        if not (root / "adapter_config.json").is_file():
            raise ModelFileError(
                f"no LoRA at {root}: expected a folder with adapter_config.json and adapter_model.safetensors"
            )
        config = read_json(root / "adapter_config.json")
        if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
            raise IncompatibleError(f"{root} is not a plain LoRA adapter; only those can be merged or exported")
        if config.get("rank_pattern") or config.get("alpha_pattern"):
            raise IncompatibleError(f"{root} has a rank or alpha per module; expected one for all")
        tensors = TensorFolder.open(root, "adapter_model")
        halves: dict[str, dict[str, np.ndarray]] = {}
        for name in tensors:
            if name.startswith(("score.", "classifier.")):
                continue  # PEFT keeps a copy of a sequence classifier's own head; the value head replaces it
            module, _, rest = name.partition(".lora_")
            if rest.split(".")[0] not in ("A", "B"):
                raise IncompatibleError(
                    f"{root} holds {name}, which is no LoRA matrix; save the head apart from the adapter"
                )
            halves.setdefault(module, {})[rest[0]] = tensors.get(name)
        for module, pair in halves.items():
            if set(pair) != {"A", "B"}:
                raise ModelFileError(f"{root}: {module} has only one of the two LoRA matrices")
        pairs = {module: (pair["A"], pair["B"]) for module, pair in halves.items()}
        return cls(pairs, float(config["lora_alpha"]), int(config["r"]), bool(config.get("use_rslora")))


@dataclass
class Backbone:
    """A Hugging Face backbone: configuration, weights, and what training changed in them."""

    folder: Path
    config: dict[str, Any]
    hparams: Hparams
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
        hparams = Hparams.from_hf(config)
        if layers is not None and not 1 <= layers <= hparams.n_layer:
            raise IncompatibleError(f"--layers {layers}: {root.name} has {hparams.n_layer} blocks")
        found = cls(root, config, hparams, TensorFolder.open(root), lora, tuned, layers)
        width = found.tensors.shape("embed_tokens.weight")
        if width[1] != hparams.n_embd:
            raise IncompatibleError(f"{root}: embeddings are {width[1]} wide, config.json says {hparams.n_embd}")
        shapes = {name: found.tensors.shape(name) for name in found.tensors if name.endswith(".weight")}
        _check_lora(lora, shapes, root.name)
        return found

    @classmethod
    def from_gguf(cls, base: str | os.PathLike[str], lora: Lora | None = None) -> Backbone:
        """The shape of a base GGUF without its weights: enough for what is laid over the base itself."""
        path = Path(base)
        fields, tensors = read_gguf(path)
        held = {t.name: t.shape for t in tensors}
        modules = lora.pairs if lora else {}
        shapes = {f"{m}.weight": held.get(str(gguf_name(f"{m}.weight")), ()) for m in modules}
        _check_lora(lora, shapes, path.name)
        return cls(path, {}, Hparams.from_gguf(fields), TensorFolder(path), lora)

    @property
    def n_layer(self) -> int:
        return self.layers or self.hparams.n_layer

    def get(self, name: str) -> np.ndarray:
        """float32 weight by canonical name, tuned and merged."""
        weight = (self.tuned if self.tuned is not None and name in self.tuned else self.tensors).get(name)
        delta = self.lora.delta(name.removesuffix(".weight")) if self.lora and name.endswith(".weight") else None
        return weight if delta is None else weight + delta


def _check_lora(lora: Lora | None, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    for module, (a, b) in (lora.pairs if lora else {}).items():
        if shapes.get(f"{module}.weight") != (b.shape[0], a.shape[1]):
            raise IncompatibleError(
                f"the LoRA of {module} fits a weight [{b.shape[0]}, {a.shape[1]}], which {model} "
                "does not have: is this the backbone it was trained on?"
            )
