"""A small training that several tests change."""

from __future__ import annotations

from pathlib import Path

from sia_convert.train.config import LoraSettings, TrainConfig


def two_epochs(backbone: Path, data: Path, out: Path) -> TrainConfig:
    """Of nine steps each, with LoRA and dropout."""
    return TrainConfig(
        backbone=str(backbone),
        data=(str(data),),
        out=str(out),
        lora=LoraSettings(r=4, alpha=8),
        epochs=2,
        batch=4,
        lr=3e-3,
        save_every=2,
        bf16=False,
    )
