"""The Q-head: values of all candidates from the base's own hidden state, without a decode. Numpy alone.

Q(s, y) of h, the base's final normed hidden state behind s, and e, the row of its output embedding of y, in one of
two forms, `joint`, a network that reads both, or `bilinear`, or as a `sum` of them. It is fitted to differences among
the candidates of a junction, so Q is in reward units up to a constant of s; the level V(s) may ride along. What a token
brings along does not depend on s: `project` computes it once, and whoever asks often keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import IncompatibleError, NumericError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {
    "relu": lambda x: np.maximum(x, 0),
    # x / (1 + exp(-x)), in a form that does not overflow.
    "silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
    # The tanh form, as torch's gelu(approximate="tanh").
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
}


@dataclass(frozen=True, kw_only=True)
class QHead:
    """Q(s, y) of h and e, whatever its form. All arrays float32.

    spread: standard deviation of Q among the candidates of a junction, reward units, None if not measured.
    level_weight [n_embd], level_bias: V(s) = w . h + b in reward units, or None.
    Raises IncompatibleError for sizes that do not fit and NumericError for NaN or infinite weights.
    """

    form: ClassVar[str]

    spread: float | None = None
    level_weight: Float32 | None = None
    level_bias: float = 0.0

    def __post_init__(self) -> None:
        self._check({"level_weight": (self.n_embd,)}, ("spread", "level_bias"))

    def _check(self, shapes: dict[str, tuple[int, ...]], numbers: tuple[str, ...]) -> None:
        """That arrays, where they are there, have these shapes, and they and the numbers are finite."""
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape or not array.size:
                raise IncompatibleError(f"the Q-head's {name} is {list(array.shape)}, expected {list(shape)}")
            if not np.isfinite(array).all():
                raise NumericError(f"the Q-head's {name} has NaN or infinite weights; train or export it again")
        for name in numbers:
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise NumericError(f"the Q-head's {name} is {number}; expected a finite number, train it again")

    @property
    def n_embd(self) -> int:
        """Width of h and e."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Numbers that `project` gives of a token."""
        raise NotImplementedError

    @property
    def terms(self) -> tuple[Term, ...]:
        """What adds up to Q."""
        raise NotImplementedError

    def project(self, rows: Float32) -> Float32:
        """What of a token does not depend on s: float32 [..., n_embd] -> [..., width]."""
        raise NotImplementedError

    def of(self, hidden: Float32, projected: Float32) -> Float64:
        """Q of h and what `project` gave: [n_embd], [k, width] -> float64 [k], or with a leading n in all three."""
        raise NotImplementedError

    def __call__(self, hidden: Float32, rows: Float32) -> Float64:
        """Q float64 [k] of h float32 [n_embd] and the candidates' rows [k, n_embd]."""
        return self.of(hidden, self.project(rows))

    def level(self, hidden: Float32) -> Float64 | None:
        """V(s) in reward units, float32 [..., n_embd] -> float64 [...]; None if no level rides along."""
        if self.level_weight is None:
            return None
        return np.einsum("...j,j->...", hidden, self.level_weight).astype(np.float64) + self.level_bias


@dataclass(frozen=True, kw_only=True)
class Term(QHead):
    """Q(s, y) = scale * (meet(query(h), B e) + u . e): what joint and bilinear share.

    token_weight B [m, n_embd]; token_bias u [n_embd], a number a token whatever s is. activation: of the hidden layer.
    scale: reward units a unit of the rest.

    Products are einsum's own loops, not BLAS: its threads and llama.cpp's would wait for each other between decodes.
    """

    weight: Float32
    token_weight: Float32
    token_bias: Float32
    hidden_weight: Float32 | None = None
    hidden_bias: Float32 | None = None
    activation: str = "silu"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise IncompatibleError(
                f"the Q-head's activation is {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}"
            )
        if (self.hidden_weight is None) != (self.hidden_bias is None):
            raise IncompatibleError("the Q-head's hidden layer has only one of weight and bias; expected both or none")
        m, n_embd = self.token_weight.shape if self.token_weight.ndim == 2 else (0, 0)
        n_hidden = self.n_hidden
        wanted = {
            "token_weight": (m, n_embd),
            "token_bias": (n_embd,),
            "hidden_weight": (n_hidden, n_embd),
            "hidden_bias": (n_hidden,),
            **self._shapes(m, n_embd, n_hidden),
        }
        self._check(wanted, ("scale",))
        super().__post_init__()

    def _shapes(self, m: int, n_embd: int, n_hidden: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the form's own weights, beside a token_weight [m, n_embd]."""
        raise NotImplementedError

    @property
    def n_embd(self) -> int:
        return int(self.token_weight.shape[1])

    @property
    def n_hidden(self) -> int:
        """Units of the hidden layer, 0 for none."""
        return 0 if self.hidden_bias is None else len(self.hidden_bias)

    @property
    def width(self) -> int:
        """m + 1."""
        return len(self.token_weight) + 1

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self,)

    def project(self, rows: Float32) -> Float32:
        """B e and u . e: float32 [..., n_embd] -> [..., m + 1]."""
        kept = np.einsum("...j,ij->...i", rows, self.token_weight)
        return np.concatenate([kept, np.einsum("...j,j->...", rows, self.token_bias)[..., None]], axis=-1)

    def of(self, hidden: Float32, projected: Float32) -> Float64:
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever asked
            q = self._meet(self._query(hidden), projected[..., :-1]) + projected[..., -1]
        return self.scale * q.astype(np.float64)

    def _query(self, hidden: Float32) -> Float32:
        """What is wanted of a token after s, [..., n_embd] -> [..., m]."""
        raise NotImplementedError

    def _meet(self, query: Float32, kept: Float32) -> Float32:
        """[..., m], [..., k, m] -> [..., k]."""
        raise NotImplementedError

    def _hidden(self, hidden: Float32) -> Float32:
        assert self.hidden_weight is not None and self.hidden_bias is not None
        return np.asarray(np.einsum("...j,ij->...i", hidden, self.hidden_weight) + self.hidden_bias)


class Joint(Term):
    """Q(s, y) = scale * (v . act(A h + B e + c) + u . e): one hidden layer reads h and e together.

    weight v [m]; hidden_weight A [m, n_embd]; hidden_bias c [m].
    """

    form = "joint"

    def _shapes(self, m: int, n_embd: int, n_hidden: int) -> dict[str, tuple[int, ...]]:
        if self.hidden_weight is None:
            raise IncompatibleError("a joint Q-head has no hidden layer; expected hidden_weight and hidden_bias")
        return {"weight": (m,), "hidden_weight": (m, n_embd), "hidden_bias": (m,)}

    def _query(self, hidden: Float32) -> Float32:
        return self._hidden(hidden)

    def _meet(self, query: Float32, kept: Float32) -> Float32:
        return np.asarray(
            np.einsum("...ki,i->...k", ACTIVATIONS[self.activation](query[..., None, :] + kept), self.weight)
        )


@dataclass(frozen=True, kw_only=True)
class Bilinear(Term):
    """Q(s, y) = scale * (f(h) . B e + u . e), f(h) = W h + b or, with a hidden layer, W act(A h + c) + b.

    weight W [m, n_embd] or [m, n_hidden]; bias b [m]; hidden_weight A [n_hidden, n_embd]; hidden_bias c [n_hidden].
    m is the rank.
    """

    form = "bilinear"

    bias: Float32

    def _shapes(self, m: int, n_embd: int, n_hidden: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (m, n_hidden or n_embd), "bias": (m,)}

    def _query(self, hidden: Float32) -> Float32:
        x = ACTIVATIONS[self.activation](self._hidden(hidden)) if self.n_hidden else hidden
        return np.asarray(np.einsum("...j,ij->...i", x, self.weight) + self.bias)

    def _meet(self, query: Float32, kept: Float32) -> Float32:
        return np.asarray(np.einsum("...ki,...i->...k", kept, query))


@dataclass(frozen=True, kw_only=True)
class Sum(QHead):
    """Q(s, y) = the sum of its parts' Q, for those of forms that no one term holds. Spread and level are its own; those
    of its parts do not count."""

    form = "sum"

    parts: tuple[Term, ...]

    def __post_init__(self) -> None:
        widths = {part.n_embd for part in self.parts}
        if len(widths) != 1:
            raise IncompatibleError(
                f"the Q-head is a sum of {len(self.parts)} terms of the widths {sorted(widths)}; expected one or more "
                "of the same"
            )
        super().__post_init__()

    @property
    def n_embd(self) -> int:
        return self.parts[0].n_embd

    @property
    def width(self) -> int:
        """That of all parts."""
        return sum(part.width for part in self.parts)

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.parts

    def project(self, rows: Float32) -> Float32:
        return np.concatenate([part.project(rows) for part in self.parts], axis=-1)

    def of(self, hidden: Float32, projected: Float32) -> Float64:
        total, at = np.zeros(projected.shape[:-1]), 0
        for part in self.parts:
            total += part.of(hidden, projected[..., at : at + part.width])
            at += part.width
        return total


FORMS: dict[str, type[Term]] = {form.form: form for form in (Joint, Bilinear)}
