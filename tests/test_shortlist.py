"""A Q-head's shortlist: who scores what, and that all of it is the value model and one of it the Q-head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loading import EXACT, source, traced
from tables import Values

from sia_local import SIA, SiaConfig
from sia_local.errors import ConfigError
from sia_local.evaluation.cost import value_rows
from sia_local.evaluation.samples import Sample
from sia_local.values.shortlist import Shortlisted

LOGITS = np.array([3.0, 2.0, 1.0, 0.0, -9.0], np.float32)


class Asked(Values):
    """Values by token id; records what was asked."""

    def __init__(self, values: Sequence[float], spread: float | None = None, most: int = 255):
        super().__init__(np.array(values))
        self.spread, self.max_candidates = spread, most
        self.asked: list[tuple[list[tuple[int, list[int]]], list[int]]] = []

    def score(self, requests: Sequence[tuple[int, np.ndarray]], also: Sequence[int]) -> list[np.ndarray]:
        self.asked.append(([(slot, ids.tolist()) for slot, ids in requests], list(also)))
        return super().score(requests, also)


def test_the_shortlist_is_scored_by_the_second_and_keeps_the_mean_of_the_first() -> None:
    quick, dear = Asked([0, 0.5, 0, 1.0, 9], spread=0.5), Asked([5, 7, 100, 6, 100], spread=2.0)
    base: Any = SimpleNamespace(logits=lambda slots: [LOGITS for _ in slots])
    both = Shortlisted(quick, dear, 2, base)
    # z + 2 Q / 0.5 is 3, 4, 1, 4: tokens 1 and 3, in the order in which they came.
    first, second = both.score([(4, np.array([0, 1, 2, 3], np.int32)), (7, np.array([2], np.int32))], also=[9])
    assert dear.asked == [([(4, [1, 3]), (7, [2])], [9])] and quick.asked[0][1] == []
    # Means of the two are 6.5 and 0.75.
    assert first.tolist() == [0, 1.25, 0, 0.25] and second.tolist() == [0]
    assert (both.spread, both.max_candidates) == (2.0, 255)
    with pytest.raises(ConfigError, match="a shortlist of 3; expected 1 to 2 candidates"):
        Shortlisted(quick, Asked([0], most=2), 3, base)


@pytest.mark.parametrize("kind", ["merged", "head"])
def test_all_of_it_is_the_value_model_and_one_is_the_q_head(make_gguf: Callable[..., Path], kind: str) -> None:
    base, q, value = make_gguf("base"), make_gguf("qhead"), make_gguf(kind, seed=0)
    config = SiaConfig(k=5, gate="dense", beta=0.3)

    def tilts(files: Any, **changes: Any) -> tuple[list[int], np.ndarray]:
        with SIA.load(base, files, setup=EXACT, **changes) as sia:
            steps = list(sia.generate("a dog", config, max_tokens=8, seed=3, trace=True))
            assert len(source(sia).engines) == (kind == "merged" and value in files)
            return [s.token for s in steps], np.stack([traced(s).p_steered for s in steps])

    for few, alone in ((5, value), (1, q)):
        # float32 rounds by the shape of a batch.
        tokens, tilted = tilts([q, value], shortlist=few)
        expected, same = tilts([alone], max_candidates=5)
        assert tokens == expected
        np.testing.assert_allclose(tilted, same, atol=1e-4)


def test_refused_shortlists(make_gguf: Callable[..., Path]) -> None:
    base, q, value = make_gguf("base"), make_gguf("qhead"), make_gguf("merged", seed=0)
    wrong: list[Any] = [[q], [value, q], [q, (value, 0.5)], [q, value, q]]
    for files in wrong:
        with pytest.raises(ConfigError, match="expected a Q-head, then what scores the candidates"):
            SIA.load(base, files, setup=EXACT, shortlist=2)
    with pytest.raises(ConfigError, match="shortlist is -1; expected 0 or more"):
        SIA.load(base, None, shortlist=-1)


def test_rows_of_a_shortlist() -> None:
    text = Sample(arm="a", prompt_id="0", sample=0, prompt="p", steps=80, junctions=16, values_asked=160)
    assert value_rows(text, ["value-qhead", "value"]) == 160 - 16 + 80
    assert value_rows(text, ["value-qhead:3", "value:3"]) == 48 - 16 + 80
    assert value_rows(text, ["value-qhead:3", "value-head:3"]) == 48 - 16
