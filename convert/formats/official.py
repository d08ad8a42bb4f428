"""Reads a value model as the paper's code saves it and turns it into a folder that `export` takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from sia_local.errors import IncompatibleError, ModelFileError
from sia_local.files import atomic_write, together

from ..provenance import provenance
from .checkpoint import META_FILE, RAW_TEMPLATE, Head, ValueCheckpoint, ValueMeta
from .hf import Backbone, load_tokenizer
from .lora import Lora
from .tensors import TensorFolder, load_torch_file, read_json

EXPECTED = "expected lora_weights/, token_reward_head.pt and model_config.json"


def import_official(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    backbone: str | os.PathLike[str] | None = None,
    reward_name: str = "unknown",
    base_name: str = "",
) -> ValueCheckpoint:
    """Writes `out` from the official layout in `folder`; `backbone` overrides the recorded base_model_path.

    Raises ModelFileError for a missing or pickled part, IncompatibleError when head, LoRA, configuration and
    backbone do not fit together. The official code trains on raw rewards, so mean 0 and std 1 are stored.
    """
    root = Path(folder)
    if not (root / "model_config.json").is_file():
        raise ModelFileError(f"no model_config.json in {root}: {EXPECTED}")
    config = read_json(root / "model_config.json")
    kind = config.get("model_type")
    if kind not in ("causal_lm", "sequence_classification"):
        raise IncompatibleError(
            f"model_config.json has model_type {kind!r}: expected 'causal_lm' or 'sequence_classification'"
        )
    if not (root / "lora_weights").is_dir():
        raise ModelFileError(f"no folder lora_weights in {root}: {EXPECTED}")
    head = read_head(root / "token_reward_head.pt")
    if config.get("hidden_size") not in (None, head.n_embd):
        raise IncompatibleError(
            f"the head reads {head.n_embd} values, model_config.json says hidden_size {config['hidden_size']}"
        )
    lora = Lora.open(root / "lora_weights")
    if config.get("lora_r") not in (None, lora.rank) or config.get("lora_alpha") not in (None, lora.alpha):
        raise IncompatibleError(
            f"lora_weights has r {lora.rank} and alpha {lora.alpha:g}, model_config.json says r "
            f"{config.get('lora_r')} and alpha {config.get('lora_alpha')}"
        )
    place = str(backbone if backbone is not None else config.get("base_model_path", ""))
    if not (Path(place) / "config.json").is_file():
        raise ModelFileError(
            f"no backbone at {place or '(nothing recorded)'}: download it and give its folder with --backbone"
        )
    head.check_fits(Backbone.open(place, lora))
    meta = ValueMeta(
        backbone=str(Path(place).resolve()),
        reward_name=reward_name,
        base_name=base_name,
        loss="trajectory-mean",
        prompt_template=_template(Path(place)),
        made_by={**provenance(), "official": {key: config.get(key) for key in ("step", "model_type")}},
    )
    with together(out, META_FILE) as room:
        _copy_lora(root / "lora_weights", room / "lora_weights")
        ValueCheckpoint(room, meta, head).save()
    return ValueCheckpoint(Path(out), meta, head)


def read_head(path: Path) -> Head:
    """The head of `token_reward_head.pt`; only plain tensors are ever loaded."""
    if not path.is_file():
        raise ModelFileError(f"no head at {path}: {EXPECTED}")
    loaded = load_torch_file(path)
    parts = loaded.get("token_reward_head") if isinstance(loaded, dict) else None
    try:
        weight = parts["weight"].float().numpy()  # type: ignore[index]
        bias = parts["bias"].float().numpy().reshape(-1)  # type: ignore[index]
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{path} holds no head: expected a dict whose 'token_reward_head' has 'weight' [1, d] and 'bias' [1]"
        ) from error
    if weight.ndim != 2 or weight.shape[0] != 1 or bias.shape != (1,):
        raise IncompatibleError(
            f"{path}: the head has weight {list(weight.shape)} and bias {list(bias.shape)}, expected [1, d] and [1]"
        )
    return Head(np.ascontiguousarray(weight[0]), float(bias[0]))


def _copy_lora(source: Path, target: Path) -> None:
    """Copies a PEFT adapter; an `adapter_model.bin` becomes safetensors on the way."""
    from safetensors.numpy import save

    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "adapter_config.json", target / "adapter_config.json")
    tensors = TensorFolder.open(source, "adapter_model")
    with atomic_write(target / "adapter_model.safetensors", "wb") as handle:
        handle.write(save({f"base_model.model.{name}": tensors.get(name) for name in tensors}))


def _template(backbone: Path) -> str:
    found = load_tokenizer(backbone).chat_template
    return found if isinstance(found, str) else RAW_TEMPLATE
