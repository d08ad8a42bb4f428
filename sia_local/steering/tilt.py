"""The tilt: pi*(y|s) ∝ pi_base(y|s) exp(beta V(s, y)) on the candidates. Pure numpy, float64.

Source of the formulas: Sparse Inference-time Alignment, arXiv 2602.21215; the neighbours of it that share the
sampler (ARGS, RAD, Value Augmented Sampling) are other choices of `shape_values`, beta and temperature.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError
from ..records import Float64, Floats


def softmax(scores: Floats, temperature: float = 1.0) -> Float64:
    """softmax(scores / temperature); temperature 0 puts all mass on the first best score."""
    scores = scores.astype(np.float64)
    if temperature == 0:
        out = np.zeros(scores.shape[0])
        out[int(np.argmax(scores))] = 1.0
        return out
    weights = np.exp((scores - scores.max()) / temperature)
    return weights / weights.sum()


def log_softmax(scores: Floats, temperature: float = 1.0) -> Float64:
    """log softmax(scores / temperature), finite where the softmax itself is too small for a float; at temperature 0 0
    and minus infinity."""
    if temperature == 0:
        with np.errstate(divide="ignore"):
            return np.log(softmax(scores, 0))
    scores = scores.astype(np.float64)
    shifted = (scores - scores.max()) / temperature
    return shifted - np.log(np.exp(shifted).sum())


def shape_values(values: Floats, center: bool = False, clip: tuple[float, float] | None = None) -> Float64:
    """Values as the tilt uses them: bounded to `clip` first, then with their mean over the candidates removed."""
    shaped = values.astype(np.float64)
    if clip is not None:
        shaped = np.clip(shaped, *clip)
    if center:
        shaped = shaped - shaped.mean()
    return shaped


def tilt(logits: Floats, values: Floats, beta: float, temperature: float = 1.0) -> Float64:
    """Steered probabilities softmax((z + beta V) / T) of the candidates; both inputs float[k]."""
    return softmax(logits.astype(np.float64) + beta * values.astype(np.float64), temperature)


def kl(probabilities: Float64, base_logprobs: Float64) -> float:
    """KL(pi || base) in nats: sum of pi log(pi / base) where pi > 0. base_logprobs are over the whole vocabulary."""
    alive = probabilities > 0
    p = probabilities[alive]
    return float(np.einsum("i,i->", p, np.log(p) - base_logprobs[alive]))


def truncation_kl(base_logprobs: Float64) -> float:
    """The part of the KL that cutting to the candidates costs: -log of their mass under the base, nats."""
    top = base_logprobs.max()
    return max(0.0, -float(top + np.log(np.exp(base_logprobs - top).sum())))


def gain(logits: Floats, tilts: Floats) -> float:
    """What steering would change here, nats: log Σ p e^t − Σ p t with p = softmax(logits) and t = beta V, both
    float[k]. It is KL(p || tilted) and never negative."""
    p = softmax(logits)
    top = float(tilts.max())
    return max(0.0, top + math.log(float((p * np.exp(tilts - top)).sum())) - float((p * tilts).sum()))


def beta_for_kl(
    logits: Floats, values: Floats, beta: float, temperature: float, budget: float, tolerance: float = 1e-4
) -> float:
    """The largest share of `beta` whose tilt stays within `budget` nats of the untilted candidates.

    KL(tilted || untilted) grows monotonically with |beta|, so bisection finds it. At temperature 0 both sides
    are points: any change of the best candidate is infinitely far, and the answer is 0 or beta.
    """
    base_log = log_softmax(logits, temperature)

    def spent(share: float) -> float:
        return kl(tilt(logits, values, beta * share, temperature), base_log)

    if spent(1.0) <= budget:
        return beta
    if temperature == 0:
        return 0.0
    low, high = 0.0, 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        if spent(middle) <= budget:
            low = middle
        else:
            high = middle
    return beta * low


def bon_kl_bound(n: int) -> float:
    """Upper bound in nats on the KL of Best-of-N from its base: log N − (N − 1)/N (Beirami et al. 2024)."""
    if n < 1:
        raise ConfigError(f"Best-of-N with N = {n}; expected 1 or more")
    return math.log(n) - (n - 1) / n


def draw(probabilities: Float64, uniform: float) -> int:
    """Index of the candidate that a uniform number in [0, 1) selects (inverse CDF)."""
    cumulative = probabilities.cumsum()
    index = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    # Rounding can leave the last step of the CDF just below `uniform`.
    return index if index < len(probabilities) else int(np.flatnonzero(probabilities)[-1])


def is_sane(values: Floats) -> bool:
    """Whether no entry is NaN or infinite. One reduction: a NaN or inf survives the sum."""
    return math.isfinite(float(values.sum(dtype=np.float64)))
