"""The arms of an evaluation: what is compared, as data. A new way of steering is a new Arm, not new code."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import SiaConfig, setting
from ..errors import ConfigError

FAMILIES = ("off", "sparse", "dense", "random", "gain", "bon", "kl-budget", "guide", "instruction", "profile")
# What begins the source of an arm that one of several value files steers.
ONE_OF = "value "
PICKS = ("reward", "value")
USUAL_RATE = 0.2
_BY_ENTROPY = ("sparse", "kl-budget", "guide")


@dataclass(frozen=True)
class Arm:
    """One setting of the sampler to run all prompts through.

    family: how tokens are chosen for steering (`sparse` = entropy above the threshold that `rate` of the
    unsteered base's tokens exceed; `kl-budget` = the same, beta lowered so that steering spends at most
    `kl_per_token` nats a token; `guide` = the same as sparse with values from guides; `random` = the same rate
    regardless of entropy; `gain` = the same rate, held online, where steering changes most). best_of: N samples a
    prompt, of which one is kept, the best by `pick` (one of PICKS).
    source: which value source to load: `value` is the value model, or `value NAME` one of several that are compared.
    instruction: a sentence in the system prompt, for the family of that name, which steers nothing. config: overrides
    everything else, for arms that a user describes himself.
    """

    family: str
    rate: float | None = None
    beta: float = 0.0
    best_of: int = 1
    source: str = "value"
    config: SiaConfig | None = None
    name: str | None = None
    kl_per_token: float | None = None
    pick: str = "reward"
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.family in (*_BY_ENTROPY, "random", "gain") and (self.rate is None or not 0 < self.rate < 1):
            raise ConfigError(f"a {self.family} arm has the rate {self.rate}; expected a share between 0 and 1")
        if self.best_of < 1:
            raise ConfigError(f"best_of is {self.best_of}; expected 1 sample a prompt or more")
        if self.pick not in PICKS:
            raise ConfigError(f"the best of N is to be picked by {self.pick!r}; expected one of {', '.join(PICKS)}")
        if self.kl_per_token is not None and not self.kl_per_token > 0:
            raise ConfigError(f"a KL budget of {self.kl_per_token} was given; expected nats a token above 0")

    @property
    def steers(self) -> bool:
        return self.family not in ("off", "bon", "instruction")

    @property
    def by_value(self) -> bool:
        """Whether values decide which of N texts is kept."""
        return self.best_of > 1 and self.pick == "value"

    @property
    def uses_values(self) -> bool:
        return self.steers or self.by_value

    @property
    def judges_values(self) -> bool:
        """Whether values decide where to steer, so that they are asked for at every token."""
        return "gain" in (self.family if self.config is None else self.config.gate).split("+")

    @property
    def by_entropy(self) -> bool:
        """Whether a threshold, which the unsteered arm's entropies give, decides what this arm steers."""
        return self.family in _BY_ENTROPY and self.config is None

    @property
    def series(self) -> str:
        """Arms that differ in strength only share a series: a line in the plot, a frontier."""
        names = {"bon": "best of N", "kl-budget": "KL budget"}
        label = self.name or names.get(self.family, self.family)
        if self.rate is not None:
            label += f" {100 * self.rate:g} %"
        if self.beta < 0:
            label += ", beta < 0"  # between opposite directions nothing can be interpolated
        if self.best_of > 1 and self.steers:
            label += f", best of {self.best_of}"
        if self.source.startswith(ONE_OF):
            label += f", {self.source.removeprefix(ONE_OF)}"
        return f"{label} by value" if self.by_value else label

    @property
    def strength(self) -> str | None:
        """What sets this arm apart in its series, apart from beta."""
        if self.family == "bon":
            return f"N = {self.best_of}"
        return None if self.kl_per_token is None else f"≤ {self.kl_per_token:g} nats/token"

    @property
    def label(self) -> str:
        """The arm for a reader."""
        parts = [self.series, self.strength, f"beta {self.beta:g}" if self.steers else None]
        return ", ".join(part for part in parts if part)

    @property
    def key(self) -> str:
        """Identifies the arm in files: no two arms of an evaluation share it."""
        parts = [self.name or self.family]
        parts += [f"r{self.rate:g}"] if self.rate is not None else []
        parts += [f"b{self.beta:g}"] if self.steers and self.config is None else []
        parts += [f"kl{self.kl_per_token:g}"] if self.kl_per_token is not None else []
        parts += [f"n{self.best_of}"] if self.best_of > 1 else []
        parts += ["by-value"] if self.by_value else []
        parts += [self.source] if self.source not in ("value", self.family) else []
        return "-".join(parts)

    def make_config(self, base: SiaConfig, threshold: float | None) -> SiaConfig:
        """The sampler's configuration; `threshold` (nats) belongs to the arm's rate."""
        if self.config is not None:
            return self.config
        if not self.steers:
            return replace(base, gate="off")
        budget = base.kl_per_token if self.kl_per_token is None else self.kl_per_token
        base = replace(base, beta=self.beta, kl_per_token=budget)
        if self.family == "random":
            return replace(base, gate="random", rate=self.rate or 0.0)
        if self.family == "gain":
            return replace(base, gate="gain", gain_threshold=None, rate=self.rate or 0.0)
        if self.family == "dense":
            return replace(base, gate="dense")
        if threshold is None:
            # Without the unsteered arm's entropies the rate can only be found online.
            return replace(base, gate="rate", rate=self.rate or 0.0)
        return replace(base, gate="entropy", threshold=threshold)


@dataclass(frozen=True)
class Comparison:
    """What the standard comparison compares. rates: shares of tokens. betas: strengths, in spreads of V.

    best_of: sizes N for plain Best-of-N, and the first of them for Best-of-N over the sparse arm whose rate is
    nearest to 20 %, which is also the rate of guides and KL budgets; once for each of `picks`. guide_betas: strengths
    of guides, where not `betas`. kl_budgets: nats a token; beta starts from the highest of `betas`.
    """

    families: tuple[str, ...] = setting(
        ("off", "sparse", "dense", "random", "bon"), f"Of {','.join(FAMILIES[:-1])}.", option="--arms", metavar="LIST",
        show="all but kl-budget, guide and profile where given",
    )  # fmt: skip
    rates: tuple[float, ...] = setting((0.1, 0.2, 0.4, 0.8), "Shares of tokens.")
    betas: tuple[float, ...] = setting((0.25, 0.5, 1.0, 2.0), "Strengths.")
    instruction: str | None = setting(
        None, "For the arm instruction: a sentence that the system prompt says, without steering.", metavar="SENTENCE"
    )
    guide_betas: tuple[float, ...] = setting((), "Strengths of guides, raw.", show="those of --betas")
    kl_budgets: tuple[float, ...] = setting(
        (0.02, 0.05, 0.1),
        "For the arm kl-budget, nats a token; beta is the highest of --betas, lowered where needed.",
    )
    best_of: tuple[int, ...] = setting((4, 16), "Best-of-N; the first N also over the arms sparse and gain near 20 %.")
    picks: tuple[str, ...] = setting(
        PICKS[:1], f"What picks the best: {' or '.join(PICKS)}, or both as arms of their own.", option="--best-of-by",
        metavar="LIST",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES[:-1]:
                raise ConfigError(f"unknown arm '{family}'; expected some of {', '.join(FAMILIES[:-1])}")
        if not self.rates and {*_BY_ENTROPY, "random", "gain"} & set(self.families):
            raise ConfigError("no rate was given for the arms that need one; expected shares such as 0.1,0.2,0.4")
        if not self.betas and set(self.families) - {"off", "bon", "instruction"}:
            raise ConfigError("no beta was given for the arms that steer; expected strengths such as 0.5,1,2")
        if "instruction" in self.families and not self.instruction:
            raise ConfigError("the arm 'instruction' has no sentence; give one with --instruction")

    def arms(self, source: str = "value") -> list[Arm]:
        """The unsteered arm comes first, since the others are measured against it.

        source: what steers: `value`, or `guide` where guides alone do, at every family and at their own strengths.
        """
        rates, betas, best_of = self.rates, self.betas, self.best_of
        if source == "guide":
            betas = self.guide_betas or betas
        usual = min(rates, key=lambda r: abs(r - USUAL_RATE), default=0.0)
        arms = [Arm("off")]
        for family in dict.fromkeys(self.families):
            if family == "dense":
                arms += [Arm("dense", beta=beta, source=source) for beta in betas]
            elif family in ("sparse", "random", "gain"):
                arms += [Arm(family, rate=rate, beta=beta, source=source) for rate in rates for beta in betas]
            elif family == "kl-budget":
                budgets = self.kl_budgets
                arms += [Arm("kl-budget", usual, max(betas), source=source, kl_per_token=kl) for kl in budgets]
            elif family == "guide":
                arms += [Arm("guide", usual, beta, source="guide") for beta in self.guide_betas or betas]
            elif family == "instruction":
                arms.append(Arm("instruction", instruction=self.instruction))
            elif family == "bon":
                for pick in self.picks:
                    arms += [Arm("bon", best_of=n, pick=pick) for n in best_of]
                    for steered in [name for name in ("sparse", "gain") if name in self.families and best_of]:
                        arms += [Arm(steered, usual, beta, best_of[0], source, pick=pick) for beta in betas]
        unique: dict[str, Arm] = {}
        for arm in arms:
            unique.setdefault(arm.key, arm)  # the best of one is the arm itself, whatever picks it
        return list(unique.values())
