"""The network under a Q-head in training: forward, gradients written out, Adam. Numpy, float32.

Parameters by name: G [rank, n_embd], u [n_embd], W [rank, n_embd or n_hidden], c [rank] and, with a hidden layer,
W1 [n_hidden, n_embd], c1 [n_hidden]. Since Q(s, y) = <w(h), e_y> with w(h) = G^T f(h) + u, a junction costs its rows
times one vector, forward and back; no candidate is ever multiplied by G.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..values.qhead import ACTIVATIONS

Float32 = npt.NDArray[np.float32]
Weights = dict[str, Float32]

DECAYED = ("W1", "W", "G", "u")


def initial(n_embd: int, rank: int, hidden: int, rng: np.random.Generator) -> Weights:
    """Weights that say Q = 0 everywhere: f's last layer and u are zero, the rest of unit gain."""

    def normal(*shape: int) -> Float32:
        return (rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    params = {"G": normal(rank, n_embd), "u": np.zeros(n_embd, np.float32), "c": np.zeros(rank, np.float32)}
    if hidden:
        params |= {"W1": normal(hidden, n_embd), "c1": np.zeros(hidden, np.float32)}
    params["W"] = np.zeros((rank, hidden or n_embd), np.float32)
    return params


def forward(params: Weights, h: Float32, rows: Float32, activation: str) -> Float32:
    """Q [B, k] of h [B, n_embd] and rows [B, k, n_embd]."""
    x = ACTIVATIONS[activation](h @ params["W1"].T + params["c1"]) if "W1" in params else h
    w = (x @ params["W"].T + params["c"]) @ params["G"] + params["u"]
    return np.matmul(rows, w[:, :, None])[:, :, 0]


def loss_and_gradients(
    params: Weights, h: Float32, rows: Float32, targets: Float32, weights: Float32, activation: str
) -> tuple[float, Weights]:
    """Mean over the batch of sum_c weight (centred Q - centred target)^2, and its gradient by every parameter."""
    layered = "W1" in params
    a = h @ params["W1"].T + params["c1"] if layered else h
    x = ACTIVATIONS[activation](a) if layered else h
    f = x @ params["W"].T + params["c"]
    w = f @ params["G"] + params["u"]
    q = np.matmul(rows, w[:, :, None])[:, :, 0]
    error = centred(q - targets, weights)
    scaled = weights * error / np.float32(len(h))
    loss = float((scaled * error).sum())
    # The error is centred with the same weights, so that the mean's own derivative vanishes.
    dw = np.matmul(2 * scaled[:, None, :], rows)[:, 0, :]
    df = dw @ params["G"].T
    gradients = {"u": dw.sum(axis=0), "G": f.T @ dw, "c": df.sum(axis=0), "W": df.T @ x}
    if layered:
        da = (df @ params["W"]) * _slope(a, activation)
        gradients |= {"W1": da.T @ h, "c1": da.sum(axis=0)}
    return loss, gradients


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


def _slope(a: Float32, activation: str) -> Float32:
    if activation == "relu":
        return (a > 0).astype(np.float32)
    if activation == "silu":
        s = 0.5 * (1 + np.tanh(0.5 * a))
        return np.asarray(s * (1 + a * (1 - s)), np.float32)
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (a + 0.044715 * a * a * a))
    return np.asarray(0.5 * (1 + t) + 0.5 * a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a), np.float32)
