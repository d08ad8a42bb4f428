"""The Q-head: values of all candidates from the base's own hidden state, without a decode. Numpy and files only.

Q(s, y) = scale * (<f(h), G e_y> + u e_y) = <w(h), e_y>: h the base's final normed hidden state, e_y the row of its
output embedding, f linear or with one hidden layer. It is fitted to differences among the candidates of a junction,
so Q is in reward units up to a constant of s; the level V(s) may ride along.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, IncompatibleError, NumericError
from ..llama import gguf_write as gguf
from ..llama import keys

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {
    "relu": lambda x: np.maximum(x, 0),
    # x / (1 + exp(-x)), in a form that does not overflow.
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
    # The tanh form, as torch's gelu(approximate="tanh").
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
}
DTYPES = ("f32", "f16")


@dataclass(frozen=True)
class QHead:
    """Q(s, y) = scale * (<f(h), G e> + u e), f(h) = W h + c or, with a hidden layer, W act(W1 h + c1) + c.

    All float32. weight W [rank, n_embd] or [rank, n_hidden]; bias c [rank]; token_weight G [rank, n_embd];
    token_bias u [n_embd]; hidden_weight W1 [n_hidden, n_embd]; hidden_bias c1 [n_hidden]. scale: reward units a unit
    of the rest. spread: standard deviation of Q among the candidates of a junction, reward units, None if not
    measured. level_weight [n_embd], level_bias: V(s) = w h + b in reward units, or None.
    Raises IncompatibleError for sizes that do not fit and NumericError for NaN or infinite weights.
    """

    weight: Float32
    bias: Float32
    token_weight: Float32
    token_bias: Float32
    hidden_weight: Float32 | None = None
    hidden_bias: Float32 | None = None
    activation: str = "silu"
    scale: float = 1.0
    spread: float | None = None
    level_weight: Float32 | None = None
    level_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise IncompatibleError(
                f"the Q-head's activation is {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}"
            )
        if (self.hidden_weight is None) != (self.hidden_bias is None):
            raise IncompatibleError("the Q-head's hidden layer has only one of weight and bias; expected both or none")
        rank, n_embd = self.token_weight.shape if self.token_weight.ndim == 2 else (0, 0)
        into = n_embd if self.hidden_bias is None else len(self.hidden_bias)
        wanted: dict[str, tuple[int, ...]] = {
            "weight": (rank, into),
            "bias": (rank,),
            "token_weight": (rank, n_embd),
            "token_bias": (n_embd,),
            "hidden_weight": (into, n_embd),
            "level_weight": (n_embd,),
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape or not array.size:
                raise IncompatibleError(
                    f"the Q-head's {name} is {list(array.shape)}, expected {list(shape)} beside a token_weight of "
                    f"{list(self.token_weight.shape)}"
                )
            if not np.isfinite(array).all():
                raise NumericError(f"the Q-head's {name} has NaN or infinite weights; train or export it again")
        for name, number in (("scale", self.scale), ("spread", self.spread), ("level_bias", self.level_bias)):
            if number is not None and not math.isfinite(number):
                raise NumericError(f"the Q-head's {name} is {number}; expected a finite number, train it again")

    @property
    def n_embd(self) -> int:
        return int(self.token_weight.shape[1])

    @property
    def rank(self) -> int:
        return int(self.token_weight.shape[0])

    @property
    def n_hidden(self) -> int:
        """Units of the hidden layer, 0 for a linear f."""
        return 0 if self.hidden_weight is None else len(self.hidden_weight)

    def __call__(self, hidden: Float32, rows: Float32) -> Float64:
        """hidden float32 [n_embd], rows float32 [k, n_embd] -> Q float64 [k]; or [n, n_embd], [n, k, n_embd] -> [n, k].

        One of a batch is bit for bit what it is alone.
        """
        if hidden.ndim > 1:
            return np.stack([self(one, of_one) for one, of_one in zip(hidden, rows, strict=True)])
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever asked
            return self._of_one(hidden, rows)

    def _of_one(self, hidden: Float32, rows: Float32) -> Float64:
        # einsum's own loops, not BLAS: its threads and llama.cpp's would wait for each other between two decodes.
        x = hidden
        if self.hidden_weight is not None:
            x = ACTIVATIONS[self.activation](np.einsum("ij,j->i", self.hidden_weight, x) + self.hidden_bias)
        f = np.einsum("ij,j->i", self.weight, x) + self.bias
        w = np.float32(self.scale) * (np.einsum("i,ij->j", f, self.token_weight) + self.token_bias)
        return np.einsum("kj,j->k", rows, w).astype(np.float64)

    def direction(self, hidden: Float32) -> Float32:
        """w(h) with Q(s, y) = <w(h), e_y>, reward units: float32 [..., n_embd] -> [..., n_embd]."""
        f = self.features(hidden)
        return np.float32(self.scale) * (np.matmul(f[..., None, :], self.token_weight)[..., 0, :] + self.token_bias)

    def features(self, hidden: Float32) -> Float32:
        """f(h): float32 [..., n_embd] -> [..., rank]."""
        x = hidden[..., None, :]
        if self.hidden_weight is not None:
            x = ACTIVATIONS[self.activation](np.matmul(x, self.hidden_weight.T) + self.hidden_bias)
        return np.matmul(x, self.weight.T)[..., 0, :] + self.bias

    def project(self, rows: Float32) -> Float32:
        """What of a token does not depend on s, to be kept: float32 [..., n_embd] -> [..., rank + 1], G e and u e."""
        return np.concatenate([rows @ self.token_weight.T, (rows @ self.token_bias)[..., None]], axis=-1)

    def of_projected(self, hidden: Float32, projected: Float32) -> Float64:
        """Q from what `project` gave: [n_embd], [k, rank + 1] -> float64 [k], or with a leading n in all three."""
        f = self.features(hidden)
        q = np.matmul(projected[..., :-1], f[..., None])[..., 0] + projected[..., -1]
        return self.scale * q.astype(np.float64)

    def level(self, hidden: Float32) -> Float64 | None:
        """V(s) in reward units, float32 [..., n_embd] -> float64 [...]; None if no level rides along."""
        if self.level_weight is None:
            return None
        return (hidden @ self.level_weight).astype(np.float64) + self.level_bias


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
    """What a Q-head's file says beside its weights. vocab_sha256 and base_name: of the base it belongs to."""

    name: str = "qhead"
    base_name: str = ""
    vocab_sha256: str | None = None
    reward_name: str = ""
    reward_mean: float = 0.0
    reward_std: float = 1.0
    distillation: Distillation | None = None

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
            found = {key: meta.get(key) for key in meta.keys() if key.startswith("sia.")}  # noqa: SIM118
            name = meta.get("general.name", Path(path).stem)
        _check_contract(path, found)
        try:
            qhead = _qhead_of(found)
        except (IncompatibleError, NumericError) as error:
            raise type(error)(f"{path}: {error}") from error
        return cls(Path(path), qhead, _meta_of(name, found))

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
            f"{keys.QHEAD_VERSION}"
        )


def _qhead_of(found: dict[str, Any]) -> QHead:
    rank, n_embd = found.get(keys.QHEAD_RANK, 0), found.get(keys.QHEAD_N_EMBD, 0)
    if rank < 1 or n_embd < 1:
        raise IncompatibleError(f"rank {rank} and width {n_embd} of the Q-head; expected 1 or more, make it again")

    def array(key: str, *shape: int) -> Float32:
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

    hidden_bias = found.get(keys.QHEAD_HIDDEN_BIAS)
    hidden = keys.QHEAD_HIDDEN_WEIGHT in found or hidden_bias is not None
    n_hidden = 0 if hidden_bias is None else len(hidden_bias)
    spread = found.get(keys.VALUE_SPREAD)
    return QHead(
        weight=array(keys.QHEAD_WEIGHT, rank, n_hidden if hidden else n_embd),
        bias=array(keys.QHEAD_BIAS, rank),
        token_weight=array(keys.QHEAD_TOKEN_WEIGHT, rank, n_embd),
        token_bias=array(keys.QHEAD_TOKEN_BIAS, n_embd),
        hidden_weight=array(keys.QHEAD_HIDDEN_WEIGHT, n_hidden, n_embd) if hidden else None,
        hidden_bias=array(keys.QHEAD_HIDDEN_BIAS, n_hidden) if hidden else None,
        activation=found.get(keys.QHEAD_ACTIVATION, "silu"),
        scale=float(found.get(keys.QHEAD_SCALE, 1.0)),
        spread=float(spread) if spread else None,
        level_weight=array(keys.QHEAD_LEVEL_WEIGHT, n_embd) if keys.QHEAD_LEVEL_WEIGHT in found else None,
        level_bias=float(found.get(keys.QHEAD_LEVEL_BIAS, 0.0)),
    )


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
    )


def write_qhead(path: str | os.PathLike[str], qhead: QHead, meta: QHeadMeta, dtype: str = "f16") -> None:
    """Writes a value-qhead GGUF, whole or not at all. dtype: of the weights; `f16` halves the file.

    The level, the spread and the scale stay float32. Raises ConfigError for an unknown dtype and NumericError for
    weights beyond the range of halves.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} of a Q-head; expected one of {', '.join(DTYPES)}")
    weights: dict[str, Float32 | None] = {
        keys.QHEAD_WEIGHT: qhead.weight,
        keys.QHEAD_BIAS: qhead.bias,
        keys.QHEAD_HIDDEN_WEIGHT: qhead.hidden_weight,
        keys.QHEAD_HIDDEN_BIAS: qhead.hidden_bias,
        keys.QHEAD_TOKEN_WEIGHT: qhead.token_weight,
        keys.QHEAD_TOKEN_BIAS: qhead.token_bias,
    }
    fields = {
        "general.type": gguf.text("adapter"),
        "general.name": gguf.text(meta.name),
        keys.VERSION: gguf.u32(keys.QHEAD_VERSION),
        keys.KIND: gguf.text(keys.QHEAD_KIND),
        keys.QHEAD_RANK: gguf.u32(qhead.rank),
        keys.QHEAD_N_EMBD: gguf.u32(qhead.n_embd),
        keys.QHEAD_SCALE: gguf.f32(qhead.scale),
    }
    for key, array in weights.items():
        if array is None:
            continue
        if dtype == "f16" and np.abs(array).max() > np.finfo(np.float16).max:
            raise NumericError(
                f"{key} reaches {np.abs(array).max():g}, more than a half can hold (65504); write it as f32"
            )
        fields[key] = gguf.f16_array(array) if dtype == "f16" else gguf.f32_array(array)
    if qhead.hidden_weight is not None:
        fields[keys.QHEAD_ACTIVATION] = gguf.text(qhead.activation)
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
