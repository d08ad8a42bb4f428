"""The arms of an evaluation: what is compared, as data. A new way of steering is a new Arm, not new code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..config import SiaConfig
from ..errors import ConfigError

FAMILIES = ("off", "sparse", "dense", "random", "bon", "guide", "profile")
DEFAULT_RATES = (0.1, 0.2, 0.4, 0.8)
DEFAULT_BETAS = (0.25, 0.5, 1.0, 2.0)  # in spreads of V
USUAL_RATE = 0.2


@dataclass(frozen=True)
class Arm:
    """One setting of the sampler to run all prompts through.

    family: how tokens are chosen for steering (`sparse` = entropy above the threshold that `rate` of the
    unsteered base's tokens exceed; `guide` = the same with values from guides; `random` = the same rate regardless
    of entropy). best_of: N samples a prompt, of which the reward keeps one. source: which value source to load
    (`value` is the value model). config: overrides everything else, for arms that a user describes himself.
    """

    family: str
    rate: float | None = None
    beta: float = 0.0
    best_of: int = 1
    source: str = "value"
    config: SiaConfig | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.family in ("sparse", "guide", "random") and (self.rate is None or not 0 < self.rate < 1):
            raise ConfigError(f"a {self.family} arm has the rate {self.rate}; expected a share between 0 and 1")
        if self.best_of < 1:
            raise ConfigError(f"best_of is {self.best_of}; expected 1 sample a prompt or more")

    @property
    def steers(self) -> bool:
        return self.family not in ("off", "bon")

    @property
    def by_entropy(self) -> bool:
        """Whether a threshold, which the unsteered arm's entropies give, decides what this arm steers."""
        return self.family in ("sparse", "guide") and self.config is None

    @property
    def series(self) -> str:
        """Arms that differ in strength only share a series: a line in the plot, a frontier."""
        label = self.name or {"off": "off", "bon": "best of N"}.get(self.family, self.family)
        if self.rate is not None:
            label += f" {100 * self.rate:g} %"
        if self.best_of > 1 and self.steers:
            label += f", best of {self.best_of}"
        return label

    @property
    def label(self) -> str:
        """The arm for a reader."""
        if self.family == "bon":
            return f"best of {self.best_of}"
        return f"{self.series}, beta {self.beta:g}" if self.steers else self.series

    @property
    def key(self) -> str:
        """Identifies the arm in files: no two arms of an evaluation share it."""
        parts = [self.name or self.family]
        parts += [f"r{self.rate:g}"] if self.rate is not None else []
        parts += [f"b{self.beta:g}"] if self.steers and self.config is None else []
        parts += [f"n{self.best_of}"] if self.best_of > 1 else []
        parts += [self.source] if self.source not in ("value", self.family) else []
        return "-".join(parts)

    def make_config(self, base: SiaConfig, threshold: float | None) -> SiaConfig:
        """The sampler's configuration; `threshold` (nats) belongs to the arm's rate."""
        if self.config is not None:
            return self.config
        if not self.steers:
            return replace(base, gate="off")
        if self.family == "random":
            return replace(base, gate="random", rate=self.rate or 0.0, beta=self.beta)
        if self.family == "dense":
            return replace(base, gate="dense", beta=self.beta)
        if threshold is None:
            # Without the unsteered arm's entropies the rate can only be found online.
            return replace(base, gate="rate", rate=self.rate or 0.0, beta=self.beta)
        return replace(base, gate="entropy", threshold=threshold, beta=self.beta)


def make_arms(
    families: Sequence[str] = ("off", "sparse", "dense", "random", "bon"),
    rates: Sequence[float] = DEFAULT_RATES,
    betas: Sequence[float] = DEFAULT_BETAS,
    best_of: Sequence[int] = (),
    guide_betas: Sequence[float] = (),
) -> list[Arm]:
    """The arms of the standard comparison; off always comes first, since the others are measured against it.

    best_of: sizes N for plain Best-of-N, and the first of them for Best-of-N over the sparse arm whose rate is
    nearest to 20 %, which is also the rate of guides. guide_betas: strengths of guides, where not `betas`.
    """
    for family in families:
        if family not in FAMILIES[:-1]:
            raise ConfigError(f"unknown arm '{family}'; expected some of {', '.join(FAMILIES[:-1])}")
    if not rates and {"sparse", "random", "guide"} & set(families):
        raise ConfigError("no rate was given for the arms that need one; expected shares such as 0.1,0.2,0.4")
    if not betas and set(families) - {"off", "bon"}:
        raise ConfigError("no beta was given for the arms that steer; expected strengths such as 0.5,1,2")
    usual = min(rates, key=lambda r: abs(r - USUAL_RATE), default=0.0)
    arms = [Arm("off")]
    for family in dict.fromkeys(families):
        if family == "dense":
            arms += [Arm("dense", beta=beta) for beta in betas]
        elif family in ("sparse", "random"):
            arms += [Arm(family, rate=rate, beta=beta) for rate in rates for beta in betas]
        elif family == "guide":
            arms += [Arm("guide", rate=usual, beta=beta, source="guide") for beta in guide_betas or betas]
        elif family == "bon":
            arms += [Arm("bon", best_of=n) for n in best_of]
            if "sparse" in families and best_of:
                arms += [Arm("sparse", rate=usual, beta=beta, best_of=best_of[0]) for beta in betas]
    return arms
