"""The network under a Q-head in training: forward, gradients written out, Adam. Numpy, float32.

Parameters by name, those of `values.qhead`: of the joint form A [m, n_embd], c [m], B [m, n_embd], v [m], u [n_embd];
of the bilinear one B [rank, n_embd], u, W [rank, n_embd or n_hidden], b [rank] and, with a hidden layer,
A [n_hidden, n_embd], c [n_hidden]. Where tokens that were taken are learned from, L1 [n, n_embd], l1 [n], l2 [n],
l0 [1] are a level of its own: level(h) = l2 . act(L1 h + l1) + l0, dropped afterwards.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..values.qhead import ACTIVATIONS, Joint

Float32 = npt.NDArray[np.float32]
Weights = dict[str, Float32]

DECAYED = ("A", "B", "W", "v", "u", "L1")


def initial(form: str, n_embd: int, rank: int, hidden: int, rng: np.random.Generator, level: int = 0) -> Weights:
    """Weights that say Q = 0 everywhere: the last layer and u are zero, the rest of unit gain. rank: of the bilinear
    form. level: units of the level's hidden layer, 0 for none."""

    def normal(*shape: int) -> Float32:
        return (rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    joint = form == Joint.form
    params = {"B": normal(hidden if joint else rank, n_embd), "u": np.zeros(n_embd, np.float32)}
    if hidden:
        params |= {"A": normal(hidden, n_embd), "c": np.zeros(hidden, np.float32)}
    if joint:
        params["v"] = np.zeros(hidden, np.float32)
    else:
        params |= {"W": np.zeros((rank, hidden or n_embd), np.float32), "b": np.zeros(rank, np.float32)}
    if level:
        params |= {"L1": normal(level, n_embd), "l1": np.zeros(level, np.float32)}
        params |= {"l2": np.zeros(level, np.float32), "l0": np.zeros(1, np.float32)}
    return params


def forward(params: Weights, h: Float32, rows: Float32, activation: str) -> Float32:
    """Q [B, k] of h [B, n_embd] and rows [B, k, n_embd]."""
    return _through(params, h, rows, activation).q


def loss_and_gradients(
    params: Weights, h: Float32, rows: Float32, targets: Float32, weights: Float32, activation: str
) -> tuple[float, Weights]:
    """Mean over the batch of sum_c weight (centred Q - centred target)^2, and its gradient by every parameter of Q."""
    through = _through(params, h, rows, activation)
    error = centred(through.q - targets, weights)
    scaled = weights * error / np.float32(len(h))
    # The error is centred with the same weights, so that the mean's own derivative vanishes.
    return float((scaled * error).sum()), through.gradients(2 * scaled)


def taken_loss_and_gradients(
    params: Weights, h: Float32, rows: Float32, targets: Float32, activation: str
) -> tuple[float, Weights]:
    """Mean over the batch of (Q(h, y) + level(h) - target)^2, and its gradient by every parameter.

    rows float32 [B, n_embd]: of the tokens y that were taken; targets [B].
    """
    through = _through(params, h, rows[:, None], activation)
    a = h @ params["L1"].T + params["l1"]
    x = ACTIVATIONS[activation](a)
    error = through.q[:, 0] + x @ params["l2"] + params["l0"] - targets
    scaled = 2 * error / np.float32(len(h))
    da = scaled[:, None] * params["l2"] * _slope(a, activation)
    gradients = through.gradients(scaled[:, None])
    gradients |= {"L1": da.T @ h, "l1": da.sum(axis=0), "l2": x.T @ scaled, "l0": scaled.sum(keepdims=True)}
    return float((error * error).mean()), gradients


def _through(params: Weights, h: Float32, rows: Float32, activation: str) -> _JointPass | _BilinearPass:
    return (_JointPass if "v" in params else _BilinearPass)(params, h, rows, activation)


class _JointPass:
    """h [B, n_embd] and rows [B, k, n_embd] on their way to q [B, k], and back."""

    def __init__(self, params: Weights, h: Float32, rows: Float32, activation: str):
        self.params, self.h, self.rows, self.activation = params, h, rows, activation
        self.a = (h @ params["A"].T + params["c"])[:, None] + rows @ params["B"].T
        self.x = ACTIVATIONS[activation](self.a)
        self.q = self.x @ params["v"] + rows @ params["u"]

    def gradients(self, dq: Float32) -> Weights:
        """By every parameter of Q, from the gradient by q [B, k]."""
        da = dq[:, :, None] * self.params["v"] * _slope(self.a, self.activation)
        of_h, rows = da.sum(axis=1), _flat(self.rows)
        return {
            "u": dq.ravel() @ rows,
            "v": dq.ravel() @ _flat(self.x),
            "B": _flat(da).T @ rows,
            "A": of_h.T @ self.h,
            "c": of_h.sum(axis=0),
        }


class _BilinearPass:
    """As _JointPass. Since Q = w(h) . e with w(h) = B^T f(h) + u, a junction costs its rows times one vector, forward
    and back; no candidate is ever multiplied by B."""

    def __init__(self, params: Weights, h: Float32, rows: Float32, activation: str):
        self.params, self.h, self.rows, self.activation = params, h, rows, activation
        self.layered = "A" in params
        self.a = h @ params["A"].T + params["c"] if self.layered else h
        self.x = ACTIVATIONS[activation](self.a) if self.layered else h
        self.f = self.x @ params["W"].T + params["b"]
        self.q = np.matmul(rows, (self.f @ params["B"] + params["u"])[:, :, None])[:, :, 0]

    def gradients(self, dq: Float32) -> Weights:
        """By every parameter of Q, from the gradient by q [B, k]."""
        dw = np.matmul(dq[:, None, :], self.rows)[:, 0, :]
        df = dw @ self.params["B"].T
        gradients = {"u": dw.sum(axis=0), "B": self.f.T @ dw, "b": df.sum(axis=0), "W": df.T @ self.x}
        if self.layered:
            da = (df @ self.params["W"]) * _slope(self.a, self.activation)
            gradients |= {"A": da.T @ self.h, "c": da.sum(axis=0)}
        return gradients


class Adam:
    """Adam with decoupled weight decay of the matrices; changes the parameters in place."""

    def __init__(self, params: Weights, decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)):
        self.decay, self.betas, self.steps = decay, betas, 0
        self._first = {name: np.zeros_like(array) for name, array in params.items()}
        self._second = {name: np.zeros_like(array) for name, array in params.items()}

    def step(self, params: Weights, gradients: Weights, rate: float) -> None:
        self.steps += 1
        b1, b2 = self.betas
        unbias1, unbias2 = 1 - b1**self.steps, 1 - b2**self.steps
        for name, array in params.items():
            g, m, v = gradients[name], self._first[name], self._second[name]
            m *= b1
            m += (1 - b1) * g
            v *= b2
            v += (1 - b2) * g * g
            if name in DECAYED:
                array *= 1 - rate * self.decay
            array -= (rate / unbias1) * m / (np.sqrt(v / unbias2) + 1e-8)


def centred(values: Float32, weights: Float32) -> Float32:
    """values [B, k] less their weighted mean within each row."""
    total = weights.sum(axis=1, keepdims=True)
    mean = (weights * values).sum(axis=1, keepdims=True) / np.where(total > 0, total, np.float32(1))
    return np.asarray(values - mean)


def _flat(of_candidates: Float32) -> Float32:
    return of_candidates.reshape(-1, of_candidates.shape[-1])


def _slope(a: Float32, activation: str) -> Float32:
    if activation == "relu":
        return (a > 0).astype(np.float32)
    if activation == "silu":
        s = 0.5 * (1 + np.tanh(0.5 * a))
        return np.asarray(s * (1 + a * (1 - s)), np.float32)
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (a + 0.044715 * a * a * a))
    return np.asarray(0.5 * (1 + t) + 0.5 * a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a), np.float32)
