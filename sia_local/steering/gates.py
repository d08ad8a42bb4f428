"""Gates: at which tokens to ask the value model. One gate belongs to one sequence and may keep state."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

import numpy as np

from ..config import SiaConfig

# Nats: what a junction's tilt of one or two spreads usually changes; holds until a rate gate has seen a few steps.
GAIN_START = 0.05


@dataclass(frozen=True, slots=True)
class Moment:
    """What a gate sees of a step: position in the steered part, entropy (nats), the previous token's entropy,
    varentropy (nats²), and what steering would change (nats, tilt.gain), for a gate that judges values."""

    index: int
    entropy: float
    previous: float | None = None
    varentropy: float = 0.0
    gain: float = 0.0


class Gate(Protocol):
    def opens(self, moment: Moment) -> bool: ...


class EntropyGate:
    """Steers when H >= threshold."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def opens(self, moment: Moment) -> bool:
        return moment.entropy >= self.threshold


class RateGate:
    """Holds a wanted share of steered tokens by moving the threshold online.

    The threshold is a quantile of the last `window` entropies, or of another number of the moment: `signal`. Which
    quantile follows the debt: the steered tokens owed so far (rate * n - steered) are to be repaid over the next
    `horizon` tokens. Until `warmup` numbers are known, `start` decides, so a calibrated threshold is right from the
    first token.
    """

    def __init__(
        self,
        rate: float,
        start: float = 1.0,
        window: int = 256,
        horizon: int = 32,
        warmup: int = 8,
        signal: str = "entropy",
    ):
        self.rate = rate
        self.threshold = start
        self.horizon = horizon
        self.warmup = warmup
        self._read = attrgetter(signal)
        self._recent: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []
        self._seen = 0
        self._steered = 0

    def opens(self, moment: Moment) -> bool:
        if len(self._recent) >= self.warmup:
            owed = (self.rate * (self._seen + 1) - self._steered) / self.horizon
            wanted = min(1.0, max(0.0, self.rate + owed))
            place = round((1.0 - wanted) * len(self._sorted))
            if place >= len(self._sorted):
                self.threshold = float("inf")
            else:
                self.threshold = self._sorted[place]
        level = self._read(moment)
        steer = self.rate > 0 and (self.rate >= 1 or level >= self.threshold)
        self._remember(level)
        self._seen += 1
        self._steered += steer
        return steer

    def _remember(self, value: float) -> None:
        if len(self._recent) == self._recent.maxlen:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(value)
        insort(self._sorted, value)


class DenseGate:
    def opens(self, moment: Moment) -> bool:
        return True


class OffGate:
    def opens(self, moment: Moment) -> bool:
        return False


class RandomGate:
    """Steers a given share of tokens regardless of entropy: the control of every evaluation."""

    def __init__(self, rate: float, seed: int):
        self.rate = rate
        self._rng = np.random.default_rng(seed)

    def opens(self, moment: Moment) -> bool:
        return bool(self._rng.random() < self.rate)


class FirstGate:
    def __init__(self, n: int):
        self.n = n

    def opens(self, moment: Moment) -> bool:
        return moment.index < self.n


class RatioGate:
    """Steers when the entropy rose to at least `ratio` times that of the previous token."""

    def __init__(self, ratio: float):
        self.ratio = ratio

    def opens(self, moment: Moment) -> bool:
        return moment.previous is not None and moment.entropy >= self.ratio * max(moment.previous, 1e-3)


class VarentropyGate:
    """Steers when the surprise varies much among the candidates (several kinds of continuation compete)."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def opens(self, moment: Moment) -> bool:
        return moment.varentropy >= self.threshold


class GainGate:
    """Steers where that changes at least `threshold` nats: where it pays."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def opens(self, moment: Moment) -> bool:
        return moment.gain >= self.threshold


class AnyGate:
    """Several gates, OR-ed; every one sees every step, so that gates with state stay informed."""

    def __init__(self, gates: list[Gate]):
        self.gates = gates

    def opens(self, moment: Moment) -> bool:
        return any([gate.opens(moment) for gate in self.gates])


def make_gate(config: SiaConfig, seed: int = 0) -> Gate:
    """The gate a configuration names; `seed` feeds the random gate only, never the sampling."""

    def one(name: str) -> Gate:
        match name:
            case "entropy":
                return EntropyGate(config.threshold)
            case "rate":
                return RateGate(config.rate, config.threshold)
            case "dense":
                return DenseGate()
            case "random":
                return RandomGate(config.rate, seed)
            case "first-n":
                return FirstGate(config.first_n)
            case "ratio":
                return RatioGate(config.ratio)
            case "varentropy":
                return VarentropyGate(config.varentropy_threshold)
            case "gain":
                wanted = config.gain_threshold
                return RateGate(config.rate, GAIN_START, signal="gain") if wanted is None else GainGate(wanted)
            case _:
                return OffGate()

    names = config.gate.split("+")
    return one(names[0]) if len(names) == 1 else AnyGate([one(name) for name in names])
