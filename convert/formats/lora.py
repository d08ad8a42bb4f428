"""LoRA adapters as PEFT saves them: every setting that changes the function is honoured or refused."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import IncompatibleError, ModelFileError

from .tensors import TensorFolder, read_json

# Settings that change nothing in a finished adapter, or that are honoured here.
_KNOWN = frozenset((
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "lora_alpha",
    "lora_dropout", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config",
))  # fmt: skip
_WHY = {
    "use_dora": "DoRA rescales whole weights",
    "lora_bias": "its updates have biases",
    "trainable_token_indices": "it holds embeddings of single tokens",
    "target_parameters": "it changes parameters that are no linear layers",
    "layer_replication": "it repeats blocks",
    "alora_invocation_tokens": "it acts only after certain tokens",
}
# Others take what they begin with out of the base's weights, so the base alone is not what they belong to.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass
class Lora:
    """Low-rank updates by canonical module name (`layers.0.self_attn.q_proj`): A [r, in], B [out, r].

    alpha and rank are those of most modules; `scales` holds the scale of the others.
    """

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    alpha: float
    rank: int
    rslora: bool = False
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return scale_of(self.alpha, self.rank, self.rslora)

    def scale_for(self, module: str) -> float:
        return self.scales.get(module, self.scale)

    def delta(self, module: str) -> np.ndarray | None:
        """scale * B @ A, float32 [out, in]; None for a module without an update."""
        pair = self.pairs.get(module)
        return None if pair is None else np.float32(self.scale_for(module)) * (pair[1] @ pair[0])

    def for_one_alpha(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """A and B for a file with one alpha, `scale * rank`, which is divided by each pair's own rank."""
        a, b = self.pairs[module]
        factor = self.scale_for(module) * len(a) / (self.scale * self.rank)
        return a, b if factor == 1.0 else b * np.float32(factor)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Lora:
        """Reads a PEFT folder; ModelFileError when missing, IncompatibleError for what cannot be merged."""
        root = Path(folder)
        if not (root / "adapter_config.json").is_file():
            raise ModelFileError(
                f"no LoRA at {root}: expected a folder with adapter_config.json and adapter_model.safetensors"
            )
        config = read_json(root / "adapter_config.json")
        _check(root, config)
        tensors = TensorFolder.open(root, "adapter_model")
        halves: dict[str, dict[str, np.ndarray]] = {}
        spelled: dict[str, str] = {}
        for name in tensors:
            if name.startswith(("score.", "classifier.")):
                continue  # PEFT keeps a copy of a sequence classifier's own head; the value head replaces it
            module, _, rest = name.partition(".lora_")
            if rest not in ("A.weight", "B.weight", "A.default.weight", "B.default.weight"):
                raise IncompatibleError(
                    f"{root} holds {name}, which is no LoRA matrix: merge it into the backbone, or train without it"
                )
            halves.setdefault(module, {})[rest[0]] = tensors.get(name)
            spelled[module] = tensors.index[name][1].partition(".lora_")[0]
        for module, pair in halves.items():
            if set(pair) != {"A", "B"}:
                raise ModelFileError(f"{root}: {module} has only one of the two LoRA matrices")
        pairs = {module: (pair["A"], pair["B"]) for module, pair in halves.items()}
        alpha, rank, rslora = float(config["lora_alpha"]), int(config["r"]), bool(config.get("use_rslora"))
        scales = {}
        for module, (a, b) in pairs.items():
            names = (spelled[module].removeprefix("base_model.model."), module, f"model.{module}")
            own_rank = int(_of_pattern(config.get("rank_pattern") or {}, names, rank))
            if not len(a) == own_rank == b.shape[1]:
                raise ModelFileError(f"{root}: {module} is of rank {len(a)}, adapter_config.json says {own_rank}")
            own_alpha = float(_of_pattern(config.get("alpha_pattern") or {}, names, alpha))
            if (own_rank, own_alpha) != (rank, alpha):
                scales[module] = scale_of(own_alpha, own_rank, rslora)
        return cls(pairs, alpha, rank, rslora, scales)


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if rslora else rank)


def check_lora(lora: Lora | None, shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """IncompatibleError for a module that the model, given by the shapes of its weights, does not have."""
    for module, (a, b) in (lora.pairs if lora else {}).items():
        if shapes.get(f"{module}.weight") != (b.shape[0], a.shape[1]):
            raise IncompatibleError(
                f"the LoRA of {module} fits a weight [{b.shape[0]}, {a.shape[1]}], which {model} "
                "does not have: is this the backbone it was trained on?"
            )


def _of_pattern(patterns: Mapping[str, Any], names: Iterable[str], default: Any) -> Any:
    """What PEFT takes for a module: the first pattern that fits the end of its name."""
    for pattern, value in patterns.items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            return value
    return default


def _check(root: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type", "LORA") != "LORA":
        raise IncompatibleError(f"{root} is a {config['peft_type']} adapter; only LoRA can be merged or exported")
    begun = config.get("init_lora_weights")
    if begun not in _PLAIN_BEGINNINGS:
        raise IncompatibleError(
            f"{root} was begun with {begun}, which takes a part out of the base's weights: save it as plain LoRA "
            "(PEFT's path_initial_model_for_weight_conversion)"
        )
    saved = [name for name in config.get("modules_to_save") or () if name not in ("score", "classifier")]
    wrong = [f"modules_to_save {', '.join(saved)}"] if saved else []
    if config.get("bias", "none") != "none":
        wrong.append(f"bias {config['bias']!r}")
    if config.get("fan_in_fan_out"):
        wrong.append("fan_in_fan_out")
    for key, value in config.items():
        if value and key not in _KNOWN:
            wrong.append(f"{key} ({_WHY[key]})" if key in _WHY else f"{key} {value!r}")
    if wrong:
        raise IncompatibleError(
            f"{root} is more than a LoRA: {'; '.join(wrong)}; only plain LoRA can be merged or exported"
        )
