"""What acts on the base logits before candidates are taken: biases, penalties, grammar, top-p, min-p.

All of it is llama.cpp's own samplers, so the semantics are those of every llama.cpp program and the same for
steered and unsteered steps. Nothing acts after steering but temperature: a penalty applied there, outside the
candidate set, would lift tokens that no value has seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import SamplingConfig
from ..errors import SiaError
from ..llama import samplers
from ..llama.library import FloatArray, IntArray
from ..llama.model import Model
from ..llama.samplers import SamplerChain
from ..reasoning import ANSWER
from ..steering.entropy import top_candidates

# Tokens looked at first when a grammar is active; while none survives, so many times more are.
_GRAMMAR_POOL = 64
_GROWTH = 8
# Tokens that penalties may look at: llama.cpp sets the whole window aside, and ends the process where it cannot.
_LONGEST_WINDOW = 1 << 20
# A token so many nats below the best survivor (times a temperature above 1) is drawn once in nine million times. Where
# a grammar leaves few tokens, such are not looked for: a fixed text would send the whole vocabulary through it.
_NEGLIGIBLE = 16.0


class LogitFilter:
    """The filters of one sequence; accept() keeps penalties and grammar in step with the text.

    part: what the next token belongs to, of a text whose prompt has opened its reasoning; a grammar is the answer's.
    longest: tokens that a text may have, its prompt's among them.
    """

    def __init__(
        self,
        model: Model,
        config: SamplingConfig,
        prompt: list[int],
        part: Callable[[], str] = lambda: ANSWER,
        longest: int = _LONGEST_WINDOW,
    ):
        self._part, self._holds = part, True
        self._biases: SamplerChain | None = None
        self._biased = np.array([token for token, _ in config.logit_bias], np.int32)
        self._penalties: SamplerChain | None = None
        self._grammar: SamplerChain | None = None
        if config.logit_bias:
            self._biases = SamplerChain([samplers.logit_bias(model, config.logit_bias)])
        longest = min(longest, _LONGEST_WINDOW)
        window = longest if config.penalty_last_n < 0 else min(config.penalty_last_n, longest)
        if config.penalizes:
            sampler = samplers.penalties(
                model,
                window,
                config.repeat_penalty,
                config.frequency_penalty,
                config.presence_penalty,
            )
            self._penalties = SamplerChain([sampler])
        if config.grammar:
            self._grammar = SamplerChain([samplers.grammar(model, config.grammar)])
        after: list[Any] = []
        if config.top_p < 1:
            after.append(samplers.top_p(config.top_p))
        if config.min_p > 0:
            after.append(samplers.min_p(config.min_p))
        self._after = SamplerChain(after) if after else None
        self._reach = _NEGLIGIBLE * max(1.0, config.temperature)
        self._recent: deque[int] = deque(maxlen=window)
        # The prompt counts as text that came before, but the grammar is that of the answer alone.
        for token in prompt[-window:] if window else ():
            self._count(token)

    def accept(self, token: int) -> None:
        self._count(token)
        if self._grammar is not None and self._holds:
            self._grammar.accept(token)

    def _count(self, token: int) -> None:
        if self._penalties is not None:
            self._penalties.accept(token)
            self._recent.append(token)

    def candidates(self, logits: FloatArray, k: int) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """The k best tokens after biases, penalties and grammar, best first: ids and logits.

        Exact without filtering the whole vocabulary: penalties change only tokens of the recent window, biases only
        their own, so the k best afterwards are among this window and the k + |window| best before; a grammar only
        removes tokens, so k survivors of a pool of the best are the k best survivors of all. Fewer than k are returned
        where a grammar forbids all others that are not negligible beside the best.
        """
        self._holds = self._part() == ANSWER
        grammar = self._grammar if self._holds else None
        window = np.union1d(np.fromiter(self._recent, np.int32, len(self._recent)), self._biased)
        pool = k + len(window) + (_GRAMMAR_POOL if grammar is not None else 0)
        while True:
            ids = np.union1d(top_candidates(logits, pool), window).astype(np.int32)
            kept, values = ids, logits[ids]
            for chain in (self._biases, self._penalties, grammar):
                if chain is not None:
                    kept, values = chain.apply(kept, values)
            if grammar is None or len(kept) >= k + len(window) or pool >= len(logits):
                break
            if len(kept) == 0:
                pool = min(pool * _GROWTH, len(logits))
                continue
            wanted = int(np.count_nonzero(logits >= values.max() - self._reach))
            if wanted <= pool:
                break
            pool = wanted
        if len(kept) == 0:
            raise SiaError(
                "the grammar or the logit biases leave no token to choose; check that the root rule can be completed"
            )
        best = np.lexsort((kept, -values))[:k]
        return kept[best], values[best].astype(np.float64)

    def narrow(self, ids: IntArray, logits: npt.NDArray[np.float64]) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Candidates that top-p and min-p keep, in the same order."""
        if self._after is None:
            return ids, logits
        kept, _ = self._after.apply(ids, logits.astype(np.float32))
        mask = np.isin(ids, kept)
        return ids[mask], logits[mask]
