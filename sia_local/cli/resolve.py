"""What becomes of options: files, a SiaConfig with the profile behind it, a loaded SIA."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import DEFAULT_CANDIDATES, PRESETS, SamplingConfig, Setup, SiaConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..evaluation.profile import Profile
    from ..generation.sia import SIA

BASE_FILE, VALUE_FILE, SHIPPED_PROFILE = "demo-base.gguf", "demo-value.gguf", "demo-value.profile.toml"
DEFAULT_CONTEXT = 4096
# A gate's own parameter, given without --gate, means that gate.
_IMPLIED = {"rate": "rate", "first-n": "first_n", "ratio": "ratio", "varentropy": "varentropy_threshold"}


def config_from(options: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> SiaConfig:
    """The configuration that options ask for. Later wins: defaults, `start` (fields) or else --profile or that of
    the demo models, preset, options. Raises ConfigError."""
    fields: dict[str, Any] = dict(start if start is not None else profile_fields(options))
    preset = options.get("preset")
    if options.get("paper"):
        if preset not in (None, "paper"):
            raise ConfigError(f"--paper and --preset {preset} were given; give one of them")
        preset = "paper"
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
        fields |= PRESETS[preset]
    sampling = dict(fields.pop("sampling", {}))
    plain = ("threshold", "entropy", "rate", "first_n", "ratio", "k", "beta", "beta_unit", "center", "clip", "tail")
    names = dict.fromkeys((*plain, "min_share", "row_group", "kl_per_token", "kl_total"))
    given = {name: options[name] for name in names if options.get(name) is not None}
    if options.get("varentropy") is not None:
        given["varentropy_threshold"] = options["varentropy"]
    fields |= given
    if options.get("gate"):
        fields["gate"] = "+".join(options["gate"])
    elif implied := [gate for gate, field in _IMPLIED.items() if field in given]:
        fields["gate"] = "+".join(implied)
    for name in SamplingConfig.__dataclass_fields__:
        if options.get(name) is not None:
            sampling[name] = options[name]
    if options.get("grammar_file"):
        sampling["grammar"] = read_text(options["grammar_file"], "a GBNF grammar")
    return SiaConfig(**fields, sampling=SamplingConfig(**sampling))


def profile_from(options: Mapping[str, Any], default: str | None = None) -> Profile | None:
    """The profile that --profile names; a notice when it was made for other models. Raises ConfigError, DataError."""
    if not (name := options.get("profile") or default):
        return None
    from ..evaluation.profile import Profile, find_profile
    from ..values.sources import ValuePath, parse_specs

    base, values = model_paths(options)
    files = [Path(spec.path) for spec in parse_specs(values) if isinstance(spec, ValuePath)]
    path = find_profile(name, [*(file.parent for file in files), base.parent, models_folder()])
    profile = Profile.read(path)
    if profile.model is not None and profile.model != base.name:
        click.echo(f"{path} was made for {profile.model}, not for {base.name}: calibrate again", err=True)
    elif profile.value is not None and files and profile.value not in [file.name for file in files]:
        click.echo(f"{path} was made for {profile.value}, not for {files[0].name}: calibrate again", err=True)
    return profile


def shipped_profile(options: Mapping[str, Any]) -> str | None:
    """The demo models come with settings; whoever names models, values or a published method means other ones."""
    if any(options.get(name) for name in ("model", "value", "guide_plus", "nudge", "preset", "paper")):
        return None
    path = models_folder() / SHIPPED_PROFILE
    return str(path) if path.is_file() else None


def profile_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's fields of SiaConfig, the threshold fitting the rate that was asked for."""
    profile = profile_from(options, shipped_profile(options))
    if profile is None:
        return {}
    if options.get("beta_unit") is not None and options.get("beta") is None:
        raise ConfigError("--beta-unit was given without --beta; the profile's beta has its own unit, give both")
    fields = profile.config_fields()
    if options.get("beta") is not None:
        fields.pop("beta_unit", None)
    if (rate := options.get("rate")) is not None and (threshold := profile.threshold_for(rate)) is not None:
        fields["threshold"] = threshold
    return fields


def seed_from(options: Mapping[str, Any]) -> int:
    """The seed given, or one drawn (small enough to be retyped)."""
    given = options.get("seed")
    return secrets.randbelow(1 << 31) if given is None else int(given)


def stops_from(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(s.replace("\\n", "\n").replace("\\t", "\t") for s in options.get("stop") or ())


def models_folder() -> Path:
    """$SIA_MODELS, or models/ of the checkout, or models/ of the current folder."""
    if named := os.environ.get("SIA_MODELS"):
        return Path(named)
    checkout = Path(__file__).resolve().parents[2] / "models"
    return checkout if (checkout / BASE_FILE).is_file() else Path("models")


def model_paths(options: Mapping[str, Any]) -> tuple[Path, list[Any]]:
    """Base file and value sources, as SIA.load takes them. The shipped value model goes with the shipped base only.

    Raises ConfigError.
    """
    values = [value for value in options.get("value") or () if value != "none"]
    values += _guides(options)
    if options.get("model") is not None:
        return Path(options["model"]), values
    base = models_folder() / BASE_FILE
    if not base.is_file():
        raise ConfigError(
            f"no model was given and {base} does not exist; give a base with -m base.gguf and a value model with "
            "-v value.gguf, or name the folder of the demo models in SIA_MODELS"
        )
    shipped = base.with_name(VALUE_FILE)
    if not values and not options.get("value") and shipped.is_file():
        values = [shipped]
    return base, values


def _guides(options: Mapping[str, Any]) -> list[Any]:
    fields = {name.removeprefix("guide_"): options[name] for name in options if name.startswith("guide_")}
    if not any(fields.values()):
        return []
    if not fields["plus"]:
        raise ConfigError("a guide option was given without --guide-plus; expected --guide-plus model.gguf")
    from ..values.sources import Guides

    return [Guides(**fields)]


def load_from(options: Mapping[str, Any], config: SiaConfig | None = None, slots: int = 1) -> SIA:
    """Loads the models that options name. `config` sizes the value model's candidates."""
    from ..generation.sia import SIA

    base, values = model_paths(options)
    return SIA.load(base, values or None, setup_from(options, base, config, slots))


def setup_from(options: Mapping[str, Any], base: Path, config: SiaConfig | None = None, slots: int = 1) -> Setup:
    """The set-up that options ask for."""
    both = options.get("kv_type") or "f16"
    k = config.k if config is not None else DEFAULT_CANDIDATES
    asked = options.get("k") is not None or k != DEFAULT_CANDIDATES
    return Setup(
        n_ctx=options.get("ctx") or trained_context(base),
        slots=slots,
        n_threads=options.get("threads") or 0,
        n_gpu_layers=options.get("n_gpu_layers") or 0,
        max_candidates=k if asked else None,
        type_k=options.get("kv_type_k") or both,
        type_v=options.get("kv_type_v") or both,
        flash_attention=options.get("flash_attention") or "auto",
        overlap_prompts=bool(options.get("overlap_prompts")),
    )


def trained_context(base: Path) -> int:
    """Tokens a base was trained on, at most DEFAULT_CONTEXT."""
    from ..llama.gguf import GgufMetadata

    with GgufMetadata(base) as meta:
        trained = meta.get(f"{meta.get('general.architecture')}.context_length")
    return min(int(trained or DEFAULT_CONTEXT), DEFAULT_CONTEXT)


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """A UTF-8 file's content. Raises ConfigError with a sentence that names `what` was expected."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected {what}, check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; expected {what}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected {what}") from None
