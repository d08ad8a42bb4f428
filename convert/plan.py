"""A plan: what `sia-convert make` makes, as dataclasses, checked whole before the first step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sia_local.config import SiaConfig, setting
from sia_local.errors import ConfigError, DataError
from sia_local.evaluation.plan import Goal
from sia_local.files import at_home
from sia_local.learning.collect import CollectConfig
from sia_local.learning.fit import FitConfig
from sia_local.records import Request
from sia_local.rewards.load import check_reward_name, is_function, module_file
from sia_local.tables import check, exists, is_hub

from .data.rollouts import RolloutConfig, Steering
from .data.score import ScoreConfig
from .data.served import ServerConfig
from .formats.export import ROW_TYPES, BaseConfig, ExportConfig, check_trained, layout_for
from .paths import Artefact, Files, rounds_in
from .proof.junctions import JunctionConfig
from .registry import Maker
from .settings import Machine, check_choice, settings_of
from .train.config import TrainSettings, read_template


@dataclass(frozen=True, kw_only=True)
class BaseSection(BaseConfig):
    """The base: a GGUF that exists, or a Hugging Face folder and what becomes of it."""

    gguf: Path | None = None
    hf: Path | None = None
    out: Path | None = None
    quantize: tuple[str, ...] = ()
    maker: Maker | None = None  # what makes `hf` where it is not there

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gguf is None and (self.hf is None or self.out is None):
            raise ConfigError(f"lacks the setting {'hf' if self.hf is None else 'out'!r}, or gguf, one made already")


@dataclass(frozen=True, kw_only=True)
class RolloutSection(RolloutConfig):
    """The first `limit` prompts and how they are answered, by `servers` where some are named; with `pairs` they are
    answered already, and so are the prompts of `texts`, which were sampled before."""

    prompts: Path
    limit: int | None = setting(None, free="amount")
    pairs: bool = False
    texts: Path | None = None
    servers: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; expected 1 or more, or none for all")


@dataclass(frozen=True, kw_only=True)
class RewardSection(ScoreConfig):
    source: str
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class SteeredSection(Steering):
    """A further round: texts of the base as the last round's value model steers it."""

    gate: str = "rate"
    beta: float = 2.0
    beta_unit: str = "spread"
    samples: int | None = setting(None, show="as [rollouts]")
    seed: int = 1

    @property
    def steering(self) -> Steering:
        return Steering(**settings_of(Steering, self))


@dataclass(frozen=True, kw_only=True)
class ValueSection(TrainSettings):
    backbone: Path | None = None
    processes: int | None = None
    accelerate: Path | None = None  # a file of `accelerate config`

    @property
    def recipe(self) -> dict[str, Any]:
        return settings_of(TrainSettings, self)


@dataclass(frozen=True, kw_only=True)
class ExportSection(ExportConfig):
    out: Path
    dtype: str = "f32"
    quantize: tuple[str, ...] = ()
    quantize_rows: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("quantize_rows", self.quantize_rows, (None, *ROW_TYPES[:-1]))

    @property
    def config(self) -> ExportConfig:
        return ExportConfig(**settings_of(ExportConfig, self))


@dataclass(frozen=True)
class VerifySection:
    """Junctions of unseen texts; `also`: quantizations that are compared for information alone."""

    junctions: JunctionConfig
    unseen: RolloutSection
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DistillSection(CollectConfig):
    """A Q-head that stands in for the finished value model. prompts, raw: as the rollouts have them where none are
    named."""

    out: Path
    prompts: Path | None = None
    n_ctx: int = setting(1024, "Tokens a sequence may hold, prompt included.", option="--ctx")
    fit: FitConfig = field(default_factory=FitConfig)

    @property
    def collecting(self) -> CollectConfig:
        return CollectConfig(**settings_of(CollectConfig, self))


@dataclass(frozen=True, kw_only=True)
class CalibrateSection(Goal):
    """Settings for the Q-head, or for the value model where none is distilled, as a profile beside it.

    prompts: the first `limit` of them, those of the rollouts where none are named. weigh: the plan's reward is
    measured, too.
    """

    prompts: Path | None = None
    limit: int = 64
    max_tokens: int = 80
    k: int = 10
    slots: int = setting(8, free="pace")
    seed: int = 0
    weigh: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("limit", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        _ = self.request  # raises for the others
        if self.reward_per_kl is not None and not self.weigh:
            raise ConfigError("reward_per_kl weighs the reward, which weigh = false leaves out; drop one of them")

    @property
    def request(self) -> Request:
        """What every text asks for, but for its prompt."""
        return Request("", SiaConfig(k=self.k), max_tokens=self.max_tokens, seed=self.seed)


@dataclass(frozen=True)
class Plan:
    """Everything the TOML files say. Paths are absolute; `steered` has one entry a further round."""

    folder: Path  # of the first TOML file
    work: Path
    base: BaseSection
    rollouts: RolloutSection
    reward: RewardSection
    value: ValueSection
    export: ExportSection
    verify: VerifySection
    steered: tuple[SteeredSection, ...] = ()
    distill: DistillSection | None = None
    calibrate: CalibrateSection | None = None
    machine: Machine = field(default_factory=Machine)

    @property
    def backbone(self) -> Path:
        """What is trained: [value] backbone, else the base."""
        return self.value.backbone or self.base.hf or self.base.gguf or Path()

    @property
    def layout(self) -> str:
        return self.export.layout or layout_for(self.value.placement, bool(self.value.head_hidden))

    @property
    def files(self) -> Files:
        """Where everything of it lies."""
        b, e, w = self.base, self.export, self.work
        base = None if b.gguf is not None or b.out is None else Artefact(b.out, b.dtype, b.quantize, w)
        return Files(w, base, Artefact(e.out, e.dtype, e.quantize, w), rounds_in(w, 1 + len(self.steered)))

    @property
    def reward_path(self) -> Path | None:
        """The folder or file that the reward names, beside the plan if it is there."""
        kind, _, argument = self.reward.source.partition(":")
        if not argument or kind == "url" or is_function(self.reward.source):
            return None
        beside, here = ((folder / at_home(argument)).resolve() for folder in (self.folder, Path()))
        if argument.startswith((".", "/", "~")) or beside.exists():
            return beside
        return here if here.exists() else None

    @property
    def reward_files(self) -> tuple[Path, ...]:
        """What decides what the reward says: that path, or the file of its module."""
        found = self.reward_path or module_file(self.reward.source)
        return () if found is None else (found,)

    @property
    def reward_spec(self) -> str:
        """The reward as `load_reward` takes it."""
        return f"{self.reward.source.partition(':')[0]}:{self.reward_path}" if self.reward_path else self.reward.source

    @property
    def reward_name(self) -> str:
        kind, _, argument = self.reward.source.partition(":")
        return self.reward.name or (f"{kind}:{Path(argument).name}" if argument else kind)

    def check(self) -> None:
        """Everything that can be known before the first step: files, names, what fits together."""
        self._check_paths()
        self._check_base()
        known, unseen = self.rollouts, self.verify.unseen
        for name, section in (("rollouts", known), ("verify", unseen)):
            if not exists(section.prompts):
                raise DataError(f"[{name}] prompts: nothing at {section.prompts}")
            check(section.prompts)
            if section.chat_template is not None:
                _check_template(name, section.chat_template)
            if section.texts is None:
                continue
            if section.pairs:
                raise ConfigError(f"[{name}] takes pairs and texts: expected one of them, leave the other off")
            if not exists(section.texts):
                raise DataError(f"[{name}] texts: nothing at {section.texts}")
        if (
            unseen.pairs and known.pairs and unseen.prompts == known.prompts
        ) or unseen.texts == known.texts is not None:
            raise ConfigError(
                "[verify] takes what [rollouts] takes, which is not unseen: name others, or leave that off"
            )
        if self.steered and self.rollouts.pairs:
            raise ConfigError("[steered] samples texts, but [rollouts] takes pairs: name prompts, or drop [steered]")
        self._check_reward()
        made = {self.base.hf} if self.base.maker else set()
        if (artefact := self.files.base) is not None:
            made |= set(artefact.finished)
        place = self.backbone if self.backbone.suffix == ".gguf" else self.backbone / "config.json"
        if self.backbone not in made and not place.is_file():
            raise DataError(f"[value] backbone: nothing at {place}")
        read_template(self.value.template)
        if self.value.accelerate is not None and not self.value.accelerate.is_file():
            raise DataError(f"[value] accelerate: no file at {self.value.accelerate}")
        for name, later in (("distill", self.distill), ("calibrate", self.calibrate)):
            if later is not None and later.prompts is not None:
                if not exists(later.prompts):
                    raise DataError(f"[{name}] prompts: nothing at {later.prompts}")
                check(later.prompts)
        if self.distill is not None and self.distill.prompts is None and self.rollouts.pairs:
            raise ConfigError("[distill] samples texts, but [rollouts] takes pairs: name prompts in [distill]")
        self._check_export()

    def _check_paths(self) -> None:
        """ConfigError for a set of the Hub where a file is read or written."""
        for name in ("base", "rollouts", "value", "export", "distill", "calibrate", "verify"):
            section = self.verify.unseen if name == "verify" else getattr(self, name)
            for key, given in vars(section).items() if section is not None else ():
                if key != "prompts" and isinstance(given, Path) and is_hub(given):
                    raise ConfigError(
                        f"[{name}] {key} is {given}, but of the Hub only prompts are read: write that set to a file "
                        "with `sia-convert rows`, and name the file"
                    )

    def _check_base(self) -> None:
        b = self.base
        if b.gguf is not None:
            if not b.gguf.is_file():
                raise DataError(f"[base] gguf: nothing at {b.gguf}")
            return
        if b.hf is None or (b.hf / "config.json").is_file():
            pass
        elif b.maker is not None:
            b.maker.check()
        else:
            raise DataError(f"[base] hf: no Hugging Face folder at {b.hf}: expected one with config.json")
        for kind in b.quantize:
            _check_type("base", "quantize", kind)
        if b.out is not None:
            _check_one_file("base", b.out, b.quantize)

    def _check_reward(self) -> None:
        if self.reward_path is not None and not self.reward_path.exists():
            raise DataError(f"[reward] source: nothing at {self.reward_path}")
        if self.reward.source == "data":
            if not self.rollouts.pairs:
                raise ConfigError("[reward] source 'data' is for rewards that stand in pairs; sampled texts have none")
            if self.calibrate is not None and self.calibrate.weigh:
                raise ConfigError(
                    "[calibrate] weighs the reward of new texts, which source 'data' in [reward] cannot score: set "
                    "weigh = false in [calibrate]"
                )
            return
        check_reward_name(self.reward_spec)

    def _check_export(self) -> None:
        e, v = self.export, self.value
        check_trained(self.layout, v.tuning, v.layers, bool(v.head_hidden))
        if self.layout in ("adapter", "head") and (e.quantize or self.verify.also):
            raise ConfigError(f"[export] quantize, [verify] also: the layout {self.layout} holds nothing to quantize")
        if e.rows == "base" and v.tuning == "full":
            raise ConfigError("[export] rows 'base' cannot follow tune 'full': choose f16, q8_0 or f32")
        if e.quantize_rows is not None and (self.layout != "lean" or e.rows == "base"):
            raise ConfigError("[export] quantize_rows is for a lean file that carries its rows")
        for kind in e.quantize:
            _check_type("export", "quantize", kind)
        for kind in self.verify.also:
            _check_type("verify", "also", kind)
        _check_one_file("export", e.out, e.quantize)


def _check_template(section: str, given: str) -> None:
    from sia_local.llama.templates import find_template

    try:
        find_template(given)
    except ConfigError as error:
        raise ConfigError(f"[{section}] {error}") from None


def _check_type(section: str, name: str, kind: str) -> None:
    from sia_local.llama.quantize import quantization_types

    if kind.upper() not in quantization_types():
        raise ConfigError(f"[{section}] {name} {kind!r}: expected types of llama.cpp such as Q8_0, Q6_K, Q4_K_M, Q4_0")


def _check_one_file(section: str, out: Path, types: tuple[str, ...]) -> None:
    if out.suffix == ".gguf" and len(types) > 1:
        raise ConfigError(f"[{section}] {out.name} is one file, but {len(types)} types were asked for: leave off .gguf")
