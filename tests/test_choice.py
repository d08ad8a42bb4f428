"""One sequence's decisions, row by row: what is asked for, what a gate is told, what budgets leave."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sia_local import SiaConfig
from sia_local.config import MOST_BETA
from sia_local.errors import ConfigError
from sia_local.reasoning import ANSWER, REASONING
from sia_local.records import Float64, IntArray
from sia_local.steering.choice import Choice
from sia_local.steering.entropy import log_partition
from sia_local.values.guides import check_weight

Z = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
V = np.array([0.3, -0.2, 1.1, 0.7])
SURE = np.array([9.0, 0.0, 0.0, 0.0, 0.0, 0.0])


def choice(most: int = 20, filter: Any = None, seed: int = 0, **config: Any) -> Choice:
    return Choice(SiaConfig(**config), seed, SimpleNamespace(spread=None, max_candidates=most), filter)


@pytest.mark.parametrize(
    ("k", "min_share", "row_group", "most", "asked"),
    [
        (6, 0.0, 1, 20, 6),
        (6, 0.2, 1, 20, 3),  # shares of the best: 1, 0.37, 0.22, 0.14, 0.05, 0.007
        (6, 0.3, 1, 20, 2),
        (6, 0.5, 1, 20, 2),  # one alone could not be compared
        (6, 0.2, 4, 20, 4),
        (6, 0.1, 4, 20, 4),
        (6, 0.04, 4, 20, 6),  # there are no eight
        (6, 0.0, 1, 5, 5),
        (6, 0.2, 4, 3, 3),
        (1, 0.0, 1, 20, 0),
    ],
)
def test_the_likely_candidates_are_asked_for_in_whole_groups(
    k: int, min_share: float, row_group: int, most: int, asked: int
) -> None:
    look = choice(most, gate="dense", k=k, min_share=min_share, row_group=row_group).look(Z)
    assert look.asked.tolist() == list(range(asked)) and look.asks == (asked > 0)


def test_entropy_is_over_the_candidates_or_over_all_tokens() -> None:
    found = {name: choice(k=4, entropy=name).look(Z).entropy for name in ("topk", "full")}
    assert found == {"topk": pytest.approx(1.1097670015), "full": pytest.approx(1.2267832955)}


def test_a_strength_that_floats_cannot_hold_is_refused_and_the_strongest_takes_the_best() -> None:
    for beta in (1e308, -1e31, math.inf, math.nan):
        with pytest.raises(ConfigError, match=rf"beta is {re.escape(str(beta))}; expected -1e\+30 to 1e\+30"):
            SiaConfig(beta=beta)
    with pytest.raises(ConfigError, match=r"the weight of tone is 1e\+308; expected -1e\+30 to 1e\+30"):
        check_weight(1e308, "tone")
    # The widest values and the smallest spread that a file can hold.
    for beta, best in ((MOST_BETA, 2), (-MOST_BETA, 1)):
        source = SimpleNamespace(spread=float(np.finfo(np.float32).smallest_subnormal), max_candidates=4)
        one = Choice(SiaConfig(gate="dense", beta=beta, beta_unit="spread", k=4), 0, source)
        verdict = one.weigh(one.look(Z), V * np.finfo(np.float32).max / 2)
        assert verdict.probabilities.tolist() == np.eye(4)[best].tolist()
        assert math.isfinite(verdict.kl) and np.isfinite(verdict.scores).all()


def test_a_rise_is_over_the_token_before_whether_that_was_steered_or_not() -> None:
    one = choice(k=4, gate="ratio", ratio=2.0)
    looks = [one.look(row) for row in (Z, SURE, Z, Z, SURE, Z)]
    assert [look.asks for look in looks] == [False, False, True, False, False, True]
    assert [look.moment.previous for look in looks] == [None, *(look.entropy for look in looks[:-1])]


def test_a_part_that_is_not_steered_counts_nowhere() -> None:
    one = choice(k=4, gate="first-n", first_n=1, steer=ANSWER)
    looks = [one.look(Z, part) for part in (REASONING, REASONING, ANSWER, ANSWER, REASONING)]
    assert [look.asks for look in looks] == [False, False, True, False, False]
    assert [look.place for look in looks] == [0, 0, 1, 2, 0]
    assert [look.index for look in looks] == [0, 1, 2, 3, 4]


def test_budgets_a_token_are_saved_up_and_the_whole_text_has_its_own() -> None:
    one, spent = choice(k=4, gate="entropy", threshold=1.0, beta=9.0, kl_per_token=0.05, kl_total=0.18), []
    for row in (Z, Z, SURE, Z, Z):
        look = one.look(row)
        one.weigh(look, V if look.asks else None)
        spent.append(one.spent)
    assert spent == pytest.approx([0.05, 0.1, 0.1, 0.18, 0.18], abs=1e-3) and max(spent) <= 0.18 + 1e-9


def test_a_favourite_that_changed_is_told() -> None:
    told = []
    for beta, values in ((3.0, V), (0.5, V), (3.0, None)):
        one = choice(k=4, gate="dense", beta=beta)
        verdict = one.weigh(one.look(Z), values)
        told.append((verdict.flipped, int(np.argmax(verdict.probabilities))))
    assert told == [(True, 2), (False, 0), (False, 0)]


def test_who_was_not_scored_is_average_and_a_kept_tail_is_as_the_base_has_it() -> None:
    one = choice(2, k=4, gate="dense", tail=True)
    verdict = one.weigh(one.look(Z), V[:2])
    np.testing.assert_allclose(verdict.scores - Z, [0.3, -0.2, 0.05, 0.05, 0.0, 0.0], atol=1e-12)


class Penalty:
    """Token 0 is two nats less likely; only the best `kept` are left."""

    def __init__(self, kept: int = 4):
        self.kept = kept

    def candidates(self, logits: Any, k: int) -> tuple[IntArray, Float64]:
        changed = logits.astype(np.float64) - 2.0 * (np.arange(len(logits)) == 0)
        ids = np.argsort(-changed, kind="stable")[:k].astype(np.int32)
        return ids, changed[ids]

    def narrow(self, ids: IntArray, logits: Float64) -> tuple[IntArray, Float64]:
        return ids[: self.kept], logits[: self.kept]

    def accept(self, token: int) -> None: ...


def test_behind_a_filter_what_is_chosen_changes_and_what_the_base_said_stays() -> None:
    look = choice(k=5, filter=Penalty(), gate="dense").look(Z)
    assert look.ids.tolist() == look.asked.tolist() == [1, 2, 0, 3] and look.logits.tolist() == [1.0, 0.5, 0.0, 0.0]
    np.testing.assert_allclose(look.base_logprobs, Z[[1, 2, 0, 3]] - log_partition(Z))
    # Entropy is measured before a filter narrows.
    five = np.exp([1.0, 0.5, 0.0, 0.0, -1.0])
    assert look.entropy == pytest.approx(-(five / five.sum() * np.log(five / five.sum())).sum())


def test_a_rate_of_gain_counts_the_tokens_without_a_choice_too() -> None:
    rng, penalty = np.random.default_rng(0), Penalty()
    one = choice(k=4, filter=penalty, gate="gain", rate=0.2)
    steered = []
    for i in range(1000):
        penalty.kept = 4 if i % 2 else 1
        look = one.look(Z)
        assert look.asks == bool(i % 2)
        values = rng.standard_normal(4) * rng.exponential(1.0) if look.asks else None
        steered.append(one.weigh(look, values).steered)
    assert np.mean(steered) == pytest.approx(0.2, abs=0.01)


def test_what_a_gate_draws_is_not_what_the_sampling_draws() -> None:
    one = choice(k=4, gate="random", rate=0.5, seed=3)
    opened = [one.look(Z).asks for _ in range(64)]
    assert opened != (np.random.default_rng(3).random(64) < 0.5).tolist() and 16 < sum(opened) < 48
