"""Profiles: the settings that suit one base and value model, in a small TOML file beside the value model.

`sia-local calibrate` writes them, `--profile` reads them. A person may write one by hand: every key is optional.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..config import SamplingConfig, SiaConfig
from ..errors import ConfigError, DataError
from ..files import atomic_write, parse_toml

SUFFIX = ".profile.toml"
VERSION = 1
MEASURED = (
    "prompts", "max_tokens", "seed", "tokens", "rate", "junctions", "spread", "beta_in_spreads", "kl_per_token",
    "kl_per_text", "reward", "reward_off",
)  # fmt: skip
# Of sampling: what belongs to a text, and stands in no profile.
OF_A_TEXT = ("grammar", "logit_bias")
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


@dataclass(frozen=True)
class Profile:
    """steering, sampling: fields of SiaConfig and SamplingConfig. model, value: names of the files it was made for.

    thresholds: share of the unsteered base's tokens -> the entropy (nats) they exceed. measured: what calibration
    saw (`MEASURED`), for people. chose: a sentence for people.
    """

    steering: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    value: str | None = None
    chose: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[float, float] = field(default_factory=dict)

    def config_fields(self) -> dict[str, Any]:
        """Arguments of SiaConfig; `sampling` as a mapping."""
        return {**self.steering, "sampling": dict(self.sampling)}

    def threshold_for(self, rate: float) -> float | None:
        """Nats that this share of tokens exceeds, interpolated, held at the ends; None without a table."""
        points = sorted(self.thresholds.items())
        if not points:
            return None
        if rate <= points[0][0]:
            return points[0][1]
        for (low, a), (high, b) in pairwise(points):
            if rate <= high:
                return a + (b - a) * (rate - low) / (high - low)
        return points[-1][1]

    def write(self, path: str | os.PathLike[str]) -> None:
        """The same profile gives the same bytes."""
        lines = ["# Settings for --profile, written by `sia-local calibrate`."]
        head = {"version": VERSION, "model": self.model, "value": self.value, "chose": self.chose}
        lines += _lines(head)
        lines += ["", "[steering]", *_lines(self.steering)]
        if self.sampling:
            lines += ["", "[sampling]", *_lines(self.sampling)]
        if self.thresholds:
            lines += ["", "# Entropy in nats that this share of the unsteered tokens exceeds: where --rate starts."]
            lines += ["[thresholds]", *(f'"{rate:g}" = {nats!r}' for rate, nats in sorted(self.thresholds.items()))]
        if self.measured:
            lines += ["", "[measured]", *_lines(self.measured)]
        with atomic_write(path) as handle:
            handle.write("\n".join(lines) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Profile:
        """Raises DataError with one sentence for a file that is missing, no TOML, or holds what no profile holds."""
        data = _parse(Path(path))
        known = ("version", "model", "value", "chose", "steering", "sampling", "thresholds", "measured")
        _check_names(data, known, "", path)
        if data.get("version", VERSION) != VERSION:
            raise DataError(f"{path}: is a profile of version {data['version']}; expected {VERSION}, calibrate again")
        for name in ("steering", "sampling", "thresholds", "measured"):
            if not isinstance(data.get(name, {}), dict):
                raise DataError(f"{path}: {name} is {data[name]!r}; expected a table [{name}]")
        for name in ("model", "value", "chose"):
            if not isinstance(data.get(name, ""), str):
                raise DataError(f"{path}: {name} is {data[name]!r}; expected text in quotes")
        steering = _checked(data.get("steering", {}), SiaConfig, ("sampling",), "steering", path)
        sampling = _checked(data.get("sampling", {}), SamplingConfig, OF_A_TEXT, "sampling", path)
        measured = data.get("measured", {})
        _check_names(measured, MEASURED, "measured", path)
        try:
            SiaConfig(**steering, sampling=SamplingConfig(**sampling))
            thresholds = {float(rate): float(nats) for rate, nats in data.get("thresholds", {}).items()}
        except ConfigError as error:
            raise DataError(f"{path}: {error}") from error
        except (TypeError, ValueError):
            table = data["thresholds"]
            raise DataError(f'{path}: [thresholds] is {table}; expected lines such as "0.2" = 1.3') from None
        return cls(steering, sampling, data.get("model"), data.get("value"), data.get("chose"), measured, thresholds)


def find_profile(name: str, folders: list[Path]) -> Path:
    """The file that `--profile` names: a path, or the name of a profile in one of the folders. Raises ConfigError."""
    if Path(name).is_file():
        return Path(name)
    tried = [folder / f"{name.removesuffix(SUFFIX)}{SUFFIX}" for folder in dict.fromkeys(folders)]
    for path in tried:
        if path.is_file():
            return path
    there = sorted({p.name.removesuffix(SUFFIX) for folder in folders for p in folder.glob(f"*{SUFFIX}")})
    raise ConfigError(
        f"no profile {name!r}: neither a file nor one of {', '.join(map(str, tried))}; "
        + (f"there is {', '.join(there)}" if there else "write one with `sia-local calibrate`")
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such profile; write one with `sia-local calibrate`") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a profile, check the path") from None
    except ValueError as error:
        raise DataError(f"{path}: is not TOML ({error}); expected a profile that `sia-local calibrate` wrote") from None


def _check_names(data: Mapping[str, Any], known: tuple[str, ...], table: str, path: Any) -> None:
    for name in data:
        if name not in known:
            where = f" in [{table}]" if table else ""
            raise DataError(f"{path}: unknown key {name!r}{where}; expected some of {', '.join(known)}")


def _checked(data: Mapping[str, Any], kind: type, without: tuple[str, ...], table: str, path: Any) -> dict[str, Any]:
    """A table as arguments of the dataclass `kind`: no unknown names, no wrong types."""
    types = {f.name: str(f.type) for f in fields(kind) if f.name not in without}
    _check_names(data, tuple(types), table, path)
    out: dict[str, Any] = {}
    for name, value in data.items():
        wanted = types[name].removesuffix(" | None")
        if wanted.startswith("tuple"):
            good = isinstance(value, list) and len(value) == 2 and all(_is(v, "float") for v in value)
            out[name] = tuple(value) if good else value
        else:
            good = _is(value, wanted)
            out[name] = float(value) if good and wanted == "float" else value
        if not good:
            what = {"int": "a whole number", "float": "a number", "str": "text in quotes", "bool": "true or false"}
            raise DataError(f"{path}: {name} in [{table}] is {value!r}; expected {what.get(wanted, 'two numbers')}")
    return out


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _lines(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and lists are also TOML's.
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in table.items() if value is not None]
