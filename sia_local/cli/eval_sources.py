"""The sources of values that an evaluation's arms read: which options load them, and what their files say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, SiaError
from ..evaluation.arms import ONE_OF, Arm
from .resolve import GUIDES, model_paths

if TYPE_CHECKING:
    from ..evaluation.samples import SampleFile

NO_GUIDES = dict.fromkeys(GUIDES)


def only(options: dict[str, Any], source: str) -> dict[str, Any]:
    """Options that load only this source of values, or `none`."""
    if source == "none":
        return {**options, **NO_GUIDES, "value": ("none",), "shortlist": None}
    if source == "guide":
        return {**options, "value": ("none",)}
    if source.startswith(ONE_OF):
        return {**options, **NO_GUIDES, "value": (named_values(options)[source.removeprefix(ONE_OF)],)}
    # Arms that no value steers read none.
    first = {"value": options["value"][:1]} if options.get("apart") else {}
    return {**options, **NO_GUIDES, **first}


def named_values(options: dict[str, Any]) -> dict[str, str]:
    """The value files of -v, each by the name that tells it from the others. Raises ConfigError for one given twice."""
    from ..values.sources import names_of, parse_specs

    given = [str(value) for value in options["value"]]
    names = names_of(parse_specs(model_paths({**options, **NO_GUIDES})[1]))
    if len(given) < 2:
        raise ConfigError("--apart compares value files and needs two or more; give each with -v")
    return dict(zip(names, given, strict=True))


def check_spreads(options: dict[str, Any], arms: list[Arm]) -> None:
    """Refuses betas in spreads where none is known, before any text is made."""
    from ..values.sources import parse_specs, read_files

    wanted = {arm.source for arm in arms if arm.steers and arm.source != "guide"}
    for source in wanted if options["beta_unit"] == "spread" else ():
        specs = parse_specs(model_paths(only(options, source))[1])
        file = read_files(specs)[0] if len(specs) == 1 and specs[0].weight is None else None
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
        if options["shortlist"]:
            files.append({"shortlist": options["shortlist"]})
        others = {arm.key for arm in arms if not arm.uses_values or arm.source != source}
        if store.fix(f"source {source}", files, anew=store.earlier <= others) != files:
            names = ", ".join(file["file"] for file in files if "file" in file)
            raise ConfigError(
                f"'{store.path}' has texts steered by other files than {names}; choose another --out folder, or "
                "--fresh to start over"
            )


def kinds_of(options: dict[str, Any], arms: list[Arm]) -> dict[str, list[str]]:
    """The models behind every source of values, as evaluation.cost counts what they decode."""
    from ..values.sources import Guides, parse_specs, read_files

    kinds: dict[str, list[str]] = {}
    short = f":{options['shortlist']}" if options["shortlist"] else ""
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
                models = [file.kind + short] if file is not None else []
            kinds.setdefault(source, []).extend(models)
    return kinds
