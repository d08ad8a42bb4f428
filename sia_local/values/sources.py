"""Where V comes from: value models, guides, or several of them with weights.

Everything here follows `records.Values`, has a `name`, and gives `trajectory()`, the value after every token of a
finished text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..config import Setup
from ..errors import ConfigError
from ..llama.engine import Engine
from ..llama.gguf import GgufMetadata
from ..llama.keys import KIND, QHEAD_KIND, TRAIN_LOSS
from ..llama.library import FloatArray
from ..llama.model import Model
from ..llama.part import AnyEngine
from ..records import Float64, IntArray, Prompt, Values
from .guides import Guides, PathLike, check_weight, open_guides
from .hidden import open_qhead
from .model import ValueFile, open_value
from .qhead_file import QHeadFile
from .shortlist import Shortlisted

AnyFile = ValueFile | QHeadFile


@dataclass(frozen=True)
class ValuePath:
    """A value GGUF. With a weight its values count in units of their stored spread. name: the file's stem."""

    path: PathLike
    weight: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight, str(self.path))


Spec = ValuePath | Guides
Specs = PathLike | Spec | tuple[PathLike, float] | Sequence[PathLike | Spec | tuple[PathLike, float]]


def parse_specs(value: Specs | None) -> list[Spec]:
    """Sources that `value` names: paths, "path:0.7" or "name=path:0.7" strings, (path, weight) pairs, specs."""
    if value is None:
        return []
    if isinstance(value, (str, os.PathLike, ValuePath, Guides)) or _is_weighted(value):
        value = [value]  # type: ignore[list-item]
    specs: list[Spec] = []
    for item in value:
        if isinstance(item, (ValuePath, Guides)):
            specs.append(item)
        elif _is_weighted(item):
            specs.append(ValuePath(item[0], float(item[1])))  # type: ignore[index]
        else:
            specs.append(_parse_path(os.fspath(item)))  # type: ignore[arg-type]
    return specs


def _is_weighted(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], (int, float))


def _parse_path(text: str) -> ValuePath:
    if Path(text).is_file():
        return ValuePath(text)
    name, equals, rest = text.partition("=")
    if not equals or "/" in name:
        name, rest = "", text
    path, colon, tail = rest.rpartition(":")
    try:
        weight = float(tail) if colon else None
    except ValueError:
        weight = None
    return ValuePath(rest if weight is None else path, weight, name or None)


class Source(Values, Protocol):
    """`records.Values` with what lies around the loop.

    absolute: values compare between prefixes, too, not only among the candidates of one. rates_texts: trajectory() can
    tell what a text is worth.
    """

    @property
    def name(self) -> str: ...
    @property
    def engines(self) -> Sequence[AnyEngine]: ...
    @property
    def shares_base(self) -> bool: ...
    @property
    def absolute(self) -> bool: ...
    @property
    def rates_texts(self) -> bool: ...

    def levels(self, hidden: FloatArray) -> Float64 | None:
        """V of prefixes by the base's hidden states behind them, float32 [n, n_embd] -> float64 [n]; None from a source
        that reads more than those."""
        ...

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64: ...
    def close(self) -> None: ...


class MixedValues:
    """Sum of weight × V / spread over several sources, so that one unit of weight means the same for each.

    A source without a known spread counts with its raw values. Weights may change between any two tokens; a
    source of weight 0 costs nothing.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], names: Sequence[str] | None = None):
        wanted = list(names) if names is not None else [source.name for source in sources]
        if len(set(wanted)) != len(wanted):
            raise ConfigError(
                f"two values have the same name ({', '.join(wanted)}); give them names, as in kind=FILE.gguf:0.7"
            )
        self.sources = dict(zip(wanted, sources, strict=True))
        self.weights = dict(zip(wanted, map(float, weights), strict=True))
        self.spread: float | None = 1.0
        self.shares_base = False
        self.max_candidates = min(source.max_candidates for source in sources)

    @property
    def name(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())

    @property
    def engines(self) -> list[AnyEngine]:
        return [engine for source in self.sources.values() for engine in source.engines]

    @property
    def absolute(self) -> bool:
        return all(source.absolute for source, _ in self.parts())

    @property
    def rates_texts(self) -> bool:
        return all(source.rates_texts for source, _ in self.parts())

    def set_weight(self, name: str, weight: float) -> None:
        """Raises ConfigError for an unknown name or a weight out of bounds."""
        if name not in self.sources:
            raise ConfigError(f"no value is named {name!r}; expected one of {', '.join(self.sources)}")
        check_weight(weight, name)
        self.weights[name] = float(weight)

    def close(self) -> None:
        for source in self.sources.values():
            source.close()

    def begin(self, slot: int, prompt: Prompt) -> None:
        for source in self.sources.values():
            source.begin(slot, prompt)

    def room(self, slot: int) -> int:
        return min(source.room(slot) for source in self.sources.values())

    def accept(self, slot: int, token: int) -> None:
        for source in self.sources.values():
            source.accept(slot, token)

    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int] = ()) -> list[Float64]:
        total = [np.zeros(len(ids)) for _, ids in requests]
        for source, scale in self.parts():
            # Only one source's decode can take the base's other sequences along.
            for out, values in zip(total, source.score(requests, also), strict=True):
                out += scale * values
            also = () if source.shares_base else also
        return total

    def levels(self, hidden: FloatArray) -> Float64 | None:
        parts = [(source.levels(hidden), scale) for source, scale in self.parts()]
        known = [scale * levels for levels, scale in parts if levels is not None]
        return np.sum(known, axis=0) if known and len(known) == len(parts) else None

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        total = np.zeros(len(tokens))
        for source, scale in self.parts():
            total += scale * source.trajectory(slot, prompt, tokens)
        return total

    def parts(self) -> list[tuple[Source, float]]:
        """Sources that count, each with what its V is multiplied by."""
        return [
            (source, self.weights[name] / (source.spread or 1.0))
            for name, source in self.sources.items()
            if self.weights[name] != 0
        ]


def read_value_file(path: PathLike) -> AnyFile:
    """What a value GGUF of any kind says. Raises ModelFileError and IncompatibleError with a sentence."""
    with GgufMetadata(path) as meta:
        return QHeadFile.of(meta) if meta.get(KIND) == QHEAD_KIND else ValueFile.of(meta)


def read_files(specs: Sequence[Spec]) -> list[AnyFile | None]:
    """The value files of specs (None for guides), read before any weight is loaded. Raises as read_value_file."""
    return [read_value_file(spec.path) if isinstance(spec, ValuePath) else None for spec in specs]


def open_sources(
    specs: Sequence[Spec],
    files: Sequence[AnyFile | None],
    base: Model,
    base_engine: Engine | None,
    setup: Setup,
) -> Source | None:
    """Loads sources beside their base: one as it is, several (or one with a weight) as MixedValues.

    Without `base_engine` (the base decodes elsewhere) a value-head is refused.
    """
    if not specs:
        return None
    vocabulary = base.vocabulary
    if setup.shortlist:
        _check_shortlist(specs, files, base_engine)
    with ExitStack() as undo:
        opened: list[Source] = []
        loading = replace(setup, max_candidates=setup.shortlist) if setup.shortlist else setup
        for spec, file in zip(specs, files, strict=True):
            source: Source
            if isinstance(spec, Guides):
                source = open_guides(spec, base, vocabulary, loading)
            elif isinstance(file, QHeadFile):
                source = open_qhead(file, base, base_engine, vocabulary, setup.same_vocabulary)
            else:
                assert file is not None
                source = open_value(file, base, base_engine, vocabulary, loading)
            undo.callback(source.close)
            opened.append(source)
        made: Source
        if setup.shortlist:
            assert base_engine is not None
            made = Shortlisted(opened[0], opened[1], setup.shortlist, base_engine)
        elif len(opened) == 1 and specs[0].weight is None:
            made = opened[0]
        else:
            weights = [1.0 if spec.weight is None else spec.weight for spec in specs]
            made = MixedValues(opened, weights, names_of(specs))
        undo.pop_all()
        return made


def _check_shortlist(specs: Sequence[Spec], files: Sequence[AnyFile | None], base_engine: Engine | None) -> None:
    weights = [spec.weight for spec in specs if spec.weight is not None]
    if len(specs) != 2 or not isinstance(files[0], QHeadFile) or weights or base_engine is None:
        raise ConfigError(
            f"a shortlist of {len(specs)} values; expected a Q-head, then what scores the candidates that it favours, "
            "without weights: -v q.gguf -v value.gguf --shortlist 3"
        )


def names_of(specs: Sequence[Spec]) -> list[str]:
    """Names given, or file stems; a second one of the same stem becomes stem-2."""
    names: list[str] = []
    for spec in specs:
        wanted = spec.name or (Path(spec.path).stem if isinstance(spec, ValuePath) else "guides")
        n = sum(name == wanted or name.startswith(f"{wanted}-") for name in names)
        names.append(wanted if n == 0 else f"{wanted}-{n + 1}")
    return names


def text_value(source: Source, slot: int, prompt: Prompt, tokens: Sequence[int]) -> float:
    """The value of a whole text (non-empty) as its source means it, reward units; the slot's content is replaced.

    The value after the last token; of a model trained with the trajectory-mean loss, which fixes only the mean
    over the tokens, that mean. Of guides it is the log ratio of the whole text, nats.
    """
    if isinstance(source, MixedValues):
        return sum(scale * text_value(part, slot, prompt, tokens) for part, scale in source.parts())
    values = source.trajectory(slot, prompt, tokens)
    file = getattr(source, "file", None)
    means = file is not None and file.about.get(TRAIN_LOSS) == "trajectory-mean"
    return float(values.mean() if means else values[-1])
