"""What becomes of options: files, a SiaConfig with the profile behind it, a loaded SIA."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import hub
from ..config import DEFAULT_CANDIDATES, PRESETS, SamplingConfig, Setup, SiaConfig
from ..errors import ConfigError
from ..records import Request
from ..shipped import MODELS, KnownModel, KnownValue, known_model, models_folder
from .from_dataclass import fill, given

if TYPE_CHECKING:
    from ..evaluation.profile import Profile
    from ..generation.sia import SIA

DEFAULT_CONTEXT = 4096
GUIDES = ("guide_plus", "guide_minus", "guide_plus_prompt", "guide_minus_prompt")


def config_from(options: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> SiaConfig:
    """The configuration that options ask for. Later wins: defaults, `start` (fields) or else --profile or that of
    a model known by name, preset, options. Raises ConfigError."""
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
    asked = given(SiaConfig, dict(options))
    sampling |= asked.pop("sampling", {})
    if "gate" not in asked and (implied := [gate for gate, name in _OWN_SETTING.items() if name in asked]):
        asked["gate"] = "+".join(implied)
    gate = str(asked.get("gate") or fields.get("gate", "entropy"))
    if "threshold" in asked and "gate" not in asked and "entropy" not in gate.split("+"):
        asked["gate"] = "entropy"
    return SiaConfig(**{**fields, **asked}, sampling=SamplingConfig(**sampling))


# A gate's own setting, given without --gate, means that gate.
_OWN_SETTING = {f.metadata["gate"]: f.name for f in fields_of(SiaConfig) if "gate" in f.metadata}


def request_from(options: Mapping[str, Any], config: SiaConfig, usual: Request) -> Request:
    """What options ask for, yet without a prompt; what they do not say is as in `usual`. Raises ConfigError."""
    asked = given(Request, {name: value for name, value in options.items() if name != "prompt"})
    return replace(usual, **{**asked, "config": config})


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
    """The settings that come with one value file of a model known by name; whoever names other values or a published
    method means other settings."""
    model = known_from(options)
    if model is None or any(options.get(name) for name in ("guide_plus", "nudge", "preset", "paper")):
        return None
    named = options.get("value") or (None,)
    value = _known_value(named[0], model) if len(named) == 1 else None
    return str(value.profile) if value is not None and value.profile.is_file() else None


def _known_value(given: str | os.PathLike[str] | None, model: KnownModel) -> KnownValue | None:
    """A value file of the model's own by its name, or by its path."""
    if given is None or not (path := Path(given)).is_file():
        return model.value(None if given is None else os.fspath(given))
    return next((value for value in model.values if value.path.is_file() and value.path.samefile(path)), None)


def profile_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's fields of SiaConfig, the threshold fitting the rate that was asked for."""
    profile = profile_from(options, shipped_profile(options))
    if profile is None:
        return {}
    if options.get("beta_unit") is not None and options.get("beta") is None:
        raise ConfigError("--beta-unit was given without --beta; the profile's beta has its own unit, give both")
    fields = profile.config_fields()
    if (rate := options.get("rate")) is not None and (threshold := profile.threshold_for(rate)) is not None:
        fields["threshold"] = threshold
    return fields


def drawn_seed() -> int:
    """A seed small enough to be retyped."""
    return secrets.randbelow(1 << 31)


def known_from(options: Mapping[str, Any]) -> KnownModel | None:
    """The model that options mean by name, or by giving none. Raises ConfigError."""
    return known_model(options.get("model"))


def model_paths(options: Mapping[str, Any]) -> tuple[Path, list[Any]]:
    """Base file and value sources, as SIA.load takes them. A model known by name brings a value file of its own.

    Files on a hub are fetched. Raises ConfigError, ModelFileError.
    """
    model = known_from(options)
    base = model.base() if model is not None else _base_file(options["model"])
    values: list[Any] = [value_file(value, model) for value in options.get("value") or () if value != "none"]
    values += _guides(options)
    if model is not None and not values and not options.get("value") and (own := model.value()) is not None:
        values = [own.path]
    return base, values


def _base_file(given: str | os.PathLike[str]) -> Path:
    text = os.fspath(given)
    return hub.fetch(text) if text.startswith(hub.PREFIX) and not Path(text).is_file() else Path(text)


def file_named(given: str) -> Path:
    """The one file that `given` means: as -m does, or as -v does where it is a value file of a model known by name.
    Raises ConfigError, ModelFileError."""
    owner = next((m for m in MODELS.values() if given in [value.name for value in m.values]), None)
    if owner is None or Path(given).is_file():
        return model_paths({"model": given})[0]
    return _own_value(owner, given).path


def _own_value(model: KnownModel, name: str) -> KnownValue:
    if (own := model.value(name)) is None:
        raise ConfigError(
            f"the value file {name!r} of {model.name} is not in {models_folder()}; see `sia-local models`"
        )
    return own


def value_file(given: str | os.PathLike[str], model: KnownModel | None) -> str | os.PathLike[str]:
    """`[NAME=]FILE[:WEIGHT]` with the file found, where it is a name of the model's own or lies on a hub."""
    text = os.fspath(given)
    if Path(text).is_file():
        return given
    name, equals, rest = text.rpartition("=")
    what, colon, weight = rest.rpartition(":")
    if not colon or not _is_number(weight):
        what, colon, weight = rest, "", ""
    if what.startswith(hub.PREFIX):
        return f"{name}{equals}{hub.fetch(what)}{colon}{weight}"
    if model is not None and what in [value.name for value in model.values]:
        return f"{name or what}={_own_value(model, what).path}{colon}{weight}"
    return given


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _guides(options: Mapping[str, Any]) -> list[Any]:
    asked = {name.removeprefix("guide_"): options.get(name) for name in GUIDES}
    if not any(asked.values()):
        return []
    if not asked["plus"]:
        given = next(name for name, value in asked.items() if value)
        raise ConfigError(
            f"--guide-{given.replace('_', '-')} was given without --guide-plus; expected --guide-plus model.gguf"
        )
    from ..values.sources import Guides

    return [Guides(**asked)]  # type: ignore[arg-type]


def load_from(options: Mapping[str, Any], config: SiaConfig | None = None, usual: Setup | None = None) -> SIA:
    """Loads the models that options name. `config` sizes the value model's candidates."""
    from ..generation.sia import SIA
    from ..llama.templates import WORKER

    base, values = model_paths(options)
    if not options.get("raw"):
        # Gets ready beside the loading.
        WORKER.start()
    return SIA.load(base, values or None, setup_from(options, base, config, usual))


def setup_from(
    options: Mapping[str, Any], base: Path, config: SiaConfig | None = None, usual: Setup | None = None
) -> Setup:
    """The set-up that options ask for; what they do not say is as in `usual`, or as the base was trained."""
    setup = loading_from(options, usual or Setup())
    k = config.k if config is not None else DEFAULT_CANDIDATES
    if options.get("k") is not None or k != DEFAULT_CANDIDATES:
        setup = replace(setup, max_candidates=k)
    if usual is None and options.get("n_ctx") is None:
        setup = replace(setup, n_ctx=trained_context(base))
    return setup


def loading_from(options: Mapping[str, Any], usual: Setup) -> Setup:
    """What options say of loading, checked before a file is read. Raises ConfigError."""
    if both := options.get("kv_type"):
        usual = replace(usual, type_k=both, type_v=both)
    return fill(usual, dict(options))


def trained_context(base: Path) -> int:
    """Tokens a base was trained on, at most DEFAULT_CONTEXT."""
    from ..llama.gguf import GgufMetadata

    with GgufMetadata(base) as meta:
        trained = meta.get(f"{meta.get('general.architecture')}.context_length")
    return min(int(trained or DEFAULT_CONTEXT), DEFAULT_CONTEXT)
