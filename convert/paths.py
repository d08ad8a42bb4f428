"""Where everything that a plan makes lies: file names as data, said once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan

ROUND_NAMES = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Artefact:
    """A GGUF that the plan makes, and its quantizations; the file before quantization is then a by-product."""

    out: Path
    dtype: str
    types: tuple[str, ...]
    work: Path

    @property
    def full(self) -> Path:
        name = self.out.stem if self.out.suffix == ".gguf" else self.out.name
        return (self.work if self.types else self.out.parent) / f"{name}-{self.dtype.upper()}.gguf"

    @property
    def quantized(self) -> dict[str, Path]:
        """By type: `out` itself where it names a file, otherwise `out` with the type, as GGUF files are called."""
        one = self.out.suffix == ".gguf"
        return {name: self.out if one else self.out.with_name(f"{self.out.name}-{name}.gguf") for name in self.types}

    @property
    def finished(self) -> tuple[Path, ...]:
        return tuple(self.quantized.values()) or (self.full,)

    @property
    def last(self) -> Path:
        return self.finished[-1]


@dataclass(frozen=True)
class Round:
    """Files of one round: texts, their rewards, the model trained on all texts so far, its GGUF for the next."""

    name: str  # of the training step
    texts: str  # of the sampling step
    suffix: str  # of the scoring step
    rollouts: Path
    scored: Path
    value: Path
    gguf: Path

    @property
    def state(self) -> Path:
        return self.value / "state.pt"

    @property
    def spread(self) -> Path:
        return self.value / "spread.json"


@dataclass(frozen=True)
class Files:
    """Where everything of a plan lies."""

    work: Path
    base: Artefact | None
    value: Artefact
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, plan: Plan) -> Files:
        b, e, w = plan.base, plan.export, plan.work
        base = None if b.gguf is not None or b.out is None else Artefact(b.out, b.dtype, b.quantize, w)
        count = 1 + len(plan.steered)
        rounds = []
        for i in range(count):
            last, ordinal = i == count - 1, ROUND_NAMES[i] if i < len(ROUND_NAMES) else f"{i + 1}th"
            texts = "rollouts" if i == 0 else "steered" if i == 1 else f"steered-{i + 1}"
            rounds.append(
                Round(
                    "train" if count == 1 else f"{ordinal} round",
                    "rollouts" if i == 0 else f"{texts} rollouts",
                    "" if i == 0 else f" {texts}",
                    w / f"{texts}.jsonl",
                    w / ("scored.jsonl" if i == 0 else f"{texts}-scored.jsonl"),
                    w / ("value" if last else ordinal),
                    w / f"{ordinal}.gguf",
                )
            )
        return cls(w, base, Artefact(e.out, e.dtype, e.quantize, w), tuple(rounds))

    @property
    def state(self) -> Path:
        return self.work / "make.json"

    @property
    def unseen(self) -> Path:
        return self.work / "unseen.jsonl"

    @property
    def report(self) -> Path:
        return self.work / "verify.json"

    def backbone(self, gguf: Path) -> Path:
        """The folder that a GGUF becomes to be trained."""
        return self.work / f"{gguf.stem}-hf"

    def job(self, at: Round) -> Path:
        """What the processes of a training read."""
        return self.work / f"{at.value.name}-train.json"
