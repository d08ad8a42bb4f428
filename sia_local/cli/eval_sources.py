"""The sources of values that an evaluation's arms read: which options load them, and what their files say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, SiaError
from ..evaluation.arms import Arm
from .resolve import GUIDES, model_paths

if TYPE_CHECKING:
    from ..evaluation.samples import SampleFile

NO_GUIDES = dict.fromkeys(GUIDES)


def only(options: dict[str, Any], source: str) -> dict[str, Any]:
    """Options that load only this source of values."""
    return {**options, "value": ("none",)} if source == "guide" else {**options, **NO_GUIDES}


def check_spreads(options: dict[str, Any], arms: list[Arm]) -> None:
    """Refuses betas in spreads where none is known, before any text is made."""
    if options["beta_unit"] != "spread" or not any(arm.steers and arm.source == "value" for arm in arms):
        return
    from ..values.sources import parse_specs, read_files

    specs = parse_specs(model_paths(only(options, "value"))[1])
    if len(specs) == 1 and specs[0].weight is None:
        file = read_files(specs)[0]
        if file is not None and file.spread is None:
            raise ConfigError(
                f"{file.path}: stores no spread, so betas cannot be counted in it; give --beta-unit raw, and find "
                "betas with `sia-local calibrate`"
            )


def fix_files(options: dict[str, Any], arms: list[Arm], store: SampleFile) -> None:
    """Refuses value models and guides other than the stored texts were steered with."""
    from ..evaluation.outputs import fingerprint
    from ..values.sources import Guides, parse_specs

    for source in dict.fromkeys(arm.source for arm in arms if arm.uses_values):
        files: list[dict[str, Any]] = []
        for spec in parse_specs(model_paths(only(options, source))[1]):
            if isinstance(spec, Guides):
                files += [fingerprint(path) for path in (spec.plus, spec.minus) if path is not None]
                files.append({"plus_prompt": spec.plus_prompt, "minus_prompt": spec.minus_prompt})
            else:
                files.append({**fingerprint(spec.path), "weight": spec.weight})
        if store.fix(f"source {source}", files) != files:
            names = ", ".join(file["file"] for file in files if "file" in file)
            raise ConfigError(
                f"'{store.path}' has texts steered by other files than {names}; choose another --out folder, or "
                "--fresh to start over"
            )


def kinds_of(options: dict[str, Any], arms: list[Arm]) -> dict[str, list[str]]:
    """The models behind every source of values, as evaluation.cost counts what they decode."""
    from ..values.sources import Guides, parse_specs, read_files

    kinds: dict[str, list[str]] = {}
    for source in dict.fromkeys(arm.source for arm in arms if arm.uses_values):
        specs = parse_specs(model_paths(only(options, source))[1])
        try:
            files = read_files(specs)
        except SiaError:
            continue  # whose arms have failed with this very sentence
        for spec, file in zip(specs, files, strict=True):
            if isinstance(spec, Guides):
                models = ["guide"] * (1 if spec.minus is None else 2)
            else:
                models = [file.kind] if file is not None else []
            kinds.setdefault(source, []).extend(models)
    return kinds
