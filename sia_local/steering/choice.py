"""From a row of logits to a distribution over candidates: filter, entropy, gate, tilt, KL budget.

One Choice belongs to one sequence. It knows no model and no text; the loop, the drop-in processor and nudging
all decide through it, so that they share gates, budgets and traces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..config import SiaConfig
from ..errors import ConfigError, NumericError
from .entropy import entropy, log_partition, top_candidates, varentropy
from .gates import Moment, make_gate
from .tilt import beta_for_kl, is_sane, kl, shape_values, softmax, truncation_kl

Floats = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
# What a gate draws is apart from what the sampling draws with the same seed.
GATE_SEED = 0x5EED


class Source(Protocol):
    """What a choice needs to know of a source of values."""

    spread: float | None
    max_candidates: int


class Filter(Protocol):
    def candidates(self, logits: Any, k: int) -> tuple[IntArray, Float64]: ...
    def narrow(self, ids: IntArray, logits: Float64) -> tuple[IntArray, Float64]: ...
    def accept(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a step, best base logit first. values are NaN where no value was asked for.

    ids int32[k]; logits, values, p_base, p_steered float64[k]; p_base is over the whole vocabulary.
    """

    ids: IntArray
    logits: Float64
    values: Float64
    p_base: Float64
    p_steered: Float64


class Choice:
    """look() at a row of logits, weigh() the candidates, then advance(); state: gate, position, KL spent.

    After look(): ids and logits of the candidates C, log_z of the whole row, entropy (nats), steer (whether the gate
    opened) and asked, the ids to score. After weigh(): scores z + beta V and probabilities over C, beta used, kl from
    the base (nats), kl_truncation (the part of it due to cutting to C), kl_steering (from the same step without
    values) and flipped.
    """

    def __init__(self, config: SiaConfig, seed: int = 0, source: Source | None = None, filter: Filter | None = None):
        self.config = config
        self.source = source
        self.uses_value = source is not None and config.gate != "off"
        self._beta = config.beta
        if source is not None and self.uses_value and config.beta_unit == "spread":
            if not source.spread:
                raise ConfigError(
                    "beta is to be counted in spreads, but the value model stores none; give a raw beta "
                    "(--beta-unit raw), or measure the spread with `sia-convert spread` and export again"
                )
            self._beta /= source.spread
        self.index = 0
        self.spent = 0.0
        self._filter = filter
        self._gate = make_gate(config, seed=seed ^ GATE_SEED)
        self._wants_varentropy = "varentropy" in config.gate
        self._previous: float | None = None

    def look(self, row: Floats) -> None:
        """Candidates, entropy and gate of one row of logits [n_vocab]; nothing of the row is kept."""
        config = self.config
        self.log_z = log_z = log_partition(row)
        if not math.isfinite(log_z):
            raise NumericError(
                f"the base model's logits at token {self.index} contain NaN or infinity; the model file is "
                "damaged or its quantization broke it, try another quantization"
            )
        if self._filter is None:
            self.ids = top_candidates(row, config.k)
            self.logits = row[self.ids].astype(np.float64)
        else:
            self.ids, self.logits = self._filter.candidates(row, config.k)
        self.entropy = entropy(self.logits) if config.entropy == "topk" else entropy(row)
        if self._filter is not None:
            self.ids, self.logits = self._filter.narrow(self.ids, self.logits)
        varied = varentropy(self.logits) if self._wants_varentropy else 0.0
        # Every gate sees every step; with one candidate there is nothing to tilt.
        opens = self._gate.opens(Moment(self.index, self.entropy, self._previous, varied))
        self.steer = opens and self.uses_value and len(self.ids) > 1
        self.asked = self.ids[: self._worth_scoring()] if self.steer else self.ids[:0]
        if config.tail:
            order, rest = self.ids, np.ones(len(row), bool)
            rest[order] = False
            self.ids = np.concatenate([order, np.flatnonzero(rest).astype(np.int32)])
            self.logits = row[self.ids].astype(np.float64)
        # Taken now: scoring may decode in the base's context, which overwrites the row.
        self.base_logprobs = row[self.ids].astype(np.float64) - log_z

    def weigh(self, values: Floats | None) -> Float64:
        """Probabilities of the candidates, tilted by the values of the asked ones (None: not steered)."""
        temperature = self.config.sampling.temperature
        self.beta, self.kl_steering, self._values = 0.0, 0.0, None
        plain = softmax(self.logits, temperature)
        if values is None:
            self.scores, self.probabilities = self.logits, plain
        else:
            if not is_sane(values):
                raise NumericError(
                    f"the value model returned NaN or infinity at token {self.index}; export or quantize it again"
                )
            self._values = values
            shaped = shape_values(values, self.config.center, self.config.clip)
            # Candidates nobody scored are treated as average ones; a kept tail stays at its base logits.
            effective = np.full(len(self.ids), 0.0 if self.config.tail else shaped.mean())
            effective[: len(values)] = shaped
            self.beta = self._affordable(self._beta, effective)
            self.scores = self.logits + self.beta * effective
            self.probabilities = softmax(self.scores, temperature)
            self.kl_steering = self._changed(plain)
        self.kl_truncation = truncation_kl(self.base_logprobs)
        self.kl = kl(self.probabilities, self.base_logprobs)
        self.spent += self.kl_steering
        self.flipped = values is not None and int(np.argmax(self.probabilities)) != int(np.argmax(self.logits))
        return self.probabilities

    def advance(self) -> None:
        """The step is over; the next look() is at the next position."""
        self._previous = self.entropy
        self.index += 1

    def candidates(self) -> Candidates:
        """The k candidates for a trace, copied; a kept tail is left out."""
        n = min(len(self.ids), self.config.k)
        values = np.full(n, np.nan)
        if self._values is not None:
            values[: len(self._values)] = self._values
        return Candidates(
            self.ids[:n].copy(),
            self.logits[:n].copy(),
            values,
            np.exp(self.base_logprobs[:n]),
            self.probabilities[:n].copy(),
        )

    def _worth_scoring(self) -> int:
        """How many candidates are scored: the likely ones, filled up to the row group, within the source's limit."""
        config, n = self.config, len(self.ids)
        assert self.source is not None
        if config.min_share > 0:
            n = int(np.count_nonzero(self.logits >= self.logits[0] + math.log(config.min_share)))
        n = max(2, n)
        n = math.ceil(n / config.row_group) * config.row_group
        return min(n, len(self.ids), self.source.max_candidates)

    def _changed(self, plain: Float64) -> float:
        """KL of the tilted from the plain probabilities, nats. At temperature 0 that of two points is infinite; T · KL
        has a limit, the favourite's logit less that of the token taken, which takes its place."""
        if self.config.sampling.temperature == 0:
            return float(self.logits[int(np.argmax(plain))] - self.logits[int(np.argmax(self.probabilities))])
        with np.errstate(divide="ignore"):
            return max(0.0, kl(self.probabilities, np.log(plain)))

    def _affordable(self, beta: float, values: Float64) -> float:
        """beta, lowered so that what steering spent so far plus this step stays within the KL budgets."""
        config = self.config
        budgets = []
        if config.kl_per_token is not None:
            budgets.append(config.kl_per_token * (self.index + 1) - self.spent)
        if config.kl_total is not None:
            budgets.append(config.kl_total - self.spent)
        if not budgets:
            return beta
        return beta_for_kl(self.logits, values, beta, config.sampling.temperature, max(0.0, min(budgets)))
