"""Tokens, operations, memory and hours of every step on the way to a value model."""

from __future__ import annotations

from dataclasses import dataclass

from sia_local.config import setting
from sia_local.errors import ConfigError
from sia_local.progress import duration

from ..settings import check_choice
from ..train.config import PLACEMENTS
from .hardware import HARDWARE, Hardware, hardware_of
from .shapes import BITS, Shape, shape_of

# Of the head alone, a token and epoch, seconds: what moving kept states takes, not arithmetic.
HEAD_TOKEN = 2e-5
# Bytes that training holds for each weight of LoRA: itself, its gradient and two moments, float32.
ADAM = 16
# Numbers of a layer that a backward pass wants of each token, in units of the width and of the feed-forward width.
KEPT = 14


@dataclass(frozen=True)
class Work:
    """What is to be made, and of how much."""

    placement: str = setting("separate", "Where the value model will live.", choices=PLACEMENTS)
    value: str | None = setting(None, "The value model's backbone, named as the base.", show="the base")
    quant: str = setting("Q4_K_M", "Type of the base's weights.", choices=tuple(BITS))
    prompts: int = setting(10_000, "Prompts of the rollouts.")
    samples: int = setting(4, "Responses a prompt.")
    prompt_tokens: int = setting(50, "Tokens of a rendered prompt.")
    tokens: int = setting(128, "Tokens of a response.")
    slots: int = setting(16, "Texts a process decodes at once.")
    processes: int = setting(1, "Processes that sample on a machine; each reads the weights for itself.")
    reward: str | None = setting(None, "A reward model, named as the base.", show="one that costs nothing")
    rate: float = setting(0.0, "Share of the rollouts' tokens that a value model steers.")
    k: int = setting(10, "Candidates of a junction.")
    epochs: int = setting(2, "Passes over the texts in training.")
    batch: int = setting(16, "Texts a step of training.")
    rank: int = setting(16, "Of LoRA, on all linear layers.")
    distill: int = setting(0, "Texts of which a Q-head is distilled.")
    junctions: float = setting(0.4, "Share of their tokens at which the teacher is asked.")
    hardware: str = setting("2-cores", f"What it runs on: {', '.join(HARDWARE)}.")
    machines: int = setting(1, "How many of them.")
    price: float = setting(0.0, "Of one of them, an hour.")

    def __post_init__(self) -> None:
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("quant", self.quant, tuple(BITS))
        if self.value is not None and self.placement != "separate":
            raise ConfigError(f"the placement {self.placement} is trained on the base; leave out value")
        counts = ("prompts", "samples", "prompt_tokens", "tokens", "slots", "processes", "k", "epochs", "batch", "rank")
        for name in (*counts, "machines"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.rate <= 1 or not 0 <= self.junctions <= 1 or self.distill < 0 or self.price < 0:
            raise ConfigError("expected 0 <= rate <= 1, 0 <= junctions <= 1, and distill and price of at least 0")


@dataclass(frozen=True)
class Cost:
    """Of one step. tokens: that a model reads or writes; flops: operations; memory: bytes on one machine; seconds: on
    all machines together, where the work is shared evenly."""

    step: str
    tokens: float
    flops: float
    memory: float
    seconds: float


def estimate(base: str, work: Work) -> list[Cost]:
    """The steps in their order. ConfigError for names that nobody knows."""
    return [cost for cost in _Estimate(shape_of(base), work).steps() if cost.seconds > 0]


def steered_speed(base: str, work: Work, rate: float) -> float:
    """Tokens a second of one text on one machine, when `rate` of them is steered."""
    made = _Estimate(shape_of(base), work)
    return 1 / (made.decode(1, 1) + rate * made.junction(rate, 1))


def table(costs: list[Cost], work: Work) -> str:
    """A line a step, and one for all of them."""
    hardware, whole = hardware_of(work.hardware), sum(cost.seconds for cost in costs)
    most = max(cost.memory for cost in costs)
    rows = [["step", "tokens", "operations", "memory", "time", "share", *(["cost"] if work.price else [])]]
    for cost in [*costs, Cost("in all", sum(c.tokens for c in costs), sum(c.flops for c in costs), most, whole)]:
        row = [
            cost.step,
            _short(cost.tokens),
            _short(cost.flops),
            f"{cost.memory / 1e9:.1f} GB",
            duration(cost.seconds),
        ]
        row.append(f"{cost.seconds / whole:.0%}")
        if work.price:
            row.append(f"{cost.seconds / 3600 * work.machines * work.price:.2f}")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    about = "fitted to runs of this repository" if hardware.measured else "by the data sheet, not measured"
    lines.append(f"{work.machines} x {hardware.name}, {about}")
    if hardware.memory and most > hardware.memory:
        lines.append(f"{most / 1e9:.0f} GB do not fit its {hardware.memory / 1e9:.0f}: shard, or take a smaller model")
    return "\n".join(lines)


def _short(number: float) -> str:
    """Three digits: 12.3 M."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


class _Estimate:
    def __init__(self, base: Shape, work: Work):
        self.base, self.work = base, work
        self.hardware: Hardware = hardware_of(work.hardware)
        self.value = shape_of(work.value) if work.value is not None and work.placement == "separate" else base
        self.base_bytes = base.weights * BITS[work.quant] / 8
        self.value_bytes = 0 if work.placement != "separate" else self.value.blocks * BITS[work.quant] / 8
        self.texts = work.prompts * work.samples
        self.length = work.prompt_tokens + work.tokens

    def steps(self) -> list[Cost]:
        return [self._rollouts(), self._score(), self._train(), self._verify(), self._distill()]

    def decode(self, rows: int, processes: int) -> float:
        """Seconds of a decode of the base with logits, in each of `processes` that run at once, `rows` in each."""
        h, context = self.hardware, self.work.prompt_tokens + self.work.tokens / 2
        reads = processes * (self.base_bytes + rows * context * self.base.kv_bytes) / h.bandwidth
        return reads + processes * rows * self.base.flops(context, True) / h.decode + rows * h.token

    def junction(self, rate: float, slots: int) -> float:
        """Seconds that a junction adds to a token, where `slots` texts are decoded at once."""
        h, w, context = self.hardware, self.work, self.work.prompt_tokens + self.work.tokens / 2
        if w.placement == "head":
            rows, shape, logits, reads = w.k - 1.0, self.base, True, 0.0
        else:
            together = max(1.0, rate * slots)  # junctions that share a decode
            rows, shape, logits = 1 / max(rate, 1e-9) + w.k, self.value, False
            reads = (self.value_bytes or self.base_bytes) / together
        return reads / h.bandwidth + rows * shape.flops(context, logits) / h.decode + h.junction

    def _writing(self, step: str, texts: float, rate: float, slots: int, processes: int) -> Cost:
        """Texts of the base, a share of whose tokens is steered."""
        w, h, base = self.work, self.hardware, self.base
        written, read = texts * w.tokens, texts * w.prompt_tokens
        flops = read * base.flops(w.prompt_tokens / 2, False) + written * base.flops(
            w.prompt_tokens + w.tokens / 2, True
        )
        each = self.decode(slots, processes) / (slots * processes)
        seconds = written * each + read * base.flops(w.prompt_tokens / 2, False) / h.decode
        if rate:
            rows = 1 / rate + w.k if w.placement != "head" else w.k - 1
            shape = base if w.placement == "head" else self.value
            flops += rate * written * rows * shape.flops(self.length, w.placement == "head")
            seconds += rate * written * self.junction(rate, slots)
        memory = processes * (self.base_bytes + slots * self.length * base.kv_bytes)
        memory += processes * (self.value_bytes + slots * self.length * self.value.kv_bytes) if rate else 0
        return Cost(step, written + read, flops, memory, seconds / w.machines)

    def _rollouts(self) -> Cost:
        return self._writing("rollouts", self.texts, self.work.rate, self.work.slots, self.work.processes)

    def _score(self) -> Cost:
        w, h = self.work, self.hardware
        if w.reward is None:
            return Cost("score", 0, 0, 0, 0)
        shape, tokens = shape_of(w.reward), self.texts * self.length
        flops = tokens * shape.flops(self.length / 2, False)
        return Cost("score", tokens, flops, 2 * shape.weights, flops / h.train / w.machines)

    def _train(self) -> Cost:
        w, h, shape = self.work, self.hardware, self.value
        tokens = self.texts * self.length
        forward = tokens * shape.flops(self.length / 2, False)
        if w.placement == "head":
            states = self.texts * self.length * shape.width * 4
            seconds = forward / h.train + w.epochs * tokens * HEAD_TOKEN
            return Cost("train", tokens, forward, 4 * shape.weights + min(states, 2e9), seconds / w.machines)
        # Backwards, a frozen weight costs one pass: gradients of activations, none of its own. Held-out texts, a tenth,
        # are only read.
        flops = w.epochs * forward * (0.9 * 2 + 0.1)
        numbers = KEPT * shape.width + 4 * shape.feed_forward
        kept = w.batch * self.length * shape.layers * numbers * 4
        weights = (4 if h.measured else 2) * shape.weights + ADAM * self._lora()
        return Cost("train", w.epochs * tokens, flops, weights + kept, flops / h.train / w.machines)

    def _lora(self) -> int:
        """Weights of LoRA on all linear layers."""
        s = self.value
        sides = 4 * s.width + 2 * (s.heads + s.kv_heads) * s.head_width + 3 * (s.width + s.feed_forward)
        return s.layers * self.work.rank * sides

    def _verify(self) -> Cost:
        """40 texts, at most 24 junctions each, read by PyTorch in float32 and by the runtime."""
        w, shape = self.work, self.value
        tokens = 40 * (self.length + 24 * w.k)
        flops = tokens * shape.flops(self.length, False)
        seconds = flops / self.hardware.train + 40 * 24 * self.junction(0.2, 1)
        return Cost("verify", tokens, 2 * flops, 4 * shape.weights + self.base_bytes, seconds)

    def _distill(self) -> Cost:
        return self._writing("distill", self.work.distill, self.work.junctions, 4, 1)
