"""llama.cpp's own samplers over a candidate array."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from .library import C, FloatArray, IntArray, quietly, reason
from .model import Model

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class SamplerChain:
    """llama.cpp's own samplers over a candidate array; state (history, grammar) advances with accept()."""

    def __init__(self, samplers: Sequence[Any]):
        self._ptr = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for sampler in samplers:
            C.llama_sampler_chain_add(self._ptr, sampler)
        self._array = C.llama_token_data_array()
        # A chain lives as long as the job it filters, which a caller may drop, keep or never finish.
        self._free = weakref.finalize(self, C.llama_sampler_free, self._ptr)

    def close(self) -> None:
        self._free()

    def apply(self, ids: IntArray, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """Survivors (ids, logits) in the order llama.cpp leaves them; banned tokens (-inf) are dropped."""
        data = np.empty(len(ids), _TOKEN_DATA)
        data["id"], data["logit"], data["p"] = ids, logits, 0.0
        array = self._array
        array.data = data.ctypes.data_as(C.llama_token_data_p)  # type: ignore[assignment]
        array.size, array.selected, array.sorted = len(ids), -1, False
        C.llama_sampler_apply(self._ptr, ctypes.byref(array))
        kept = data[: array.size]
        kept = kept[np.isfinite(kept["logit"])]
        return kept["id"].copy(), kept["logit"].copy()

    def accept(self, token: int) -> None:
        C.llama_sampler_accept(self._ptr, token)


def logit_bias(model: Model, biases: Sequence[tuple[int, float]]) -> Any:
    for token, _ in biases:
        if not 0 <= token < model.n_vocab:
            raise ConfigError(f"a logit bias names token {token}; expected 0 to {model.n_vocab - 1}")
    array = (C.llama_logit_bias * len(biases))(*(C.llama_logit_bias(token, bias) for token, bias in biases))
    return C.llama_sampler_init_logit_bias(model.n_vocab, len(biases), array)


def penalties(model: Model, last_n: int, repeat: float, frequency: float, presence: float) -> Any:
    return C.llama_sampler_init_penalties(model.n_vocab, last_n, repeat, frequency, presence)


def grammar(model: Model, text: str) -> Any:
    with quietly():
        sampler = C.llama_sampler_init_grammar(model._vocab, text.encode(), b"root")
    if not sampler:
        raise ConfigError(f"the grammar cannot be parsed; expected GBNF with a rule named root{reason()}")
    return sampler


def top_p(p: float) -> Any:
    return C.llama_sampler_init_top_p(p, 1)


def min_p(p: float) -> Any:
    return C.llama_sampler_init_min_p(p, 1)
