"""What a training run is told, and where it stands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from sia_local.config import setting
from sia_local.errors import ConfigError, DataError
from sia_local.files import path_mark, read_text
from sia_local.tables import is_hub, pinned

from ..settings import check_choice, free

LOSSES = ("trajectory-mean", "per-token", "td-lambda", "branched")
# Targets that move with the model: what is held out is compared with the reward itself.
MOVING = ("td-lambda", "branched")
PLACEMENTS = ("separate", "adapter", "head")
SCHEDULES = ("constant", "linear", "cosine")
TUNES = ("lora", "full", "none")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# By model_type: the projections of attention and of what stands in its place, where they are not just those.
MIXERS = {
    "granitemoehybrid": (*ATTENTION, "in_proj", "out_proj"),
    "lfm2": ("q_proj", "k_proj", "v_proj", "out_proj", "in_proj"),
    "qwen3_5_text": (*ATTENTION, "in_proj_qkv", "in_proj_z", "out_proj"),
}
# The linear layers of a block, whatever the architecture; a target may be spelled with what stands before the name.
LINEAR = (
    *ATTENTION, "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj", "in_proj", "in_proj_qkv", "in_proj_z",
    "out_proj", "input_linear", "output_linear", "w1", "w2", "w3",
)  # fmt: skip
WORDS = ("attention", "all-linear")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA as PEFT takes it."""

    r: int = setting(16, "Rank of the LoRA.")
    alpha: int = setting(32, "Its alpha; updates are scaled by alpha / rank.")
    dropout: float = setting(0.1, "Its dropout.")
    targets: tuple[str, ...] = setting(
        WORDS[:1],
        "Module names, or one word: all-linear, or attention, its projections and those of what stands in its place.",
    )

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1 or not 0.0 <= self.dropout < 1.0 or not self.targets:
            raise ConfigError(
                f"LoRA of rank {self.r}, alpha {self.alpha}, dropout {self.dropout}: expected rank and alpha of 1 and "
                "more, 0 <= dropout < 1"
            )
        for target in self.targets:
            if self.targets not in [(word,) for word in WORDS] and target.split(".")[-1] not in LINEAR:
                raise ConfigError(
                    f"LoRA target {target!r}: expected {' or '.join(WORDS)} alone, or some of {', '.join(LINEAR)}"
                )

    def modules(self, model_type: str) -> str | list[str]:
        """The targets as PEFT takes them, for a backbone of this type."""
        if self.targets == ("all-linear",):
            return "all-linear"
        return list(MIXERS.get(model_type, ATTENTION) if self.targets == ("attention",) else self.targets)


@dataclass(frozen=True)
class TrainSettings:
    """How a value model is trained. The defaults are the paper's recipe."""

    placement: str = setting("separate", "Where the value model will live.", choices=PLACEMENTS)
    tune: str | None = setting(
        None,
        "What is trained beside the head; full: all weights but the embeddings.",
        choices=TUNES,
        show="lora; none for --placement head",
    )
    loss: str = setting(
        "trajectory-mean",
        "What V is drawn to; branched: td-lambda, and what the candidates of `sia-convert branch` earned.",
        choices=LOSSES,
    )
    lam: float = setting(0.95, "Lambda of td-lambda: 1 is per-token, 0 one-step TD.", option="--lambda")
    layers: int | None = setting(None, "Keep only the first N blocks of the backbone.", metavar="N")
    head_hidden: int = setting(0, "Width of a hidden layer in the head; 0: a linear head.")
    lora: LoraSettings = field(default_factory=LoraSettings, metadata={"prefix": "lora_"})
    epochs: int = setting(3, "Passes over the data.", free="amount")
    batch: int = setting(16, "Trajectories a forward pass.")
    accumulate: int = setting(1, "Forward passes an optimiser step.")
    lr: float = setting(1e-4, "Learning rate.")
    head_lr: float | None = setting(None, "Learning rate of the head.", show="--lr")
    weight_decay: float = setting(1e-4, "Of AdamW.")
    clip: float = setting(1.0, "Largest norm of the gradient.")
    schedule: str = setting("constant", "What the learning rate does after the warm-up.", choices=SCHEDULES)
    warmup: int = setting(0, "Optimiser steps of linear warm-up.")
    held_out: float = setting(0.1, "Share of the prompts that is held out.")
    patience: int = setting(2, "Epochs without a better held-out loss before stopping.", free="amount")
    max_length: int = setting(1024, "Longest prompt and response together, in tokens.")
    template: str = setting("chat", "chat (the tokenizer's), raw (the plain prompt), or a jinja file.")
    stop_token: str | None = setting(
        None,
        "Token appended to finished responses that do not tell theirs.",
        show="what the template ends an answer with, else the tokenizer's end",
    )
    bf16: bool | None = setting(None, "Compute in bfloat16.", show="on a GPU")
    checkpointing: bool = setting(False, "Gradient checkpointing: less memory, more time.")
    seed: int = setting(0, "Decides the split, the order and the dropout.")
    save_every: int = setting(200, "Optimiser steps between resumable states.", free="pace")
    limit: int | None = setting(None, "Use only the first N trajectories.", metavar="N")

    def __post_init__(self) -> None:
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("tune", self.tune, (None, *TUNES))
        if self.placement == "adapter" and (self.tuning != "lora" or self.layers):
            raise ConfigError("placement adapter is a LoRA over the whole base: leave out --tune and --layers")
        if self.placement == "head" and (self.tuning != "none" or self.layers):
            raise ConfigError("placement head trains a head on the whole frozen base: leave out --tune and --layers")
        for name in ("epochs", "batch", "accumulate", "patience", "save_every", "max_length", "lr", "head_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name.replace('_', '-')} is {value}; expected more than 0")
        for name in ("head_hidden", "weight_decay", "warmup", "seed"):
            if not (value := getattr(self, name)) >= 0:
                raise ConfigError(f"{name.replace('_', '-')} is {value}; expected 0 or more")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; expected 1 or more trajectories")
        if not 0.0 < self.held_out < 1.0 or not 0.0 <= self.lam <= 1.0:
            raise ConfigError("expected 0 < held-out < 1 and 0 <= lambda <= 1")

    @property
    def tuning(self) -> str:
        return self.tune or ("none" if self.placement == "head" else "lora")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainSettings):
    """One training run: the recipe and what it is made from. `backbone` is a Hugging Face folder or name."""

    backbone: str
    data: tuple[str, ...]
    out: str
    reward_name: str = setting("unknown", "Stored in the model.")
    base_name: str = setting("", "Stored in the model.")

    def fingerprint(self) -> str:
        """Hash of everything that decides the result: files by content, sets of the Hub by their commit, the backbone
        by its path_mark(), wherever it lies, or by its name. What is merely stored in the model is not part of it."""
        settings = dataclasses.asdict(self)
        mark = path_mark(self.backbone)
        for name in (*free(TrainSettings), "out", "data", "reward_name", "base_name", *(["backbone"] if mark else [])):
            settings.pop(name)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(mark.encode())
        for path in self.data:
            if is_hub(path):
                digest.update(pinned(path).encode())
                continue
            if not Path(path).is_file():
                raise DataError(f"no file at {path}: expected scored trajectories (JSONL)")
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()


def read_template(template: str) -> str:
    """The text of a jinja file; `chat` and `raw` as they are. DataError where there is no such file."""
    if template in ("chat", "raw"):
        return template
    if not Path(template).is_file():
        raise DataError(f"template {template}: expected chat, raw or the path of a jinja file")
    return read_text(template, "a chat template")


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
