"""Where V comes from: value models, a pair of language models, or several of them with weights.

Everything here follows `decode.Values`, has a `name`, and gives `trajectory()`, the value after every token of a
finished text. Guides need no training: V = log p+(y|s) − log p−(y|s) (proxy tuning, arXiv 2401.08565; emulated
fine-tuning, arXiv 2310.12962), or log p+ alone (an autoregressive reward model, GenARM, arXiv 2410.08193).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .decode import Prompt, Values
from .engine import Engine
from .entropy import log_partition
from .errors import ConfigError, ContextFullError, IncompatibleError
from .runtime import Context, ContextOptions, FloatArray, GgufMetadata, Model
from .value import ValueFile, open_value, sequences_for, tokenize_chat

Float64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
PathLike = str | os.PathLike[str]

# A guide's chat template may need more tokens for the same prompt than the base's.
_TEMPLATE_ROOM = 256
_PADDING = re.compile(rb"\[PAD\d*\]|<pad\d*>|<unused\d+>", re.IGNORECASE)


@dataclass(frozen=True)
class ValuePath:
    """A value GGUF. With a weight its values count in units of their stored spread. name: the file's stem."""

    path: PathLike
    weight: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        _check_weight(self.weight, str(self.path))


@dataclass(frozen=True)
class Guides:
    """Language models as a source of values: V = log p+ − log p−, or log p+ without `minus`. Nats.

    Their vocabulary must be the base's. plus_prompt / minus_prompt: what this guide reads in place of the last
    user message, with {prompt} standing for it; so one model under two instructions is a pair, too. spread: what
    counts as one unit of V when several sources are weighted.
    """

    plus: PathLike
    minus: PathLike | None = None
    weight: float | None = None
    name: str = "guides"
    plus_prompt: str | None = None
    minus_prompt: str | None = None
    spread: float = 1.0

    def __post_init__(self) -> None:
        _check_weight(self.weight, self.name)
        if not self.spread > 0:
            raise ConfigError(f"the spread of {self.name} is {self.spread}; expected above 0 nats")
        for text in (self.plus_prompt, self.minus_prompt):
            if text is not None and "{prompt}" not in text:
                raise ConfigError(
                    f"the guide's prompt {text!r} has no {{prompt}}; write {{prompt}} where the user's message belongs"
                )


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
    if Path(text).exists():
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


def _check_weight(weight: float | None, name: str) -> None:
    if weight is not None and not math.isfinite(weight):
        raise ConfigError(f"the weight of {name} is {weight}; expected a finite number, such as {name}:0.7")


class Source(Values, Protocol):
    """`decode.Values` with what lies around the loop."""

    @property
    def name(self) -> str: ...

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64: ...
    def close(self) -> None: ...


class Guide:
    """A language model that reads along: log-probabilities of the next token, lazily, one decode a junction."""

    def __init__(
        self, model: Model, engine: Engine, rewording: str | None = None, owned: Sequence[Any] = ()
    ):
        self.model = model
        self.engine = engine
        self._rewording = rewording
        self._owned = owned

    def close(self) -> None:
        for thing in self._owned:
            thing.close()

    def tokens(self, prompt: Prompt) -> Sequence[int]:
        """The prompt as this model reads it: its own chat template, its own wording."""
        template = self.model.chat_template
        if not prompt.messages or template is None:
            if self._rewording is None:
                return prompt.tokens
            text = self._rewording.replace("{prompt}", prompt.text)
            return self.model.tokenize(text, add_special=True, parse_special=True)
        messages = [dict(m) for m in prompt.messages]
        if self._rewording is not None:
            last = next((m for m in reversed(messages) if m["role"] == "user"), messages[-1])
            last["content"] = self._rewording.replace("{prompt}", last["content"])
        return tokenize_chat(self.model, template, messages)

    def begin(self, slot: int, prompt: Prompt) -> None:
        tokens = self.tokens(prompt)
        if len(tokens) >= self.engine.context.n_ctx:
            raise ContextFullError(
                f"the prompt is {len(tokens)} tokens for the guide {self.model.path.name}, its context holds "
                f"{self.engine.context.n_ctx}; shorten it or raise --ctx"
            )
        self.engine.begin(slot, tokens)

    def accept(self, slot: int, token: int) -> None:
        self.engine.accept(slot, token)

    def logprobs(self, requests: Sequence[tuple[int, IntArray]]) -> list[Float64]:
        """log p of each candidate, float64 [k] a request: only the queues are decoded, one output row each."""
        rows = self.engine.logits([slot for slot, _ in requests])
        return [_logprobs(row, ids) for row, (_, ids) in zip(rows, requests, strict=True)]

    def text_logprobs(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        """log p of every token of a finished text, float64 [n]."""
        prefix = list(self.tokens(prompt))
        fed = [prefix[-1], *tokens[:-1]]
        out, at = np.empty(len(tokens)), 0
        for rows in self.engine.trail(slot, prefix[:-1], fed):
            for row in rows:
                out[at] = _logprobs(row, np.array([tokens[at]]))[0]
                at += 1
        return out


def _logprobs(row: FloatArray, ids: npt.NDArray[Any]) -> Float64:
    known = ids < len(row)
    out = np.full(len(ids), -np.inf)
    out[known] = row[ids[known]].astype(np.float64) - log_partition(row)
    # A token only the base's padded vocabulary has counts as unlikely as the least likely candidate.
    out[~known] = out[known].min() if known.any() else 0.0
    return out


class GuidePair:
    """V = log p+ − log p− of two guides, or log p+ of one."""

    max_candidates = 255

    def __init__(self, plus: Guide, minus: Guide | None = None, name: str = "guides", spread: float = 1.0):
        self.plus = plus
        self.minus = minus
        self.name = name
        self.spread: float | None = spread

    @property
    def _guides(self) -> tuple[Guide, ...]:
        return (self.plus,) if self.minus is None else (self.plus, self.minus)

    def close(self) -> None:
        for guide in self._guides:
            guide.close()

    def begin(self, slot: int, prompt: Prompt) -> None:
        for guide in self._guides:
            guide.begin(slot, prompt)

    def accept(self, slot: int, token: int) -> None:
        for guide in self._guides:
            guide.accept(slot, token)

    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int] = ()) -> list[Float64]:
        values = self.plus.logprobs(requests)
        if self.minus is not None:
            values = [p - m for p, m in zip(values, self.minus.logprobs(requests), strict=True)]
        return values

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        """log p+(y≤t) − log p−(y≤t) after every token: the implicit reward of the text so far, nats."""
        values = self.plus.text_logprobs(slot, prompt, tokens)
        if self.minus is not None:
            values = values - self.minus.text_logprobs(slot, prompt, tokens)
        return np.cumsum(values)


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
        self.max_candidates = min(source.max_candidates for source in sources)

    @property
    def name(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())

    def set_weight(self, name: str, weight: float) -> None:
        """Raises ConfigError for an unknown name or a weight that is not finite."""
        if name not in self.sources:
            raise ConfigError(f"no value is named {name!r}; expected one of {', '.join(self.sources)}")
        _check_weight(weight, name)
        self.weights[name] = float(weight)

    def close(self) -> None:
        for source in self.sources.values():
            source.close()

    def begin(self, slot: int, prompt: Prompt) -> None:
        for source in self.sources.values():
            source.begin(slot, prompt)

    def accept(self, slot: int, token: int) -> None:
        for source in self.sources.values():
            source.accept(slot, token)

    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int] = ()) -> list[Float64]:
        total = [np.zeros(len(ids)) for _, ids in requests]
        for source, scale in self.parts():
            # Only one source's decode can take the base's other sequences along.
            for out, values in zip(total, source.score(requests, also), strict=True):
                out += scale * values
            also = () if getattr(source, "shares_base", False) else also
        return total

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


def read_files(specs: Sequence[Spec]) -> list[ValueFile | None]:
    """The value files of specs (None for guides), read before any weight is loaded. Raises as ValueFile.read."""
    return [ValueFile.read(spec.path) if isinstance(spec, ValuePath) else None for spec in specs]


def open_sources(
    specs: Sequence[Spec],
    files: Sequence[ValueFile | None],
    base: Model,
    base_engine: Engine | None,
    *,
    slots: int,
    options: ContextOptions,
    max_candidates: int,
    n_gpu_layers: int = 0,
) -> Source | None:
    """Loads sources beside their base: one as it is, several (or one with a weight) as MixedValues.

    options.n_ctx is per slot. Without `base_engine` (the base decodes elsewhere) a value-head is refused.
    """
    if not specs:
        return None
    with ExitStack() as undo, GgufMetadata(base.path) as meta:
        vocabulary = meta.get("tokenizer.ggml.tokens") or []
        sha256 = meta.vocab_sha256()
        opened: list[Source] = []
        for spec, file in zip(specs, files, strict=True):
            source: Source
            if isinstance(spec, Guides):
                source = _open_guides(spec, base, vocabulary, slots, options, n_gpu_layers)
            else:
                assert file is not None
                source = open_value(
                    file,
                    base,
                    base_engine,
                    sha256,
                    slots=slots,
                    options=options,
                    max_candidates=max_candidates,
                    n_gpu_layers=n_gpu_layers,
                )
            undo.callback(source.close)
            opened.append(source)
        if len(opened) == 1 and specs[0].weight is None:
            made: Source = opened[0]
        else:
            weights = [1.0 if spec.weight is None else spec.weight for spec in specs]
            made = MixedValues(opened, weights, _names(specs))
        undo.pop_all()
        return made


def _names(specs: Sequence[Spec]) -> list[str]:
    """Names given, or file stems; a second one of the same stem becomes stem-2."""
    names: list[str] = []
    for spec in specs:
        wanted = spec.name or (Path(spec.path).stem if isinstance(spec, ValuePath) else "guides")
        n = sum(name == wanted or name.startswith(f"{wanted}-") for name in names)
        names.append(wanted if n == 0 else f"{wanted}-{n + 1}")
    return names


def _open_guides(
    spec: Guides,
    base: Model,
    vocabulary: Sequence[bytes],
    slots: int,
    options: ContextOptions,
    n_gpu_layers: int,
) -> GuidePair:
    with ExitStack() as undo:
        guides = []
        shared: dict[Path, Model] = {Path(base.path).resolve(): base}
        for path, rewording in ((spec.plus, spec.plus_prompt), (spec.minus, spec.minus_prompt)):
            if path is None:
                continue
            check_same_vocabulary(vocabulary, base.path, path)
            # A guide that is the base, or the other guide under another instruction, shares its weights.
            model = shared.get(Path(path).resolve())
            owned: list[Any] = []
            if model is None:
                model = shared[Path(path).resolve()] = Model(path, n_gpu_layers=n_gpu_layers)
                owned.append(model)
                undo.callback(model.close)
            context = Context(
                model, sequences_for(replace(options, n_ctx=options.n_ctx + _TEMPLATE_ROOM), slots, 0)
            )
            undo.callback(context.close)
            guides.append(Guide(model, Engine(context, slots), rewording, [context, *owned]))
        undo.pop_all()
    # The pair closes plus first; weights that both use must outlive the second context.
    if len(guides) == 2 and guides[1].model is guides[0].model:
        guides[0]._owned, guides[1]._owned = guides[0]._owned[:1], [*guides[1]._owned, *guides[0]._owned[1:]]
    return GuidePair(guides[0], guides[1] if len(guides) == 2 else None, spec.name, spec.spread)


def check_same_vocabulary(base: Sequence[bytes], base_path: PathLike, guide_path: PathLike) -> None:
    """Raises IncompatibleError unless every id both models use means the same token (padding aside)."""
    with GgufMetadata(guide_path) as meta:
        tokens = meta.get("tokenizer.ggml.tokens") or []
    different = sum(
        a != b and not _PADDING.fullmatch(a) and not _PADDING.fullmatch(b)
        for a, b in zip(base, tokens, strict=False)
    )
    longer = base if len(base) > len(tokens) else tokens
    different += sum(not _PADDING.fullmatch(t) for t in longer[min(len(base), len(tokens)) :])
    if not tokens or different:
        raise IncompatibleError(
            f"{Path(guide_path).name} ({len(tokens)} tokens) and {Path(base_path).name} ({len(base)} tokens) have "
            f"different vocabularies ({different} tokens differ), so a guide's probabilities do not mean the base's "
            "tokens; use a guide of the same family, or --nudge, which works on text"
        )
