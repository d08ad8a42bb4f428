"""Several Q-heads of one base as one file: the weighted mean of what they say, each in its spreads. Exact."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Setup
from ..errors import ConfigError, DataError, IncompatibleError
from ..generation.sia import SIA
from ..llama.embeddings import EmbeddingRows
from ..values.qhead import Bilinear, Float32, Joint, QHead, Sum, Term
from ..values.qhead_file import QHeadFile, QHeadMeta, write_qhead
from ..values.sources import ValuePath, read_value_file
from .collect import CollectConfig, Collected, Collector, Progress, Tally, Wanted
from .fit import Rows, predict
from .junctions import Junctions, concatenate
from .report import spread


def average_files(
    base: str | os.PathLike[str],
    values: Sequence[ValuePath],
    out: Path,
    prompts: Sequence[str],
    config: CollectConfig,
    setup: Setup,
    on_text: Callable[[Progress], None] = lambda _: None,
) -> QHeadFile:
    """Writes the average of the Q-heads `values` of `base` to `out`, no bit of their weights lost.

    The spread is measured where the base hesitates in `config.texts` texts, every other one steered, as `learn`
    collects them. Raises IncompatibleError and ConfigError as `joined` and SIA.load do, DataError where there was no
    junction, and ContextFullError when no prompt fits.
    """
    files = [_qhead_file(spec) for spec in values]
    weights = [1.0 if spec.weight is None else spec.weight for spec in values]
    qhead, meta = joined(files, weights, out.stem)
    weighed = [replace(spec, weight=weight) for spec, weight in zip(values, weights, strict=True)]
    with SIA.load(base, weighed, setup, hidden_states=True, max_candidates=config.k) as sia:
        junctions = _junctions(sia, prompts, config, on_text)
    rows = EmbeddingRows.output_of(base)
    measured = spread_of(qhead, [file.qhead for file in files], weights, junctions, rows)
    write_qhead(out, replace(qhead, spread=measured), meta, "kept")
    return QHeadFile.read(out)


def _qhead_file(spec: ValuePath) -> QHeadFile:
    file = read_value_file(spec.path)
    if not isinstance(file, QHeadFile):
        raise IncompatibleError(
            f"{spec.path} is of the kind {file.kind}; expected Q-heads, which alone become one file (-v A -v B weighs "
            "values of any kind)"
        )
    return file


def _junctions(
    sia: SIA, prompts: Sequence[str], config: CollectConfig, on_text: Callable[[Progress], None]
) -> Junctions:
    numbers = [text % len(prompts) for text in range(config.texts)]
    wanted = [Wanted(text, number, prompts[number]) for text, number in enumerate(numbers)]
    found, tally = [], Tally(config.texts)
    for _, text in Collector(sia, config, owns=False, taken=False).run(wanted, tally.part):
        if isinstance(text, Collected) and text.junctions is not None:
            found.append(text.junctions)
        on_text(tally.add(text))
    if len(tally.too_long) == config.texts:
        raise tally.too_long[0]
    if not found:
        raise DataError(
            f"none of the {config.texts} texts has a token of {config.threshold:g} nats; ask for more texts, or lower "
            "the threshold"
        )
    return concatenate(found)


def spread_of(
    whole: QHead, parts: Sequence[QHead], weights: Sequence[float], junctions: Junctions, rows: Rows
) -> float:
    """The spread of an average by those of its parts and by how far they agree at these junctions. Values differ
    several times more in one text than in another: compared to its parts', the average's spread is known from few."""

    def here(qhead: QHead) -> float:
        return spread(predict(qhead, junctions, rows).astype(np.float64), junctions.tried())

    stated = np.average([here(part) / (part.spread or 1.0) for part in parts], weights=weights)
    return float(np.float32(here(whole) / stated))


def joined(files: Sequence[QHeadFile], weights: Sequence[float], name: str) -> tuple[QHead, QHeadMeta]:
    """The average of the Q-heads of one base, and what its file says. The spread is left open: see `average`.

    Raises IncompatibleError for Q-heads of several bases and ConfigError as `average` does.
    """
    first = files[0]
    for other in files[1:]:
        for mine, theirs in (
            (f"of width {first.qhead.n_embd}", f"of width {other.qhead.n_embd}"),
            (first.meta.base_name or "one without a name", other.meta.base_name or "one without a name"),
            *([] if first.meta.vocab_sha256 == other.meta.vocab_sha256 else [("of one vocabulary", "of another")]),
        ):
            if mine != theirs:
                raise IncompatibleError(
                    f"{first.path.name} and {other.path.name} read different bases, {mine} and {theirs}; learn one of "
                    "them again on the other's base"
                )
    for file in files:
        if not file.spread:
            raise ConfigError(f"{file.path}: stores no spread, so its values have no unit; learn it again")
    qhead = average([file.qhead for file in files], weights)
    rewards = {file.meta.reward_name for file in files}
    meta = replace(
        first.meta,
        name=name,
        reward_name=first.meta.reward_name if len(rewards) == 1 else "",
        distillation=None,
        average=" + ".join(f"{w / sum(weights):.3g} {file.path.stem}" for file, w in zip(files, weights, strict=True)),
    )
    # What a text is worth by one reward says nothing about another.
    return (qhead if len(rewards) == 1 else replace(qhead, level_weight=None, level_bias=0.0)), meta


def average(qheads: Sequence[QHead], weights: Sequence[float]) -> QHead:
    """Q = s * sum(w_i Q_i / s_i) / sum(w_i), s_i each one's spread and s the mean of the spreads by the same weights,
    so that Q stays in reward units; the level is the mean of the levels, where all have one.

    Joint terms become one, with the hidden units of all, and so do bilinear ones without a hidden layer, with the ranks
    of all; the rest is a Sum, since bilinear terms with hidden layers side by side would be mostly zeros. The spread of
    the average depends on how often its parts agree: None here, to be measured. Raises ConfigError for weights that are
    not above 0, or fewer than two Q-heads.
    """
    if len(qheads) < 2:
        raise ConfigError(f"an average of {len(qheads)} Q-head; expected two or more")
    for weight in weights:
        if not 0 < weight < np.inf:
            raise ConfigError(
                f"the weight {weight:g} in an average; expected above 0 (-v A.gguf:1 -v B.gguf:{weight:g} steers by a "
                "difference)"
            )
    shares = np.asarray(weights, float) / sum(weights)
    spreads = np.array([qhead.spread or 1.0 for qhead in qheads])
    unit = float(shares @ spreads)
    groups: dict[Any, list[Term]] = {}
    for qhead, factor in zip(qheads, shares * unit / spreads, strict=True):
        for term in qhead.terms:
            alike: Any = (term.form, term.activation)
            if isinstance(term, Bilinear):
                alike = term.form if not term.n_hidden else object()
            bare = replace(term, scale=term.scale * float(factor), spread=None, level_weight=None, level_bias=0.0)
            groups.setdefault(alike, []).append(bare)
    terms = [_stacked(group) for group in groups.values()]
    levels = [qhead.level_weight for qhead in qheads if qhead.level_weight is not None]
    level: dict[str, Any] = {}
    if len(levels) == len(qheads):
        level["level_weight"] = np.tensordot(shares, levels, 1).astype(np.float32)
        level["level_bias"] = float(np.float32(shares @ [qhead.level_bias for qhead in qheads]))
    return replace(terms[0], **level) if len(terms) == 1 else Sum(parts=tuple(terms), **level)


def _stacked(terms: Sequence[Term]) -> Term:
    """The sum of terms of one kind as one term: hidden units or ranks side by side, scales in the last layer."""
    first, *others = terms
    if not others:
        return first
    unit = max(abs(term.scale) for term in terms) or 1.0

    def side_by_side(name: str, scaled: bool = False) -> Float32 | None:
        arrays = [(term.scale / unit if scaled else 1.0, getattr(term, name)) for term in terms]
        if any(array is None for _, array in arrays):
            return None
        return np.concatenate([np.float32(share) * array for share, array in arrays])

    token_bias = np.sum([term.scale / unit * term.token_bias for term in terms], axis=0)
    last = ("weight",) if isinstance(first, Joint) else ("weight", "bias")
    joined: dict[str, Any] = {name: side_by_side(name) for name in ("token_weight", "hidden_weight", "hidden_bias")}
    joined |= {name: side_by_side(name, scaled=True) for name in last}
    return replace(first, **joined, token_bias=token_bias.astype(np.float32), scale=unit)
