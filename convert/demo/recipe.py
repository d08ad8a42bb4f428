"""What a pretraining run is told, and the folder it works in, which holds no other run's work."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sia_local.config import setting
from sia_local.errors import ConfigError
from sia_local.files import atomic_write, discard, parse_json, sha256_of

from ..settings import decisive
from .corpus import COLLECTIONS, check_sources

DATA, WORK, OUT = Path("../shared/data"), Path("build/base"), Path("build/base-hf")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything a run depends on. Widths are multiples of 256 because K-quant blocks are that long."""

    data: Path = field(default=DATA, metadata={"help": "Folder with the story collections.", "free": "pace"})
    work: Path = field(
        default=WORK,
        metadata={
            "help": "Checkpoints, tokenizer and log.jsonl; an interrupted run continues from here.",
            "free": "pace",
        },
    )
    out: Path = field(default=OUT, metadata={"help": "Hugging Face folder written at the end.", "free": "pace"})
    minutes: float = setting(55.0, "Training time, resumed time included.", free="amount")
    tokens: int = setting(60_000_000, "Stop after this many tokens.", free="amount")
    layers: int = setting(6, "Blocks.")
    hidden_size: int = setting(256, "Width.")
    intermediate_size: int = setting(768, "Width of the feed-forward layers.")
    batch: int = setting(8, "Rows of 512 tokens a step.")
    lr: float = setting(2e-3, "Peak learning rate.")
    threads: int = setting(2, "CPU threads.", free="pace")
    seed: int = setting(1, "Decides the split, the requests and the weights to begin with.")
    bf16: bool = setting(True, "bfloat16 autocast.", option="--bf16/--fp32")
    compiled: bool = setting(
        True, "torch.compile; needs g++ and is skipped without it.", option="--compile/--no-compile", free="pace"
    )
    vocab_size: int = setting(4096, cli=False)
    heads: int = setting(4, cli=False)
    kv_heads: int = setting(2, cli=False)
    context: int = setting(512, cli=False)
    warmup_tokens: int = setting(400_000, cli=False)
    decay: float = setting(0.3, cli=False)
    weight_decay: float = setting(0.1, cli=False)
    classics: float = setting(0.12, cli=False)
    late_classics: float = setting(0.04, cli=False)
    save_minutes: float = setting(3.0, cli=False, free="pace")
    eval_steps: int = setting(100, cli=False, free="pace")
    held_out: int = setting(120, cli=False)
    story_limit: int | None = setting(None, cli=False)
    max_steps: int | None = setting(None, cli=False, free="amount")

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.tokens <= 0:
            raise ConfigError(f"--minutes {self.minutes} and --tokens {self.tokens} must both be above 0")
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"hidden size {self.hidden_size}, {self.heads} heads and {self.kv_heads} KV heads do not divide: "
                "choose heads that divide the hidden size and KV heads that divide the heads"
            )
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay {self.decay} is a share of the run: give a number from 0 to 1")

    def check(self) -> None:
        """DataError when the data are not there."""
        check_sources(self.data)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The story collections."""
        return tuple(self.data / name for name in COLLECTIONS)

    def decisive(self) -> dict[str, Any]:
        """What a run must share to go on where this one was stopped: settings, and the collections by sha256."""
        return decisive(PretrainConfig, self) | {path.name: sha256_of(path) for path in self.inputs}


def begin(config: PretrainConfig, anew: bool) -> None:
    """Leaves in `config.work` only what a run of these settings and data made, and `run.json`, which tells them."""
    config.work.mkdir(parents=True, exist_ok=True)
    run, tokenizer = config.work / "run.json", config.work / "tokenizer"
    files = [config.work / name for name in ("checkpoint.pt", "log.jsonl")]
    wanted = config.decisive()
    if any(path.exists() for path in (*files, tokenizer)):
        try:
            found = parse_json(run.read_bytes())
        except (FileNotFoundError, ValueError):
            found = None
        if found == wanted:
            return
        if not anew:
            differ = [n for n in wanted if found.get(n) != wanted[n]] if isinstance(found, dict) else []
            said = [f"{n} {found[n]}, not {wanted[n]}" if n not in COLLECTIONS and n in found else n for n in differ]
            raise ConfigError(
                f"{config.work} holds a run with other settings or data ({'; '.join(said) or 'of another version'}): "
                "give the same ones, name another --work, or remove it to begin anew"
            )
        for path in files:
            path.unlink(missing_ok=True)
        discard(tokenizer)
    # Last: a kill leaves the older run's beside nothing of it, not this one's beside that.
    with atomic_write(run) as handle:
        json.dump(wanted, handle, indent=1)
