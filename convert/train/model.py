"""The value model in PyTorch: a backbone, what training changes in it, and a head on its final hidden state."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_local.errors import ConfigError, DataError, IncompatibleError

from ..formats.arch import canonical, is_native
from ..formats.checkpoint import Head, ValueCheckpoint
from ..formats.hf import Backbone, load_whole
from ..formats.llamacpp import check_known
from ..formats.tensors import TensorFolder, read_json
from .config import LOSSES, MOVING, LoraSettings


class ValueHead(nn.Module):
    """hidden [..., d] -> value [...], float32 whatever the backbone's type."""

    def __init__(self, n_embd: int, n_hidden: int = 0, activation: str = "silu"):
        super().__init__()
        self.activation = activation
        self.hidden = nn.Linear(n_embd, n_hidden) if n_hidden else None
        self.out = nn.Linear(n_hidden or n_embd, 1)
        nn.init.zeros_(self.out.bias)
        nn.init.normal_(self.out.weight, std=0.1 / (n_hidden or n_embd) ** 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            x = hidden.float()
            if self.hidden is not None:
                x = getattr(F, self.activation)(self.hidden(x))
            return self.out(x).squeeze(-1)

    def to_head(self) -> Head:
        def array(parameter: Tensor) -> np.ndarray:
            return parameter.detach().float().cpu().numpy().copy()

        weight, bias = array(self.out.weight)[0], float(self.out.bias.detach())
        if self.hidden is None:
            return Head(weight, bias)
        return Head(weight, bias, array(self.hidden.weight), array(self.hidden.bias), self.activation)

    @classmethod
    def from_head(cls, head: Head) -> ValueHead:
        n_hidden = 0 if head.hidden_weight is None else len(head.weight)
        module = cls(head.n_embd, n_hidden, head.activation)
        with torch.no_grad():
            module.out.weight.copy_(torch.from_numpy(head.weight)[None])
            module.out.bias.fill_(head.bias)
            if module.hidden is not None:
                module.hidden.weight.copy_(torch.from_numpy(head.hidden_weight))
                module.hidden.bias.copy_(torch.from_numpy(head.hidden_bias))
        return module


class ValueModel(nn.Module):
    """V(s) for every prefix of a token sequence: ids [batch, n] -> values [batch, n], float32.

    Sequences are padded on the right; attention is causal, so padding reaches no value before it and needs no
    mask. The backbone returns the final *normed* hidden state.
    """

    def __init__(self, backbone: nn.Module, head: ValueHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def hidden(self, ids: Tensor) -> Tensor:
        state: Tensor = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        return state

    def forward(self, ids: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """Values; a caller that already has the hidden states [batch, n, d] passes those instead of ids."""
        if hidden is None:
            if ids is None:
                raise ValueError("either ids or hidden states are needed")
            hidden = self.hidden(ids)
        values: Tensor = self.head(hidden)
        return values

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def load_backbone(folder: str | Path, layers: int | None, dtype: torch.dtype) -> Any:
    """The transformer without its heads from a causal LM or a reward model, its first `layers` blocks."""
    import transformers

    if not (Path(folder) / "config.json").is_file():
        raise IncompatibleError(f"no model at {folder}: expected a Hugging Face folder with config.json")
    config = read_json(Path(folder) / "config.json")
    _check_exportable(Path(folder), config, layers)
    transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it would warn that the lm_head was not used
    # Of a model that sees or hears, AutoModel is the whole; its causal LM is the language model alone.
    kind = transformers.AutoModelForCausalLM if "text_config" in config else transformers.AutoModel
    try:
        backbone = load_whole(kind, str(folder), dtype=dtype)
    finally:
        transformers.utils.logging.set_verbosity(level)
    if "text_config" in config:
        backbone = backbone.get_decoder()
    if layers is not None:
        backbone.layers = backbone.layers[:layers]
        backbone.config.num_hidden_layers = layers
    return backbone


def _check_exportable(folder: Path, config: dict[str, Any], layers: int | None) -> None:
    """Refuses now what could not be exported later."""
    if not is_native(config):
        check_known(config, folder.name)
    Backbone.open(folder, layers=layers)


def build(
    folder: str | Path,
    tune: str,
    lora: LoraSettings,
    layers: int | None = None,
    n_hidden: int = 0,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> ValueModel:
    """An untrained value model: `tune` is `lora`, `full` (all but the embeddings) or `none` (head only)."""
    backbone = load_backbone(folder, layers, torch.float32 if tune == "full" else dtype)
    backbone.requires_grad_(tune == "full")
    backbone.get_input_embeddings().requires_grad_(False)
    head = ValueHead(backbone.config.hidden_size, n_hidden)
    if checkpointing and tune != "none":
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
        backbone.enable_input_require_grads()
    if tune == "lora":
        from peft import LoraConfig, get_peft_model

        targets = lora.modules(backbone.config.model_type)
        _check_targets(backbone, targets)
        config = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
        )
        try:
            backbone = get_peft_model(backbone, config)
        except ValueError as error:
            raise ConfigError(f"LoRA targets {', '.join(lora.targets)}: {error}") from error
        _check_stored(backbone, Path(folder))
    return ValueModel(backbone, head)


def _check_targets(backbone: nn.Module, targets: str | list[str]) -> None:
    """ConfigError for a target that no module of the backbone bears; PEFT only refuses when none is borne."""
    linear = {name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    for target in [] if isinstance(targets, str) else targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(f"LoRA target {target!r}: the backbone has no such layer; expected {', '.join(ends)}")


def _check_stored(backbone: nn.Module, folder: Path) -> None:
    """IncompatibleError for a LoRA over a layer that the checkpoint has under no such name: no export would find it."""
    stored = TensorFolder.open(folder)
    for name, module in backbone.named_modules():
        if hasattr(module, "lora_A") and f"{canonical(name)}.weight" not in stored:
            raise IncompatibleError(
                f"{folder.name} has no {canonical(name)}.weight, which a LoRA was to change: its files are incomplete, "
                "or it names its layers otherwise; choose other LoRA targets, or another model"
            )


def save_changes(model: ValueModel, weights: dict[str, Tensor], folder: Path, tune: str) -> None:
    """What training changed in the backbone: `lora_weights/` as PEFT reads it, or `tuned.safetensors`.

    weights: everything that was trained, whole, by its names in the model.
    """
    from safetensors.torch import save

    from sia_local.files import atomic_write

    prefix = "backbone."
    changed = {n.removeprefix(prefix): w.contiguous() for n, w in weights.items() if n.startswith(prefix)}
    if tune == "lora":
        # PEFT's files do not say which adapter it is. Not save_pretrained: a full disk would leave half a file there.
        with atomic_write(folder / "lora_weights" / "adapter_model.safetensors", "wb") as handle:
            handle.write(save({n.replace(".default.", "."): w for n, w in changed.items()}))
        settings = {**model.backbone.peft_config["default"].to_dict(), "inference_mode": True}
        with atomic_write(folder / "lora_weights" / "adapter_config.json") as handle:
            json.dump({k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}, handle, indent=1)
        return
    if tune == "full":
        with atomic_write(folder / "tuned.safetensors", "wb") as handle:
            handle.write(save(changed))


def load(checkpoint: ValueCheckpoint, dtype: torch.dtype = torch.float32, reward_units: bool = True) -> ValueModel:
    """A trained value model, ready to evaluate.

    What training changed is read by PEFT and PyTorch themselves, not by what the export reads it with: `verify`
    compares two readings of the folder.
    """
    meta = checkpoint.meta
    backbone = load_backbone(meta.backbone, meta.layers, torch.float32)
    if backbone.config.hidden_size != checkpoint.head.n_embd:
        raise IncompatibleError(
            f"the head reads {checkpoint.head.n_embd} values, {Path(meta.backbone).name} is "
            f"{backbone.config.hidden_size} wide: give the backbone it was trained on"
        )
    if meta.tune == "lora":
        _add_lora(backbone, checkpoint.folder / "lora_weights")
    elif meta.tune == "full":
        from safetensors.torch import load_file

        _load_changes(backbone, load_file(checkpoint.folder / "tuned.safetensors"), checkpoint.folder)
    head = checkpoint.reward_head() if reward_units else checkpoint.head
    model = ValueModel(backbone.to(dtype), ValueHead.from_head(head))
    return model.eval().requires_grad_(False)


def _add_lora(backbone: nn.Module, folder: Path) -> None:
    """A LoRA over the backbone, by PEFT. IncompatibleError where its weights and the backbone's modules differ."""
    from peft import PeftConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(str(folder))
    config.init_lora_weights = True  # all of it is replaced
    config.modules_to_save = None
    prefix = "base_model.model."
    saved = {k.removeprefix(prefix): w for k, w in load_file(folder / "adapter_model.safetensors").items()}
    lora = {k: w for k, w in saved.items() if not k.startswith(("score.", "classifier."))}
    # PEFT's names begin where the model that it wrapped began: at the backbone, or at a causal LM around it.
    whole: nn.Module = backbone
    if all(name.startswith("model.") for name in lora):
        whole = nn.Module()
        whole.model = backbone
    inject_adapter_in_model(config, whole)
    named = {re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", name): w for name, w in lora.items()}
    missing = _load_changes(whole, named, folder)
    if unfilled := [name for name in missing if ".lora_" in name]:
        raise IncompatibleError(f"{folder} lacks {unfilled[0]}, which its adapter_config.json speaks of")


def _load_changes(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> list[str]:
    """Replaces weights by name and gives the names of those that stay. IncompatibleError for one that is not there."""
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise IncompatibleError(f"{folder} does not fit the backbone: {str(error).splitlines()[-1].strip()}") from error
    if unexpected:
        raise IncompatibleError(f"{folder} holds {unexpected[0]}, which the backbone does not have")
    return list(missing)


def lambda_returns(values: Tensor, rewards: Tensor, last: Tensor, lam: float) -> Tensor:
    """Targets G_t = (1 - lam) V_{t+1} + lam G_{t+1} with G_last = R and no discount, shape of `values`.

    values [batch, n]; rewards [batch]; last [batch]: index of the last response token. lam = 1 is R
    everywhere (the per-token loss), lam = 0 is one-step TD. Sutton and Barto (2018), section 12.1.
    """
    targets = torch.empty_like(values)
    running = rewards
    n = values.shape[1]
    for t in range(n - 1, -1, -1):
        if t < n - 1:
            stepped = (1.0 - lam) * values[:, t + 1] + lam * running
            running = torch.where(t < last, stepped, rewards)
        targets[:, t] = running
    return targets


def value_loss(values: Tensor, mask: Tensor, rewards: Tensor, kind: str, lam: float = 1.0) -> Tensor:
    """Loss of each trajectory, [batch].

    values [batch, n]; mask [batch, n], 1.0 at response tokens; rewards [batch], standardised.
    trajectory-mean: (mean_t V_t - R)^2. per-token: mean_t (V_t - R)^2, minimised by E[R | s_t]. td-lambda:
    mean_t (V_t - G_t)^2 with the lambda-return of the model's own values as a fixed target. branched: the same, beside
    what branches.branch_loss adds.
    """
    count = mask.sum(1).clamp_min(1.0)
    if kind == "trajectory-mean":
        return ((values * mask).sum(1) / count - rewards) ** 2
    if kind == "per-token":
        return (((values - rewards[:, None]) ** 2) * mask).sum(1) / count
    if kind in MOVING:
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1).long()
        targets = lambda_returns(values.detach(), rewards, last, lam)
        return (((values - targets) ** 2) * mask).sum(1) / count
    raise ConfigError(f"loss {kind!r}: expected one of {', '.join(LOSSES)}")


def pad(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """int64 [batch, longest], padded on the right."""
    if not rows:
        raise DataError("an empty batch")
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return out
