"""The value head, and a trained value model on disk: backbone, LoRA, head and how they were made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import IncompatibleError, ModelFileError
from sia_local.files import atomic_write, file_mark
from sia_local.llama import keys

from ..provenance import provenance
from .gguf_io import KV, f32, f32_array, text, u32, u64
from .hf import Backbone
from .lora import Lora
from .tensors import TensorFolder, read_json

FORMAT = "sia-value-1"
META_FILE = "value.json"  # the mark of a whole folder
SPREAD_FILE = "spread.json"
# What `messages` looks like to a model without a chat template: the user's text and nothing else.
RAW_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Head:
    """V = weight · x + bias, x the hidden state h or, with a hidden layer, act(hidden_weight @ h + hidden_bias)."""

    weight: np.ndarray  # float32 [n_embd] or [n_hidden]
    bias: float
    hidden_weight: np.ndarray | None = None  # float32 [n_hidden, n_embd]
    hidden_bias: np.ndarray | None = None  # float32 [n_hidden]
    activation: str = "silu"

    def __post_init__(self) -> None:
        parts = [self.weight, np.float32(self.bias), self.hidden_weight, self.hidden_bias]
        if not all(np.isfinite(part).all() for part in parts if part is not None):
            raise ModelFileError("the head has NaN or infinite weights: training diverged or the file is damaged")

    @property
    def n_embd(self) -> int:
        return len(self.weight) if self.hidden_weight is None else int(self.hidden_weight.shape[1])

    def check_fits(self, backbone: Backbone) -> None:
        """IncompatibleError when the head reads another width than the backbone has."""
        if backbone.sizes.n_embd != self.n_embd:
            raise IncompatibleError(
                f"the head reads {self.n_embd} values, {backbone.folder.name} is {backbone.sizes.n_embd} wide: "
                "give the backbone it was trained on"
            )

    def scaled(self, mean: float, std: float) -> Head:
        """The head that returns V * std + mean: reward units instead of standardised ones."""
        return dataclasses.replace(
            self,
            weight=(self.weight.astype(np.float64) * std).astype(np.float32),
            bias=self.bias * std + mean,
        )

    def fields(self) -> dict[str, KV]:
        """The `sia.head.*` metadata."""
        out = {
            keys.HEAD_WEIGHT: f32_array(self.weight),
            keys.HEAD_BIAS: f32(self.bias),
        }
        if self.hidden_weight is not None and self.hidden_bias is not None:
            out[keys.HEAD_HIDDEN_WEIGHT] = f32_array(self.hidden_weight.ravel())
            out[keys.HEAD_HIDDEN_BIAS] = f32_array(self.hidden_bias)
            out[keys.HEAD_ACTIVATION] = text(self.activation)
        return out


@dataclass(frozen=True)
class ValueMeta:
    """`value.json`: everything about a trained value model that is no tensor."""

    backbone: str
    placement: str = "separate"  # separate, adapter or head
    tune: str = "lora"  # lora, full or none
    layers: int | None = None
    head_activation: str = "silu"
    reward_mean: float = 0.0
    reward_std: float = 1.0
    reward_name: str = "unknown"
    loss: str = "trajectory-mean"
    train_tokens: int = 0
    prompt_template: str = RAW_TEMPLATE
    base_name: str = ""
    spread: float | None = None  # in files from before spread.json; that one wins
    stop_token: int | None = None
    made_by: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT


@dataclass(frozen=True)
class ValueCheckpoint:
    """A folder with value.json, head.safetensors (standardised), lora_weights/ or tuned.safetensors.

    What is measured on it lies beside it and never in it: spread.json, junctions.npz.
    """

    folder: Path
    meta: ValueMeta
    head: Head

    @classmethod
    def open(cls, folder: str | os.PathLike[str], backbone: str | os.PathLike[str] | None = None) -> ValueCheckpoint:
        root = Path(folder)
        if not (root / META_FILE).is_file():
            official = (root / "model_config.json").is_file()
            hint = "read the paper's layout with `sia-convert import-official`" if official else "train one first"
            raise ModelFileError(f"no value model at {root}: expected a folder with value.json; {hint}")
        raw = read_json(root / META_FILE)
        if raw.get("format") != FORMAT:
            raise IncompatibleError(f"{root}/value.json has format {raw.get('format')!r}, expected {FORMAT!r}")
        known = {f.name for f in dataclasses.fields(ValueMeta)}
        meta = ValueMeta(**{key: value for key, value in raw.items() if key in known})
        if backbone is not None:
            meta = dataclasses.replace(meta, backbone=str(backbone))
        if not (root / "head.safetensors").is_file():
            raise ModelFileError(f"no head at {root}: expected head.safetensors; copy the whole folder")
        tensors = TensorFolder.open(root, "head")
        parts = {name: tensors.get(name) for name in tensors}
        head = Head(
            parts["weight"].reshape(-1),
            float(parts["bias"].reshape(-1)[0]),
            parts.get("hidden.weight"),
            parts.get("hidden.bias"),
            meta.head_activation,
        )
        return cls(root, meta, head)

    def save(self) -> None:
        """Writes value.json and head.safetensors; weights of the backbone are saved by whoever changed them."""
        from safetensors.numpy import save

        tensors = {"weight": self.head.weight, "bias": np.array([self.head.bias], np.float32)}
        if self.head.hidden_weight is not None and self.head.hidden_bias is not None:
            tensors |= {"hidden.weight": self.head.hidden_weight, "hidden.bias": self.head.hidden_bias}
        with atomic_write(self.folder / "head.safetensors", "wb") as handle:
            handle.write(save({name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()}))
        with atomic_write(self.folder / META_FILE) as handle:
            json.dump(dataclasses.asdict(self.meta), handle, indent=1, ensure_ascii=False)

    def fingerprint(self) -> str:
        """Tells trained models apart: what is in the folder, wherever it and its backbone lie."""
        meta = dataclasses.asdict(self.meta)
        for name in ("backbone", "spread", "made_by"):
            meta.pop(name)
        digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
        for part in (self.head.weight, np.float64(self.head.bias), self.head.hidden_weight, self.head.hidden_bias):
            digest.update(b"" if part is None else part.tobytes())
        for file in sorted([*self.folder.glob("lora_weights/adapter_model*"), *self.folder.glob("tuned*.safetensors")]):
            digest.update(file_mark(file).encode())
        return digest.hexdigest()

    def called(self, reward_name: str, base_name: str) -> ValueCheckpoint:
        """The same model under these names, which are part of its fingerprint: its spread is taken along."""
        meta = dataclasses.replace(self.meta, reward_name=reward_name, base_name=base_name)
        if meta == self.meta:
            return self
        return dataclasses.replace(self, meta=dataclasses.replace(meta, spread=self.spread()))

    def spread(self) -> float | None:
        """What `store_spread` stored for this very model, else what an older program wrote into value.json."""
        if (self.folder / SPREAD_FILE).is_file():
            stored = read_json(self.folder / SPREAD_FILE)
            if stored.get("model") == self.fingerprint():
                return float(stored["spread"])
        return self.meta.spread

    def store_spread(self, spread: float, junctions: int, settings: dict[str, Any]) -> None:
        """Writes spread.json: the spread of V in reward units, over how many junctions, found how."""
        entry = {"spread": spread, "junctions": junctions, "model": self.fingerprint(), "settings": settings}
        with atomic_write(self.folder / SPREAD_FILE) as handle:
            json.dump({**entry, **provenance()}, handle, indent=1)

    def lora(self) -> Lora | None:
        return Lora.open(self.folder / "lora_weights") if self.meta.tune == "lora" else None

    def open_backbone(self, base: str | os.PathLike[str] | None = None) -> Backbone:
        """The backbone with this model's changes. IncompatibleError when head and backbone differ in width.

        base: a GGUF of the same model, whose shape is taken where the Hugging Face folder is not at hand.
        """
        if base is not None and not (Path(self.meta.backbone) / "config.json").is_file():
            found = Backbone.from_gguf(base, self.lora())
            self.head.check_fits(found)
            return found
        tuned = TensorFolder.open(self.folder, "tuned") if self.meta.tune == "full" else None
        found = Backbone.open(self.meta.backbone, self.lora(), tuned, self.meta.layers)
        self.head.check_fits(found)
        return found

    def reward_head(self) -> Head:
        """The head in reward units."""
        return self.head.scaled(self.meta.reward_mean, self.meta.reward_std)

    def fields(self, kind: str, vocab_sha256: str, spread: float | None = None) -> dict[str, KV]:
        """The `sia.*` metadata of contract version 1; `spread` in the place of the one that was measured."""
        m = self.meta
        out = {
            keys.VERSION: u32(keys.CONTRACT_VERSION),
            keys.KIND: text(kind),
            **self.reward_head().fields(),
            keys.REWARD_MEAN: f32(m.reward_mean),
            keys.REWARD_STD: f32(m.reward_std),
            keys.VOCAB_SHA256: text(vocab_sha256),
            keys.PROMPT_TEMPLATE: text(m.prompt_template),
            keys.BASE_NAME: text(m.base_name),
            keys.REWARD_NAME: text(m.reward_name),
            keys.TRAIN_LOSS: text(m.loss),
            keys.TRAIN_TOKENS: u64(m.train_tokens),
        }
        spread = self.spread() if spread is None else spread
        if spread is not None:
            out[keys.VALUE_SPREAD] = f32(spread)
        return out
