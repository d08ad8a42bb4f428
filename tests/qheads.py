"""Q-heads at random, of every form."""

from __future__ import annotations

from typing import Any

import numpy as np

from sia_local.values.qhead import Bilinear, Joint, Term


def made(form: str = "joint", n_embd: int = 24, n_hidden: int = 7, activation: str = "silu", seed: int = 0) -> Term:
    """form: joint, bilinear, or linear for a bilinear one without a hidden layer."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    m, layered = (n_hidden if form == "joint" else 5), form != "linear"
    shared: dict[str, Any] = {
        "token_weight": normal(m, n_embd),
        "token_bias": normal(n_embd),
        "hidden_weight": normal(n_hidden, n_embd) if layered else None,
        "hidden_bias": normal(n_hidden) if layered else None,
        "activation": activation if layered else "silu",
        "scale": 0.375,
        "spread": 0.0625,
        "level_weight": normal(n_embd),
        "level_bias": -1.5,
    }
    if form == "joint":
        return Joint(weight=normal(m), **shared)
    return Bilinear(weight=normal(m, n_hidden if layered else n_embd), bias=normal(m), **shared)


FORMS = ("joint", "bilinear", "linear")
