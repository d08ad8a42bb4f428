"""How tests load tiny models, and what they know of what is loaded."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from sia_local import SIA, Setup
from sia_local.records import Candidates, Step
from sia_local.values.sources import Source

# No rounding but float32's own: the same prefix gives the same numbers to 1e-4, however it was read.
EXACT = Setup(n_ctx=128, n_threads=1, type_k="f32", type_v="f32", flash_attention="off")
Kind = TypeVar("Kind")


@overload
def source(sia: SIA) -> Source: ...
@overload
def source(sia: SIA, kind: type[Kind]) -> Kind: ...
def source(sia: SIA, kind: type[Any] = object) -> Any:
    """What steers, which has to be there, and of this kind."""
    assert sia.value is not None and isinstance(sia.value, kind), sia.value
    return sia.value


def traced(step: Step) -> Candidates:
    """The candidates of a step, which has to have been traced."""
    assert step.candidates is not None
    return step.candidates
