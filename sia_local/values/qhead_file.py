"""The file of a Q-head: what a value-qhead GGUF holds, read and written whole."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, IncompatibleError, NumericError
from ..llama import gguf_write as gguf
from ..llama import keys
from .qhead import FORMS, Bilinear, Float32, Joint, QHead, Sum, Term

if TYPE_CHECKING:
    from ..llama.gguf import GgufMetadata

DTYPES = ("f32", "f16", "kept")


@dataclass(frozen=True)
class Distillation:
    """How a Q-head was made; the last three on held-out prompts, the last two at beta 2 spreads."""

    teacher: str
    junctions: int
    k: int
    r2: float
    agreement: float
    gain_share: float


@dataclass(frozen=True)
class QHeadMeta:
    """What a Q-head's file says beside its weights. vocab_sha256 and base_name: of the base it belongs to. average: of
    which files it is the average, with their weights, as in "0.5 a + 0.5 b"."""

    name: str = "qhead"
    base_name: str = ""
    vocab_sha256: str | None = None
    reward_name: str = ""
    reward_mean: float = 0.0
    reward_std: float = 1.0
    distillation: Distillation | None = None
    average: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """By metadata key, as `ValueFile.about`."""
        out: dict[str, Any] = {
            keys.BASE_NAME: self.base_name,
            keys.REWARD_NAME: self.reward_name,
            keys.REWARD_MEAN: self.reward_mean,
            keys.REWARD_STD: self.reward_std,
        }
        if (d := self.distillation) is not None:
            out |= {
                keys.QHEAD_TEACHER: d.teacher,
                keys.QHEAD_JUNCTIONS: d.junctions,
                keys.QHEAD_K: d.k,
                keys.QHEAD_R2: d.r2,
                keys.QHEAD_AGREEMENT: d.agreement,
                keys.QHEAD_GAIN_SHARE: d.gain_share,
            }
        if self.average:
            out[keys.QHEAD_AVERAGE] = self.average
        return out


@dataclass(frozen=True)
class QHeadFile:
    """A value-qhead GGUF, read whole: weights (float32, whatever the file holds) and what it says of itself."""

    path: Path
    qhead: QHead
    meta: QHeadMeta = field(default_factory=QHeadMeta)

    @property
    def kind(self) -> str:
        return keys.QHEAD_KIND

    @property
    def spread(self) -> float | None:
        return self.qhead.spread

    @property
    def about(self) -> dict[str, Any]:
        return self.meta.about

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> QHeadFile:
        """Raises ModelFileError (not a readable GGUF), IncompatibleError or NumericError with one sentence."""
        from ..llama.gguf import GgufMetadata

        with GgufMetadata(path) as meta:
            return cls.of(meta)

    @classmethod
    def of(cls, meta: GgufMetadata) -> QHeadFile:
        """Raises IncompatibleError or NumericError with one sentence."""
        path = meta.path
        found = {key: meta.get(key) for key in meta.keys() if key.startswith("sia.")}  # noqa: SIM118
        _check_contract(path, found)
        try:
            qhead = _qhead_of(found)
        except (IncompatibleError, NumericError) as error:
            raise type(error)(f"{path}: {error}") from error
        return cls(path, qhead, _meta_of(meta.get("general.name", path.stem), found))

    def check_fits(self, n_embd: int, base_name: str) -> None:
        """IncompatibleError unless it reads hidden states and embedding rows of this width."""
        if self.qhead.n_embd != n_embd:
            raise IncompatibleError(
                f"{self.path.name} reads hidden states of width {self.qhead.n_embd}, {base_name} has {n_embd}; use a "
                "Q-head distilled on this base"
            )


def _check_contract(path: str | os.PathLike[str], found: dict[str, Any]) -> None:
    version, kind = found.get(keys.VERSION), found.get(keys.KIND)
    if version is None or kind is None:
        raise IncompatibleError(
            f"{path}: holds no Q-head (metadata {keys.KIND}); expected a file written by `sia-local learn`"
        )
    if version not in keys.KINDS_BY_VERSION:
        raise IncompatibleError(
            f"{path}: contract version {version}, this program reads versions "
            f"{', '.join(map(str, keys.KINDS_BY_VERSION))}; update sia_local or make it again"
        )
    if kind != keys.QHEAD_KIND or kind not in keys.KINDS_BY_VERSION[version]:
        raise IncompatibleError(
            f"{path}: kind {kind!r} of contract version {version}; expected {keys.QHEAD_KIND!r} of version "
            f"{keys.QHEAD_VERSION} to {keys.SUM_VERSION}"
        )


def _qhead_of(found: dict[str, Any]) -> QHead:
    n_embd, spread = found.get(keys.QHEAD_N_EMBD, 0), found.get(keys.VALUE_SPREAD)
    level = _array(found, keys.QHEAD_LEVEL_WEIGHT, n_embd) if keys.QHEAD_LEVEL_WEIGHT in found else None
    whole: dict[str, Any] = {
        "spread": float(spread) if spread else None,
        "level_weight": level,
        "level_bias": float(found.get(keys.QHEAD_LEVEL_BIAS, 0.0)),
    }
    if found.get(keys.QHEAD_FORM) != Sum.form:
        return replace(_term_of(found), **whole)
    terms = []
    for number in range(found.get(keys.QHEAD_TERMS, 0)):
        own = {key: found[there] for key in _OF_TERM if (there := keys.of_term(key, number)) in found}
        try:
            terms.append(_term_of({**own, keys.QHEAD_N_EMBD: n_embd}))
        except (IncompatibleError, NumericError) as error:
            raise type(error)(f"term {number} of the sum: {error}") from error
    return Sum(parts=tuple(terms), **whole)


_OF_TERM = (
    keys.QHEAD_FORM, keys.QHEAD_RANK, keys.QHEAD_WEIGHT, keys.QHEAD_BIAS, keys.QHEAD_HIDDEN_WEIGHT,
    keys.QHEAD_HIDDEN_BIAS, keys.QHEAD_ACTIVATION, keys.QHEAD_TOKEN_WEIGHT, keys.QHEAD_TOKEN_BIAS, keys.QHEAD_SCALE,
)  # fmt: skip


def _term_of(found: dict[str, Any]) -> Term:
    n_embd, form = found.get(keys.QHEAD_N_EMBD, 0), found.get(keys.QHEAD_FORM, Bilinear.form)
    if form not in FORMS:
        raise IncompatibleError(
            f"a Q-head of the form {form!r}; expected one of {', '.join(FORMS)}; update sia_local or make it again"
        )
    hidden_bias = found.get(keys.QHEAD_HIDDEN_BIAS)
    n_hidden = 0 if hidden_bias is None else len(hidden_bias)
    joint = form == Joint.form
    rank = n_hidden if joint else found.get(keys.QHEAD_RANK, 0)
    if rank < 1 or n_embd < 1:
        what = "hidden layer" if joint else "rank"
        raise IncompatibleError(f"{what} {rank} and width {n_embd} of the Q-head; expected 1 or more, make it again")

    def array(key: str, *shape: int) -> Float32:
        return _array(found, key, *shape)

    layered = keys.QHEAD_HIDDEN_WEIGHT in found or hidden_bias is not None
    shared: dict[str, Any] = {
        "token_weight": array(keys.QHEAD_TOKEN_WEIGHT, rank, n_embd),
        "token_bias": array(keys.QHEAD_TOKEN_BIAS, n_embd),
        "hidden_weight": array(keys.QHEAD_HIDDEN_WEIGHT, n_hidden, n_embd) if layered else None,
        "hidden_bias": array(keys.QHEAD_HIDDEN_BIAS, n_hidden) if layered else None,
        "activation": found.get(keys.QHEAD_ACTIVATION, "silu"),
        "scale": float(found.get(keys.QHEAD_SCALE, 1.0)),
    }
    if joint:
        return Joint(weight=array(keys.QHEAD_WEIGHT, rank), **shared)
    weight = array(keys.QHEAD_WEIGHT, rank, n_hidden if layered else n_embd)
    return Bilinear(weight=weight, bias=array(keys.QHEAD_BIAS, rank), **shared)


def _array(found: dict[str, Any], key: str, *shape: int) -> Float32:
    """float32, whatever the file holds."""
    data = found.get(key)
    if data is None or len(data) != math.prod(shape):
        raise IncompatibleError(
            f"{key} has {0 if data is None else len(data)} entries, expected {' * '.join(map(str, shape))} = "
            f"{math.prod(shape)}; download or make it again"
        )
    if data.dtype not in (np.dtype(np.uint16), np.dtype(np.float32)):
        raise IncompatibleError(
            f"{key} is an array of {data.dtype}; expected float32, or uint16 for the bits of halves, make it again"
        )
    halves = data.dtype == np.uint16
    return (data.view(np.float16).astype(np.float32) if halves else data).reshape(shape)


def _meta_of(name: str, found: dict[str, Any]) -> QHeadMeta:
    distillation = None
    if keys.QHEAD_TEACHER in found:
        distillation = Distillation(
            teacher=found[keys.QHEAD_TEACHER],
            junctions=int(found.get(keys.QHEAD_JUNCTIONS, 0)),
            k=int(found.get(keys.QHEAD_K, 0)),
            r2=float(found.get(keys.QHEAD_R2, math.nan)),
            agreement=float(found.get(keys.QHEAD_AGREEMENT, math.nan)),
            gain_share=float(found.get(keys.QHEAD_GAIN_SHARE, math.nan)),
        )
    return QHeadMeta(
        name=name,
        base_name=found.get(keys.BASE_NAME, ""),
        vocab_sha256=found.get(keys.VOCAB_SHA256),
        reward_name=found.get(keys.REWARD_NAME, ""),
        reward_mean=float(found.get(keys.REWARD_MEAN, 0.0)),
        reward_std=float(found.get(keys.REWARD_STD, 1.0)),
        distillation=distillation,
        average=found.get(keys.QHEAD_AVERAGE, ""),
    )


def write_qhead(path: str | os.PathLike[str], qhead: QHead, meta: QHeadMeta, dtype: str = "f16") -> None:
    """Writes a value-qhead GGUF, whole or not at all. dtype: of the weights; `f16` halves the file, and so does `kept`
    for those arrays that lose no bit by it.

    The level, the spread and the scale stay float32. Raises ConfigError for an unknown dtype and NumericError for
    weights beyond the range of halves.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} of a Q-head; expected one of {', '.join(DTYPES)}")
    summed = isinstance(qhead, Sum)
    version = keys.SUM_VERSION if summed else keys.JOINT_VERSION if isinstance(qhead, Joint) else keys.QHEAD_VERSION
    fields = {
        "general.type": gguf.text("adapter"),
        "general.name": gguf.text(meta.name),
        keys.VERSION: gguf.u32(version),
        keys.KIND: gguf.text(keys.QHEAD_KIND),
        keys.QHEAD_N_EMBD: gguf.u32(qhead.n_embd),
    }
    if summed:
        fields |= {keys.QHEAD_FORM: gguf.text(Sum.form), keys.QHEAD_TERMS: gguf.u32(len(qhead.terms))}
    for number, term in enumerate(qhead.terms):
        own = _term_fields(term, dtype)
        fields |= {keys.of_term(key, number) if summed else key: value for key, value in own.items()}
    if qhead.spread is not None:
        fields[keys.VALUE_SPREAD] = gguf.f32(qhead.spread)
    if qhead.level_weight is not None:
        fields[keys.QHEAD_LEVEL_WEIGHT] = gguf.f32_array(qhead.level_weight)
        fields[keys.QHEAD_LEVEL_BIAS] = gguf.f32(qhead.level_bias)
    if meta.vocab_sha256 is not None:
        fields[keys.VOCAB_SHA256] = gguf.text(meta.vocab_sha256)
    for key, value in meta.about.items():
        if isinstance(value, str):
            fields[key] = gguf.text(value)
        elif isinstance(value, float):
            fields[key] = gguf.f32(value)
        else:
            fields[key] = gguf.u64(value) if key == keys.QHEAD_JUNCTIONS else gguf.u32(value)
    gguf.write_metadata(path, "sia-qhead", fields)


def _term_fields(term: Term, dtype: str) -> dict[str, gguf.KV]:
    """What a file says of one term, by the keys of a Q-head that is no sum."""
    fields = {keys.QHEAD_SCALE: gguf.f32(term.scale)}
    if isinstance(term, Joint):
        fields[keys.QHEAD_FORM] = gguf.text(Joint.form)
    else:  # a reader of version 2 knows no form and wants a rank
        fields[keys.QHEAD_RANK] = gguf.u32(len(term.token_weight))
    weights: dict[str, Float32 | None] = {
        keys.QHEAD_WEIGHT: term.weight,
        keys.QHEAD_BIAS: getattr(term, "bias", None),
        keys.QHEAD_HIDDEN_WEIGHT: term.hidden_weight,
        keys.QHEAD_HIDDEN_BIAS: term.hidden_bias,
        keys.QHEAD_TOKEN_WEIGHT: term.token_weight,
        keys.QHEAD_TOKEN_BIAS: term.token_bias,
    }
    for key, array in weights.items():
        if array is None:
            continue
        with np.errstate(over="ignore"):
            exact = np.array_equal(array.astype(np.float16).astype(np.float32), array)
        if dtype == "f16" and np.abs(array).max() > np.finfo(np.float16).max:
            raise NumericError(
                f"{key} reaches {np.abs(array).max():g}, more than a half can hold (65504); write it as f32"
            )
        halves = dtype == "f16" or (dtype == "kept" and exact)
        fields[key] = gguf.f16_array(array) if halves else gguf.f32_array(array)
    if term.hidden_weight is not None:
        fields[keys.QHEAD_ACTIVATION] = gguf.text(term.activation)
    return fields
