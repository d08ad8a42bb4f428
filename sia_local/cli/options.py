"""Options that several commands share, and what becomes of them: a SiaConfig and a loaded SIA."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..config import BETA_UNITS, ENTROPIES, GATES, PRESETS, SamplingConfig, SiaConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..api import SIA
    from ..profile import Profile

F = TypeVar("F", bound=Callable[..., Any])
BASE_FILE, VALUE_FILE, SHIPPED_PROFILE = "demo-base.gguf", "demo-value.gguf", "demo-value.profile.toml"
DEFAULT_CONTEXT = 4096
_DEFAULTS, _SAMPLING = SiaConfig(), SamplingConfig()


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def numbers(kind: type) -> Any:
    """Callback for comma lists such as 1,4,8."""

    def parse(_ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(kind(part) for part in (text or "").split(",") if part.strip()))
        except ValueError:
            raise ConfigError(f"{param.opts[0]} is {text!r}; expected numbers separated by commas") from None

    return parse


def model_options(function: F) -> F:
    """-m, -v, --ctx, --threads, --n-gpu-layers and KV cache options, for load_from()."""
    return together(
        click.option("-m", "--model", type=click.Path(), help="Base model, GGUF.  [default: models/demo-base.gguf]"),
        click.option(
            "-v",
            "--value",
            multiple=True,
            metavar="FILE[:WEIGHT]",
            help="Value model, GGUF, or `none`; several are weighed.  [default: models/demo-value.gguf without -m]",
        ),
        click.option(
            "--guide-plus",
            type=click.Path(),
            help="Steer towards this language model of the base's vocabulary, such as a small instruct model.",
        ),
        click.option(
            "--guide-minus",
            type=click.Path(),
            help="And away from this one, such as that model before its instruction tuning.",
        ),
        click.option("--guide-plus-prompt", help="What the first guide reads; {prompt} stands for the message."),
        click.option("--guide-minus-prompt", help="What the second guide reads; {prompt} stands for the message."),
        click.option(
            "--ctx",
            type=click.IntRange(min=1),
            help=f"Tokens of context.  [default: what the model was trained on, at most {DEFAULT_CONTEXT}]",
        ),
        click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: one a core]"),
        click.option("--n-gpu-layers", type=int, default=0, help="Layers on the GPU, -1 for all.  [default: 0]"),
        click.option("--kv-type", metavar="TYPE", help="KV cache format: f32, f16, q8_0, …  [default: f16]"),
        click.option("--kv-type-k", metavar="TYPE", help="KV cache format of the keys alone."),
        click.option("--kv-type-v", metavar="TYPE", help="KV cache format of the values alone."),
        click.option(
            "--flash-attention",
            default="auto",
            metavar="auto|on|off",
            help="Attention with less memory, on GPUs faster; a quantized --kv-type-v needs it.  [default: auto]",
        ),
    )(function)


def steering_options(function: F) -> F:
    """Gate, threshold, beta and budgets, for config_from(). Unset options stay None: presets show through."""
    d = _DEFAULTS
    return together(
        click.option(
            "--gate",
            multiple=True,
            metavar="NAME",
            help=f"When to steer: {', '.join(GATES)}. Several are OR-ed.  [default: {d.gate}]",
        ),
        click.option(
            "--threshold",
            type=float,
            help=f"Steer where the base's entropy, how unsure it is, has so many nats.  [default: {d.threshold}]",
        ),
        click.option("--rate", type=float, help="Wanted share of steered tokens; alone it means --gate rate."),
        click.option("--first-n", type=int, help="Tokens steered by --gate first-n; alone it means that gate."),
        click.option(
            "--ratio", type=float, help=f"Steer where entropy is so many times the last token's.  [default: {d.ratio}]"
        ),
        click.option(
            "--varentropy",
            type=float,
            help=f"Steer where the variance of -log p has so many nats².  [default: {d.varentropy_threshold}]",
        ),
        click.option(
            "--beta", type=float, help=f"Strength of steering; 0 is none, below 0 the opposite.  [default: {d.beta}]"
        ),
        click.option(
            "--beta-unit",
            metavar="|".join(BETA_UNITS),
            help=f"Multiply values as they are, or in units of their usual spread.  [default: {d.beta_unit}]",
        ),
        candidate_options,
        click.option(
            "--kl-per-token",
            type=float,
            help="Most that steering may change the text, as KL in nats a token: 0.05 is gentle.",
        ),
        click.option("--kl-total", type=float, help="The same for the whole text, such as 20."),
        click.option("--paper", is_flag=True, help="The paper's setting; same as --preset paper."),
        click.option(
            "--preset",
            metavar="|".join(PRESETS),
            help="Settings of a published method: paper steers at junctions only, args, rad, vas and cd at every token "
            "(ARGS, Reward-Augmented Decoding, Value Augmented Sampling, Controlled Decoding). Other options win.",
        ),
        profile_option,
    )(function)


def profile_option(function: F) -> F:
    return click.option(
        "--profile", metavar="FILE|NAME", help="Settings that `sia-local calibrate` found; other options win over it."
    )(function)


def candidate_options(function: F) -> F:
    """What is entropy, which candidates are scored, and what becomes of their values, whatever the gate and beta."""
    d = _DEFAULTS
    return together(
        click.option(
            "-k",
            "--candidates",
            "k",
            type=int,
            help=f"Likeliest tokens to choose among.  [default: {d.k}, of which a value-head scores 4]",
        ),
        click.option(
            "--entropy",
            metavar="|".join(ENTROPIES),
            help=f"Measure entropy over the candidates, or over all tokens.  [default: {d.entropy}]",
        ),
        click.option("--center", is_flag=True, default=None, help="Subtract the candidates' mean value."),
        click.option("--clip", type=(float, float), metavar="LOW HIGH", help="Bound the values to this range."),
        click.option("--tail", is_flag=True, default=None, help="Keep tokens beyond the candidates, unsteered."),
        click.option("--min-share", type=float, help="Score only candidates this likely, relative to the best."),
        click.option("--row-group", type=int, help="Round the number of scored candidates up to a multiple of this."),
    )(function)


def sampling_options(function: F) -> F:
    """Temperature, truncation, penalties, grammar, stop strings, length and seed."""
    return together(
        click.option("-n", "--max-tokens", type=int, default=256, show_default=True, help="Longest answer, tokens."),
        text_options,
        click.option("--seed", type=click.IntRange(min=0), help="The same seed gives the same text.  [default: drawn]"),
    )(function)


def text_options(function: F) -> F:
    """Sampling without length and seed, for which commands over many texts have other defaults."""
    s = _SAMPLING
    return together(
        click.option(
            "--temp",
            "temperature",
            type=float,
            help=f"0 takes the likeliest token, above 1 is wilder.  [default: {s.temperature}]",
        ),
        click.option(
            "--top-p", type=float, help=f"Keep the likeliest tokens that reach this share.  [default: {s.top_p}, off]"
        ),
        click.option(
            "--min-p", type=float, help=f"Drop those below this share of the likeliest.  [default: {s.min_p}, off]"
        ),
        click.option(
            "--repeat-penalty",
            type=float,
            help=f"Above 1: tokens that came are less likely.  [default: {s.repeat_penalty}, off]",
        ),
        click.option(
            "--frequency-penalty",
            type=float,
            help=f"Above 0: the same, with each time they came.  [default: {s.frequency_penalty}, off]",
        ),
        click.option(
            "--presence-penalty",
            type=float,
            help=f"Above 0: the same, however often they came.  [default: {s.presence_penalty}, off]",
        ),
        click.option("--penalty-last-n", type=int, help=f"Tokens penalties look at.  [default: {s.penalty_last_n}]"),
        click.option("--grammar-file", type=click.Path(), help="GBNF grammar the text must follow."),
        click.option("--stop", multiple=True, help="Text that ends the answer (\\n is a line break); repeatable."),
    )(function)


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
    from ..profile import Profile, find_profile

    base, values = model_paths(options)
    # FILE or FILE:WEIGHT; guides are no files.
    files = [Path(re.sub(r":-?[\d.]+$", "", str(value))) for value in values if isinstance(value, (str, Path))]
    path = find_profile(name, [*(file.parent for file in files), base.parent, models_folder()])
    profile = Profile.read(path)
    if profile.model is not None and profile.model != base.name:
        click.echo(f"{path} was made for {profile.model}, not for {base.name}: calibrate again", err=True)
    elif profile.value is not None and files and profile.value not in [file.name for file in files]:
        click.echo(f"{path} was made for {profile.value}, not for {files[0].name}: calibrate again", err=True)
    return profile


def _shipped_profile(options: Mapping[str, Any]) -> str | None:
    """The demo models come with settings; whoever names models, values or a published method means other ones."""
    if any(options.get(name) for name in ("model", "value", "guide_plus", "nudge", "preset", "paper")):
        return None
    path = models_folder() / SHIPPED_PROFILE
    return str(path) if path.is_file() else None


def profile_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's fields of SiaConfig, the threshold fitting the rate that was asked for."""
    profile = profile_from(options, _shipped_profile(options))
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


# A gate's own parameter, given without --gate, means that gate.
_IMPLIED = {"rate": "rate", "first-n": "first_n", "ratio": "ratio", "varentropy": "varentropy_threshold"}


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
    from ..sources import Guides

    return [Guides(**fields)]


def load_from(options: Mapping[str, Any], config: SiaConfig | None = None, slots: int = 1) -> SIA:
    """Loads the models that options name. `config` sizes the value model's candidates."""
    from ..api import DEFAULT_CANDIDATES, SIA

    base, values = model_paths(options)
    both = options.get("kv_type") or "f16"
    k = config.k if config is not None else DEFAULT_CANDIDATES
    asked = options.get("k") is not None or k != DEFAULT_CANDIDATES
    return SIA.load(
        base,
        values or None,
        n_ctx=options.get("ctx") or trained_context(base),
        slots=slots,
        n_threads=options.get("threads") or 0,
        n_gpu_layers=options.get("n_gpu_layers") or 0,
        max_candidates=k if asked else None,
        type_k=options.get("kv_type_k") or both,
        type_v=options.get("kv_type_v") or both,
        flash_attention=options.get("flash_attention") or "auto",
    )


def trained_context(base: Path) -> int:
    """Tokens a base was trained on, at most DEFAULT_CONTEXT."""
    from ..runtime import GgufMetadata

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
