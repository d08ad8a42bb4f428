"""From a row of logits to a distribution over candidates: filter, entropy, gate, tilt, KL budget.

One Choice belongs to one sequence. It knows no model and no text; the loop, the drop-in processor and nudging
all decide through it, so that they share gates, budgets and traces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..config import SiaConfig
from ..errors import NumericError
from ..reasoning import ANSWER
from ..records import Candidates, Float64, Floats, IntArray
from .entropy import entropy, log_partition, top_candidates, varentropy
from .gates import Moment, make_gate
from .tilt import beta_for_kl, gain, is_sane, kl, log_softmax, shape_values, softmax, truncation_kl

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
class Look:
    """What a row of logits shows. Nothing of the row is kept.

    index: position of the token. ids, logits, base_logprobs: the candidates C, best first, int32[n] and float64[n];
    base_logprobs and log_z are over the whole row. entropy, varentropy in nats, nats². asked: the ids whose values are
    wanted, none where the gate stays shut. place: how many tokens of the steered part there are with this one; 0 where
    it is of another part. kept: how many of the ids are candidates; a kept tail comes behind them.
    """

    index: int
    ids: IntArray
    logits: Float64
    base_logprobs: Float64
    log_z: float
    entropy: float
    moment: Moment
    asked: IntArray
    place: int
    kept: int

    @property
    def asks(self) -> bool:
        return len(self.asked) > 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A distribution over the candidates of a look, and what it cost.

    probabilities float64[n] and scores z + beta V of C; steered: the tilt acted; beta: strength used; kl: from the
    base, nats, of which kl_truncation is due to cutting to C; kl_steering: from the same step without values; flipped:
    the likeliest candidate changed.
    """

    look: Look
    values: Floats | None
    scores: Float64
    probabilities: Float64
    steered: bool
    beta: float
    kl: float
    kl_truncation: float
    kl_steering: float
    flipped: bool

    def candidates(self, k: int) -> Candidates:
        """The k candidates for a trace, copied; a kept tail is left out."""
        look, n = self.look, min(len(self.look.ids), k)
        values = np.full(n, np.nan)
        if self.values is not None:
            values[: len(self.values)] = self.values
        return Candidates(
            look.ids[:n].copy(),
            look.logits[:n].copy(),
            values,
            np.exp(look.base_logprobs[:n]),
            self.probabilities[:n].copy(),
        )


class _Spread:
    """What one unit of beta is, in units of V: 1 for a raw beta, else the standard deviation among a junction's
    candidates that the source states. Where it states none, the mean over the junctions of this text so far."""

    def __init__(self, stated: float | None, wanted: bool):
        self._fixed = 1.0 if not wanted else stated or None
        self._sum, self._seen = 0.0, 0

    def after(self, values: Floats) -> float:
        """The unit once the values of this junction, too, are known; infinite, so no steering, while none differ."""
        if self._fixed is not None:
            return self._fixed
        self._sum += float(np.std(values))
        self._seen += 1
        return self._sum / self._seen or math.inf


class Choice:
    """One sequence's decisions: look() at each row of logits, then weigh() its candidates.

    State: position, previous entropy, the gate's own, and what was spent of the KL budgets (nats).
    """

    def __init__(self, config: SiaConfig, seed: int = 0, source: Source | None = None, filter: Filter | None = None):
        self.config = config
        self.uses_value = source is not None and config.gate != "off"
        self._most = source.max_candidates if source is not None else 0
        self._spread = _Spread(source.spread if source is not None else None, config.beta_unit == "spread")
        self.index = -1
        self._inside = 0
        self.spent = 0.0
        self._filter = filter
        self._gate = make_gate(config, seed=seed ^ GATE_SEED)
        self._wants_varentropy = "varentropy" in config.gate
        self._judges_values = "gain" in config.gate.split("+")
        self._previous: float | None = None

    def look(self, row: Floats, part: str = ANSWER) -> Look:
        """Candidates, entropy and gate of one row of logits [n_vocab]; part: which of a text the token belongs to.

        Raises NumericError for NaN or infinity.
        """
        config = self.config
        self.index += 1
        inside = config.acts_on(part)
        self._inside += inside
        ids = top_candidates(row, config.k) if self._filter is None else None
        # Of a row of NaN no candidate is the best.
        log_z = log_partition(row, row[ids[0]] if ids is not None and len(ids) else None)
        if not math.isfinite(log_z):
            raise NumericError(
                f"the base model's logits at token {self.index} contain NaN or infinity; the model file is "
                "damaged or its quantization broke it, try another quantization"
            )
        if self._filter is None:
            assert ids is not None
            logits = row[ids].astype(np.float64)
        else:
            ids, logits = self._filter.candidates(row, config.k)
        surprise = entropy(logits) if config.entropy == "topk" else entropy(row)
        if self._filter is not None:
            ids, logits = self._filter.narrow(ids, logits)
        varied = varentropy(logits) if self._wants_varentropy else 0.0
        moment = Moment(self._inside - 1, surprise, self._previous, varied)
        self._previous = surprise
        # Every gate sees every step of the part it is for; one that judges values sees it in weigh(). One candidate
        # leaves nothing to tilt.
        opens = inside and (self._judges_values or self._gate.opens(moment))
        asks = opens and self.uses_value and len(ids) > 1
        asked = ids[: self._worth_scoring(logits)] if asks else ids[:0]
        kept = len(ids)
        if config.tail:
            order, rest = ids, np.ones(len(row), bool)
            rest[order] = False
            ids = np.concatenate([order, np.flatnonzero(rest).astype(np.int32)])
            logits = row[ids].astype(np.float64)
        # Taken now: scoring may decode in the base's context, which overwrites the row.
        filtered = self._filter is not None and not config.tail
        base_logprobs = (row[ids].astype(np.float64) if filtered else logits) - log_z
        place = self._inside if inside else 0
        return Look(self.index, ids, logits, base_logprobs, log_z, surprise, moment, asked, place, kept)

    def weigh(self, look: Look, values: Floats | None) -> Verdict:
        """Probabilities of the candidates, tilted by the values of the asked ones (None: not steered).

        Raises NumericError for NaN or infinite values.
        """
        config, temperature = self.config, self.config.sampling.temperature
        plain = softmax(look.logits, temperature)
        scores, probabilities = look.logits, plain
        beta, changed, steered = 0.0, 0.0, False
        if values is not None:
            if not is_sane(values):
                raise NumericError(
                    f"the value model returned NaN or infinity at token {look.index}; export or quantize it again"
                )
            shaped = shape_values(values, config.center, config.clip)
            # Candidates nobody scored are treated as average ones; a kept tail stays at its base logits.
            effective = np.zeros(len(look.ids))
            effective[: look.kept] = shaped.mean()
            effective[: len(values)] = shaped
            wanted = config.beta / self._spread.after(values)
            steered = not self._judges_values or self._gate.opens(
                replace(look.moment, gain=gain(look.logits, wanted * effective))
            )
            if steered:
                beta = self._affordable(look, wanted, effective)
                scores = look.logits + beta * effective
                probabilities = softmax(scores, temperature)
                changed = self._changed(look, probabilities)
                self.spent += changed
        elif self._judges_values and look.place:
            self._gate.opens(look.moment)
        return Verdict(
            look=look,
            values=values,
            scores=scores,
            probabilities=probabilities,
            steered=steered,
            beta=beta,
            kl=kl(probabilities, look.base_logprobs),
            kl_truncation=truncation_kl(look.base_logprobs),
            kl_steering=changed,
            flipped=steered and int(np.argmax(probabilities)) != int(np.argmax(look.logits)),
        )

    def _worth_scoring(self, logits: Float64) -> int:
        """How many candidates are scored: the likely ones, filled up to the row group, within the source's limit."""
        config, n = self.config, len(logits)
        if config.min_share > 0:
            n = int(np.count_nonzero(logits >= logits[0] + math.log(config.min_share)))
        n = max(2, n)
        n = math.ceil(n / config.row_group) * config.row_group
        return min(n, len(logits), self._most)

    def _changed(self, look: Look, tilted: Float64) -> float:
        """KL of the tilted from the plain probabilities, nats. At temperature 0 that of two points is infinite; T · KL
        has a limit, the favourite's logit less that of the token taken, which takes its place."""
        temperature = self.config.sampling.temperature
        if temperature == 0:
            return float(look.logits.max() - look.logits[int(np.argmax(tilted))])
        return max(0.0, kl(tilted, log_softmax(look.logits, temperature)))

    def _affordable(self, look: Look, beta: float, values: Float64) -> float:
        """beta, lowered so that what steering spent so far plus this step stays within the KL budgets."""
        config = self.config
        budgets = []
        if config.kl_per_token is not None:
            budgets.append(config.kl_per_token * look.place - self.spent)
        if config.kl_total is not None:
            budgets.append(config.kl_total - self.spent)
        if not budgets:
            return beta
        return beta_for_kl(look.logits, values, beta, config.sampling.temperature, max(0.0, min(budgets)))
