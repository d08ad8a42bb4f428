"""What it costs to sample from another model than is steered: log-probabilities of its texts under both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sia_local.steering.entropy import log_partition, top_candidates

from ..settings import Machine
from .rollouts import RolloutConfig


@dataclass(frozen=True)
class Heard:
    """A text that was sampled elsewhere. logprobs: of its tokens there, nats, where they are known."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Gap:
    """nats: mean over the tokens of log p_there - log p_base, an estimate of KL(there || base) a token.

    Where the server tells no log-probabilities (not `told`), what the base would expect of texts of its own takes their
    place: sum_C q log p - log p_base, q being p on the k candidates C at the temperature. Its mean is 0 for texts
    sampled from q: it says whether they are as likely as the base's own, not whether they are the same. error: standard
    error, by texts. outside: share of the tokens that are not among the base's k likeliest, where steering never goes.
    """

    texts: int
    tokens: int
    nats: float
    error: float
    outside: float
    told: bool
    k: int

    def line(self) -> str:
        # Adding 0 turns what would be printed as -0.0000 into 0.0000.
        nats, text = round(self.nats, 4) + 0.0, round(self.nats * self.tokens / self.texts, 2) + 0.0
        gap = f"{nats:.4f} ± {self.error:.4f} nats a token, {text:.2f} a text"
        found = f"likelier to the server than to the base GGUF by {gap}"
        if not self.told:
            found = (
                f"less likely to the base GGUF than texts of its own by {gap} (the server tells no log-probabilities)"
            )
        return (
            f"{self.texts} texts, {self.tokens} tokens: {found}; {self.outside:.2%} of the tokens are not among the "
            f"GGUF's {self.k} likeliest"
        )


def gap(heard: Sequence[Heard], base: str | os.PathLike[str], config: RolloutConfig, machine: Machine) -> Gap:
    """Reads the texts with the base GGUF, one decode of each."""
    from sia_local import SIA

    told = all(text.logprobs is not None for text in heard)
    sums, counts, outside = [], [], 0
    longest = max(len(text.prompt) + len(text.tokens) for text in heard)
    with (
        SIA.load(base, n_ctx=longest + 1, n_threads=machine.threads, n_gpu_layers=machine.gpu_layers) as sia,
        sia.desk.slot() as slot,
    ):
        for text in heard:
            at, total = 0, 0.0
            reads = (text.prompt[-1], *text.tokens[:-1])
            for rows in sia.engine.trail(slot, text.prompt[:-1], reads):
                for row in rows:
                    token = text.tokens[at]
                    there = None if text.logprobs is None or not told else text.logprobs[at]
                    more, within = _token(np.asarray(row), token, there, config)
                    total, outside, at = total + more, outside + (not within), at + 1
            sums.append(total)
            counts.append(at)
    tokens = sum(counts)
    nats = sum(sums) / tokens
    # Of a ratio of sums over texts.
    residuals = np.array(sums) - nats * np.array(counts)
    error = float(np.sqrt((residuals**2).sum() * len(sums) / max(1, len(sums) - 1))) / tokens
    return Gap(len(sums), tokens, nats, error, outside / tokens, told, config.k)


def _token(row: np.ndarray, token: int, there: float | None, config: RolloutConfig) -> tuple[float, bool]:
    """What one token adds to the gap, and whether it is among the k candidates."""
    candidates = top_candidates(row, config.k)
    log_p = row[candidates].astype(np.float64) - log_partition(row)
    own = float(row[token]) - log_partition(row)
    if there is None:
        weights = log_p / (config.temperature or 1e-6)
        q = np.exp(weights - weights.max())
        there = float((q / q.sum() * log_p).sum())
    return there - own, bool((candidates == token).any())
