"""Fits a Q-head to a teacher's values at junctions. Numpy, float32.

Loss: sum over candidates of weight * (centred Q - centred V)^2, both centred within their junction with the same
weights, so that only differences count. Where it is known what the tokens that were taken gained, a second loss is
added: (Q(h, y) + level(h) - gain)^2, with a level of its own, since Q is only known up to a constant of the prefix. A
teacher says that of every token of a text for the price of reading the text once: here, of those between junctions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError, NumericError
from ..values.qhead import ACTIVATIONS, FORMS, Bilinear, Joint, QHead
from .junctions import Junctions, Transitions
from .network import (
    Adam,
    Weights,
    centred,
    forward,
    initial,
    loss_and_gradients,
    taken_loss_and_gradients,
)
from .report import Report, compare, probabilities, spread

Float32 = npt.NDArray[np.float32]

WEIGHTINGS = ("uniform", "p", "both")
_BATCH = 1024
_LEVEL_UNITS = 64


class Rows(Protocol):
    """Output embeddings of the base: ids int [U] -> float32 [U, n_embd]. `llama.embeddings.EmbeddingRows` is one."""

    def __getitem__(self, ids: Any) -> Float32: ...


@dataclass(frozen=True)
class FitConfig:
    """form: `joint` or `bilinear` (values.qhead); rank: of the bilinear form; hidden: units of the hidden layer, 0 for
    a linear f; activation of that layer.

    weighting: of a candidate's squared error: `uniform`, `p` (the base's probability among the candidates) or `both`
    (their mean); times its count, where values are means of rollouts. Small p matters little before the tilt and much
    after it; `p` spares the tail, `uniform` the head.
    epochs at most; patience: epochs without a better held-out loss before it stops; rate: peak of a cosine after a
    warm-up of a twentieth of the steps; decay: weight decay, decoupled, of matrices; taken: weight of the loss on the
    tokens that were taken; level: fit V(s) too, by ridge.
    """

    form: str = field(
        default=Joint.form,
        metadata={"help": "A network over state and token together, or a product of both.", "choices": tuple(FORMS)},
    )
    rank: int = field(default=64, metadata={"help": "Rank of the product, with --form bilinear."})
    hidden: int = field(default=256, metadata={"help": "Units of the hidden layer; 0, for none, with --form bilinear."})
    activation: str = field(default="silu", metadata={"help": "Of the hidden layer.", "choices": tuple(ACTIVATIONS)})
    weighting: str = field(
        default="uniform", metadata={"help": "Weight of a candidate's squared error.", "choices": WEIGHTINGS}
    )
    epochs: int = field(default=20, metadata={"help": "Passes over the junctions, at most."})
    patience: int = field(default=4, metadata={"help": "Stop after so many passes without a better held-out loss."})
    batch: int = field(default=256, metadata={"cli": False})
    rate: float = field(default=2e-3, metadata={"option": "--learning-rate", "help": "Peak learning rate."})
    decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    taken: float = field(
        default=1.0, metadata={"help": "Weight of the loss on the tokens that were taken, 0 for none."}
    )
    level: bool = field(default=True, metadata={"cli": False})
    seed: int = field(default=0, metadata={"cli": False})

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("hidden", 0), ("epochs", 1), ("patience", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.form not in FORMS:
            raise ConfigError(f"form {self.form!r}; expected one of {', '.join(FORMS)}")
        if self.form == Joint.form and not self.hidden:
            raise ConfigError("hidden is 0; expected 1 or more with form joint, or form bilinear")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if self.weighting not in WEIGHTINGS:
            raise ConfigError(f"weighting {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigError(f"the learning rate is {self.rate}; expected above 0")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ConfigError(f"decay is {self.decay}; expected 0 or more")
        if not (math.isfinite(self.taken) and self.taken >= 0):
            raise ConfigError(f"the weight of taken tokens is {self.taken}; expected 0 or more")


@dataclass(frozen=True)
class Epoch:
    """loss and held_out: in squared spreads of the teacher a candidate; seconds since the fit began."""

    epoch: int
    loss: float
    held_out: float
    best: bool
    seconds: float


@dataclass(frozen=True)
class Fit:
    """A fitted Q-head (of the best epoch), how it went, and how it does on the held-out junctions."""

    qhead: QHead
    epochs: tuple[Epoch, ...]
    report: Report


@dataclass(frozen=True)
class _Problem:
    """Junctions as training sees them: normalised hidden states and rows, values in spreads.

    index int [J, k] into table [U, n_embd]. weights float32 [J, k], mean 1 / k a candidate, 0 where not tried.
    """

    hidden: npt.NDArray[Any]
    mean: Float32
    std: Float32
    index: npt.NDArray[np.int32]
    table: Float32
    targets: Float32
    weights: Float32

    def batch(self, at: npt.NDArray[np.int64] | slice) -> tuple[Float32, Float32, Float32, Float32]:
        """(h [B, n_embd], e [B, k, n_embd], targets [B, k], weights [B, k])."""
        h = (self.hidden[at].astype(np.float32) - self.mean) / self.std
        return h, self.table[self.index[at]], self.targets[at], self.weights[at]


@dataclass(frozen=True)
class _Taken:
    """Transitions as training sees them; gains in spreads. index int [T] into table."""

    hidden: npt.NDArray[Any]
    mean: Float32
    std: Float32
    index: npt.NDArray[np.int32]
    table: Float32
    gains: Float32

    def batch(self, at: npt.NDArray[np.int64]) -> tuple[Float32, Float32, Float32]:
        """(h [B, n_embd], e [B, n_embd], gains [B])."""
        h = (self.hidden[at].astype(np.float32) - self.mean) / self.std
        return h, self.table[self.index[at]], self.gains[at]


def fit(
    junctions: Junctions,
    held_out: Junctions,
    rows: Rows,
    config: FitConfig | None = None,
    progress: Callable[[Epoch], None] | None = None,
    transitions: Transitions | None = None,
) -> Fit:
    """A Q-head that stands in for the values of `junctions`, stopped early by the loss on `held_out`.

    transitions: tokens that were taken; those of held-out prompts do not count.
    Raises DataError where nothing can be learned and NumericError when training diverges.
    """
    config = config or FitConfig()
    started = time.perf_counter()
    taken = None
    if transitions is not None and config.taken:
        taken = transitions.take(~np.isin(transitions.prompts, held_out.prompts))
        taken = taken if len(taken) else None
    sets = [junctions.ids, held_out.ids] + ([] if taken is None else [taken.ids])
    table, (index, held_index, *taken_index), scales = _table(rows, junctions.n_embd, sets)
    weights = [candidate_weights(j, config.weighting) for j in (junctions, held_out)]
    unit = spread(junctions.numbers(), junctions.tried())
    if not unit > 0:
        raise DataError(f"the teacher's values do not differ within the {len(junctions)} junctions; check the teacher")
    mean, std = _moments(junctions.hidden)
    train, check = (
        _Problem(j.hidden, mean, std, i, table, (j.numbers() / unit).astype(np.float32), w)
        for j, i, w in zip((junctions, held_out), (index, held_index), weights, strict=True)
    )
    also = None
    if taken is not None:
        also = _Taken(taken.hidden, mean, std, taken_index[0], table, (taken.gains / unit).astype(np.float32))
    rng = np.random.default_rng(config.seed)
    params = initial(
        config.form, junctions.n_embd, config.rank, config.hidden, rng, _LEVEL_UNITS if taken is not None else 0
    )
    adam = Adam(params, config.decay)
    n_batches = -(-len(junctions) // config.batch)
    best, best_loss, epochs = params, math.inf, list[Epoch]()
    for epoch in range(config.epochs):
        order, losses = rng.permutation(len(junctions)), 0.0
        others = np.array_split(rng.permutation(0 if also is None else len(also.gains)), n_batches)
        for i in range(n_batches):
            at = np.sort(order[i * config.batch : (i + 1) * config.batch])
            loss, gradients = loss_and_gradients(params, *train.batch(at), config.activation)
            losses += loss * len(at)
            if also is not None:
                _add(gradients, params, also, np.sort(others[i]), config)
            adam.step(params, gradients, _rate(config, epoch * n_batches + i, config.epochs * n_batches))
        held_loss = _loss(params, check, config.activation)
        if not math.isfinite(losses + held_loss):
            raise NumericError(f"training diverged in epoch {epoch + 1}; lower the learning rate ({config.rate})")
        better = held_loss < best_loss
        if better:
            best, best_loss = {name: array.copy() for name, array in params.items()}, held_loss
        epochs.append(Epoch(epoch + 1, losses / len(junctions), held_loss, better, time.perf_counter() - started))
        if progress is not None:
            progress(epochs[-1])
        if epoch - max(e.epoch - 1 for e in epochs if e.best) >= config.patience:
            break
    level = fit_level(junctions, mean, std) if config.level else (None, 0.0)
    qhead = folded(best, (mean, std), scales, unit, config.activation, level)
    report = compare(held_out, predict(qhead, held_out, rows))
    return Fit(replace(qhead, spread=float(np.float32(report.spread)) or None), tuple(epochs), report)


def predict(qhead: QHead, junctions: Junctions, rows: Rows) -> Float32:
    """Q of every candidate, float32 [J, k]."""
    ids, index = np.unique(junctions.ids, return_inverse=True)
    projected, index = qhead.project(rows[ids]), index.reshape(junctions.ids.shape)
    out = np.empty(junctions.ids.shape, np.float32)
    for at in range(0, len(junctions), _BATCH):
        piece = slice(at, at + _BATCH)
        out[piece] = qhead.of(junctions.hidden[piece].astype(np.float32), projected[index[piece]])
    return out


def candidate_weights(junctions: Junctions, weighting: str) -> Float32:
    """Weight of every candidate's squared error, float32 [J, k]: 0 if not tried, 1 / k on average where all are."""
    tried = junctions.tried()
    weights = tried / junctions.k
    if weighting != "uniform":
        logits = np.where(tried, junctions.logits.astype(np.float64), -np.inf)
        logits[~tried.any(axis=1)] = 0.0
        p = probabilities(logits) * tried
        weights = p if weighting == "p" else (weights + p) / 2
    if junctions.counts is not None:
        weights = weights * np.where(tried, junctions.counts, 0.0) / junctions.counts[tried].mean()
    if not (tried.sum(axis=1) > 1).any():
        raise DataError(f"none of the {len(junctions)} junctions has two candidates with a value; collect more of them")
    weights[tried.sum(axis=1) < 2] = 0.0
    return weights.astype(np.float32)


def folded(
    params: Weights,
    of_hidden: tuple[Float32, Float32],
    of_rows: tuple[Float32, Float32],
    unit: float,
    activation: str,
    level: tuple[Float32 | None, float] = (None, 0.0),
) -> QHead:
    """The Q-head over raw hidden states and rows: normalisation, (mean, std) of each, goes into the weights, the
    teacher's spread into the scale. What the rows' mean adds through u, and to the bilinear form at all, is one number
    a junction, which no difference sees, and is left out."""
    (mean, std), (e_mean, e_std) = of_hidden, of_rows

    def raw(weight: Float32, bias: Float32, add: npt.NDArray[np.floating] | float = 0.0) -> tuple[Float32, Float32]:
        shifted = bias.astype(np.float64) - (weight.astype(np.float64) / std) @ mean - add
        return (weight / std).astype(np.float32), shifted.astype(np.float32)

    token = (params["B"] / e_std).astype(np.float32)
    shared: dict[str, Any] = {
        "token_weight": token,
        "token_bias": (params["u"] / e_std).astype(np.float32),
        "activation": activation,
        "scale": float(np.float32(unit)),
        "level_weight": level[0],
        "level_bias": float(np.float32(level[1])),
    }
    if "v" in params:
        first, offset = raw(params["A"], params["c"], token.astype(np.float64) @ e_mean)
        return Joint(weight=params["v"].copy(), hidden_weight=first, hidden_bias=offset, **shared)
    if "A" in params:
        first, offset = raw(params["A"], params["c"])
        own = {"weight": params["W"].copy(), "bias": params["b"].copy()}
        return Bilinear(**own, hidden_weight=first, hidden_bias=offset, **shared)
    weight, bias = raw(params["W"], params["b"])
    return Bilinear(weight=weight, bias=bias, **shared)


def fit_level(junctions: Junctions, mean: Float32, std: Float32, ridge: float = 1e-2) -> tuple[Float32, float]:
    """(w, b) of V(s) = w h + b for the mean value under the base's probabilities, by ridge regression."""
    tried = junctions.tried()
    rows = np.flatnonzero(tried.any(axis=1))
    logits = np.where(tried[rows], junctions.logits[rows].astype(np.float64), -np.inf)
    targets = (probabilities(logits) * junctions.numbers()[rows]).sum(axis=1)
    centre = targets.mean()
    gram, moment = np.zeros((junctions.n_embd, junctions.n_embd)), np.zeros(junctions.n_embd)
    for at in range(0, len(rows), _BATCH):
        piece = rows[at : at + _BATCH]
        h = (junctions.hidden[piece].astype(np.float32) - mean) / std
        gram += h.T @ h
        moment += h.T @ (targets[at : at + _BATCH] - centre)
    gram[np.diag_indices_from(gram)] += ridge * len(rows)
    w = np.linalg.solve(gram, moment) / std
    return w.astype(np.float32), float(centre - w @ mean)


def _add(gradients: Weights, params: Weights, also: _Taken, at: npt.NDArray[np.int64], config: FitConfig) -> None:
    """Adds the gradients of the loss on taken tokens, with its weight."""
    second: Weights = {name: np.zeros_like(params[name]) for name in params.keys() - gradients.keys()}
    if len(at):
        _, second = taken_loss_and_gradients(params, *also.batch(at), config.activation)
    for name, gradient in second.items():
        gradients[name] = gradients.get(name, np.float32(0)) + np.float32(config.taken) * gradient


def _loss(params: Weights, problem: _Problem, activation: str) -> float:
    total = 0.0
    for at in range(0, len(problem.hidden), _BATCH):
        h, rows, targets, weights = problem.batch(slice(at, at + _BATCH))
        error = centred(forward(params, h, rows, activation) - targets, weights)
        total += float((weights * error * error).sum())
    return total / len(problem.hidden)


def _rate(config: FitConfig, step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return config.rate * (step + 1) / warm
    return config.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def _moments(hidden: npt.NDArray[Any]) -> tuple[Float32, Float32]:
    """Mean and standard deviation of every column; one that does not vary counts as of standard deviation 1."""
    total, square = np.zeros(hidden.shape[1]), np.zeros(hidden.shape[1])
    for at in range(0, len(hidden), _BATCH):
        piece = hidden[at : at + _BATCH].astype(np.float64)
        total += piece.sum(axis=0)
        square += (piece * piece).sum(axis=0)
    mean = total / len(hidden)
    variance = square / len(hidden) - mean * mean
    still = variance <= 1e-9 * np.maximum(square / len(hidden), 1e-12)
    return mean.astype(np.float32), np.sqrt(np.where(still, 1.0, variance)).astype(np.float32)


def _table(
    rows: Rows, n_embd: int, sets: list[npt.NDArray[np.int32]]
) -> tuple[Float32, list[npt.NDArray[np.int32]], tuple[Float32, Float32]]:
    """(normalised rows of all ids [U, n_embd], indices into it of every set, mean and standard deviation of rows)."""
    flat = np.concatenate([ids.ravel() for ids in sets])
    ids, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    table = np.array(rows[ids], np.float32)
    if table.shape != (len(ids), n_embd):
        raise DataError(
            f"embedding rows are {list(table.shape)}, expected {[len(ids), n_embd]}: hidden states and rows "
            "are of different models; give the base that the junctions were collected with"
        )
    share = (counts / counts.sum())[:, None]
    mean = (share * table).sum(axis=0)
    variance = (share * (table - mean) ** 2).sum(axis=0)
    std = np.sqrt(np.where(variance > 0, variance, 1.0)).astype(np.float32)
    table = ((table - mean) / std).astype(np.float32)
    ends = np.cumsum([s.size for s in sets])[:-1]
    parts = np.split(inverse.astype(np.int32).ravel(), ends)
    return table, [part.reshape(s.shape) for part, s in zip(parts, sets, strict=True)], (mean, std)
