"""What a training run is told, and where it stands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from sia_local.errors import ConfigError, DataError

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
LOSSES = ("trajectory-mean", "per-token", "td-lambda")
PLACEMENTS = ("separate", "adapter", "head")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA as PEFT takes it; `targets` may be the single word `all-linear`."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = DEFAULT_TARGETS

    def __post_init__(self) -> None:
        if self.r < 1 or not 0.0 <= self.dropout < 1.0 or not self.targets:
            raise ConfigError(f"LoRA of rank {self.r}, dropout {self.dropout}: expected r >= 1, 0 <= dropout < 1")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the paper's recipe.

    tune: `lora`, `full` (all weights but the embeddings) or `none`; None follows the placement. head_hidden:
    width of the head's hidden layer, 0 for a linear head. lam: lambda of td-lambda. patience: epochs without
    a better held-out loss before stopping. save_every: optimiser steps between resumable states.
    """

    backbone: str
    data: tuple[str, ...]
    out: str
    placement: str = "separate"
    tune: str | None = None
    layers: int | None = None
    head_hidden: int = 0
    loss: str = "trajectory-mean"
    lam: float = 0.95
    lora: LoraSettings = field(default_factory=LoraSettings)
    epochs: int = 3
    batch: int = 16
    accumulate: int = 1
    lr: float = 1e-4
    head_lr: float | None = None
    weight_decay: float = 1e-4
    clip: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    held_out: float = 0.1
    patience: int = 2
    max_length: int = 1024
    template: str = "chat"
    stop_token: str | None = None
    reward_name: str = "unknown"
    base_name: str = ""
    bf16: bool | None = None
    checkpointing: bool = False
    seed: int = 0
    save_every: int = 200
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("placement", PLACEMENTS), ("loss", LOSSES), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        if self.tune not in (None, "lora", "full", "none"):
            raise ConfigError(f"tune {self.tune!r}: expected lora, full or none")
        if self.placement == "adapter" and (self.tuning != "lora" or self.layers):
            raise ConfigError("placement adapter is a LoRA over the whole base: leave out --tune and --layers")
        if self.placement == "head" and (self.tuning != "none" or self.layers):
            raise ConfigError("placement head trains a head on the whole frozen base: leave out --tune and --layers")
        if min(self.epochs, self.batch, self.accumulate, self.patience, self.save_every) < 1 or self.lr <= 0:
            raise ConfigError("epochs, batch, accumulate, patience, save-every and lr must be positive")
        if not 0.0 < self.held_out < 1.0 or not 0.0 <= self.lam <= 1.0:
            raise ConfigError("expected 0 < held-out < 1 and 0 <= lambda <= 1")

    @property
    def tuning(self) -> str:
        return self.tune or ("none" if self.placement == "head" else "lora")

    def fingerprint(self) -> str:
        """Hash of everything that decides the result, files by content."""
        settings = dataclasses.asdict(self)
        for name in ("out", "data", "epochs", "save_every", "patience"):
            settings.pop(name)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path in self.data:
            if not Path(path).is_file():
                raise DataError(f"no file at {path}: expected scored trajectories (JSONL)")
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()


@dataclass
class Place:
    """Where a run stands; everything that a resumed run needs beside weights and optimiser."""

    epoch: int = 0
    step: int = 0  # optimiser steps done in this epoch
    total: int = 0  # optimiser steps done in all
    tokens: int = 0
    loss_sum: float = 0.0
    loss_count: float = 0.0
    best: float = float("inf")
    stale: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    curve: list[list[float]] = field(default_factory=list)  # [step, training loss]
