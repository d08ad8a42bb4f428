"""The loop against table models: exact tokens, order of calls, and what a Step reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sia_local.config import SamplingConfig, SiaConfig
from sia_local.errors import NumericError
from sia_local.generation.decode import Job, Loop, decode
from sia_local.reasoning import ANSWER
from sia_local.records import Float64, IntArray, Prompt, Reader, Request, Stats, Step
from sia_local.steering.choice import Filter
from sia_local.text import Shown

END = 3


class TableBase:
    """Logits depend on the last token only."""

    def __init__(self, table: Sequence[Sequence[float]], slots: int = 1):
        self.table = np.array(table, np.float32)
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.decodes = 0

    def best_slot(self, free: Sequence[int], tokens: Sequence[int]) -> int:
        return free[0]

    def begin(self, slot: int, tokens: Sequence[int]) -> int:
        common = [a == b for a, b in zip(self.held[slot], tokens, strict=False)]
        self.held[slot] = list(tokens)
        return common.index(False) if False in common else len(common)

    def logits(self, slots: Sequence[int]) -> list[np.ndarray]:
        self.decodes += 1
        return [self.table[self.held[s][-1]] for s in slots]

    def read_piece(self, slot: int) -> bool:
        return False

    def accept(self, slot: int, token: int) -> None:
        self.held[slot].append(token)


class TableValues:
    spread: float | None = 0.5
    max_candidates = 10
    engines: Sequence[Reader] = ()

    def __init__(self, values: Sequence[float]):
        self.values = np.array(values)
        self.left = 1 << 30
        self.calls: list[list[tuple[int, list[int]]]] = []
        self.also: list[list[int]] = []
        self.held: dict[int, list[int]] = {}

    def begin(self, slot: int, prompt: Prompt) -> None:
        self.held[slot] = list(prompt.tokens)

    def room(self, slot: int) -> int:
        return self.left

    def score(self, requests: Sequence[tuple[int, np.ndarray]], also: Sequence[int]) -> list[np.ndarray]:
        self.calls.append([(s, list(map(int, c))) for s, c in requests])
        self.also.append(list(also))
        return [self.values[c] for _, c in requests]

    def accept(self, slot: int, token: int) -> None:
        self.held[slot].append(token)


class Letters:
    """stop: the letter that ends a text."""

    part = ANSWER

    def __init__(self, stop: str = ""):
        self.stop, self.lasts = stop, list[bool]()

    def push(self, token: int, last: bool) -> Shown:
        self.lasts.append(last)
        return Shown("abcd"[token], "abcd"[token] == self.stop)


def job(
    config: SiaConfig, n: int = 6, seed: int = 0, id: int = 0, first: int = 0, trace: bool = True, stop: str = "",
    filter: Filter | None = None,
) -> Job:  # fmt: skip
    prompt = Prompt((first,))
    request = Request(prompt, config, max_tokens=n, seed=seed, trace=trace)
    return Job(request, prompt, ends=lambda t: t == END, sink=Letters(stop), filter=filter, id=id)


# Token 0 is unsure about what follows, token 1 is sure of 0, token 2 is sure of 1.
TABLE = [[0.0, 1.0, 1.0, -9.0], [9.0, 0.0, 0.0, -9.0], [0.0, 9.0, 0.0, -9.0], [0.0] * 4]
GREEDY = SamplingConfig(temperature=0.0)


def test_only_the_unsure_token_is_steered() -> None:
    base, values = TableBase(TABLE), TableValues([0.0, 0.0, 5.0, 0.0])
    steps = list(decode(base, values, [job(SiaConfig(k=3, threshold=0.5, sampling=GREEDY))]))
    assert [s.token for s in steps] == [2, 1, 0, 2, 1, 0]
    assert [s.steered for s in steps] == [True, False, False, True, False, False]
    assert "".join(s.text for s in steps) == "cbacba"
    assert values.calls == [[(0, [1, 2, 0])]] * 2
    assert [s.finish for s in steps] == [None] * 5 + ["length"]
    assert base.decodes == 6


@pytest.mark.parametrize(
    "config", [SiaConfig(k=3, gate="off"), SiaConfig(k=3, threshold=99.0), SiaConfig(k=3, gate="dense", beta=0.0)]
)
def test_beta_zero_a_high_threshold_and_off_give_the_same_tokens(config: SiaConfig) -> None:
    values = TableValues([3.0, 1.0, 5.0, 0.0])
    expected = [s.token for s in decode(TableBase(TABLE), None, [job(SiaConfig(k=3), n=80, seed=5)])]
    steps = list(decode(TableBase(TABLE), values, [job(config, n=80, seed=5)]))
    assert [s.token for s in steps] == expected
    assert len(values.calls) == (80 if config.gate == "dense" else 0)


def test_the_random_gate_does_not_disturb_the_sampling() -> None:
    off = [s.token for s in decode(TableBase(TABLE), None, [job(SiaConfig(k=3, gate="off"), n=60, seed=2)])]
    config = SiaConfig(k=3, gate="random", rate=0.5, beta=0.0)
    values = TableValues([1, 2, 3, 4])
    steered = [s.token for s in decode(TableBase(TABLE), values, [job(config, n=60, seed=2)])]
    assert steered == off and 20 < len(values.calls) < 40


def test_a_seed_repeats_and_another_differs() -> None:
    def run(seed: int) -> list[int]:
        return [s.token for s in decode(TableBase([[1.0] * 4] * 4), None, [job(SiaConfig(k=3), n=50, seed=seed)])]

    assert run(1) == run(1) != run(2)


def test_step_reports_candidates_and_kl() -> None:
    base, values = TableBase([[2.0, 1.0, 0.5, 0.0]]), TableValues([0.3, -0.2, 1.1, 0.7])
    (step,) = decode(base, values, [job(SiaConfig(k=4, gate="dense"), n=1)])
    assert step.candidates is not None
    np.testing.assert_allclose(
        step.candidates.p_steered, [0.5203964221, 0.1161161370, 0.2584212153, 0.1050662256], atol=1e-6
    )
    assert step.candidates.p_base.sum() == pytest.approx(1)
    # The golden KL to the base of six tokens, less what leaving out the last two costs.
    left_out = np.log((np.exp([2.0, 1.0, 0.5, 0.0]).sum() + np.exp(-1.0) + np.exp(-3.0)) / np.exp([2, 1, 0.5, 0]).sum())
    assert step.kl == pytest.approx(0.1157653556 - left_out, abs=1e-6)
    assert step.kl_truncation == pytest.approx(0, abs=1e-9)
    assert step.entropy == pytest.approx(1.1097670015, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_what_steering_spent_is_apart_from_what_temperature_and_truncation_cost(temperature: float) -> None:
    z, v = np.array([2.0, 1.0, 0.5, 0.0]), np.array([0.3, -0.2, 1.1, 0.7])
    sampling = SamplingConfig(temperature=temperature)

    def step(beta: float) -> Step:
        config = SiaConfig(k=3, gate="dense", beta=beta, sampling=sampling)
        return next(decode(TableBase([z.tolist()]), TableValues(v.tolist()), [job(config, n=1)]))

    plain, tilted = step(0.0), step(3.0)
    assert plain.kl > plain.kl_truncation > 0 == plain.kl_steering
    if temperature:
        p, q = np.exp(2 * z[:3]), np.exp(2 * (z + 3 * v)[:3])
        p, q = p / p.sum(), q / q.sum()
        assert tilted.kl_steering == pytest.approx((q * np.log(q / p)).sum())
    else:
        assert tilted.token == 2 and tilted.kl_steering == pytest.approx(2.0 - 0.5)
        assert tilted.kl - plain.kl == pytest.approx(tilted.kl_steering)


def test_calibrated_beta_counts_in_spreads_and_unscored_candidates_are_average() -> None:
    values = TableValues([0.3, -0.2, 1.1, 0.7])
    values.max_candidates = 2
    config = SiaConfig(k=4, gate="dense", beta=1.0, beta_unit="spread")
    (step,) = decode(TableBase([[2.0, 1.0, 0.5, 0.0]]), values, [job(config, n=1)])
    assert step.beta == 2.0 and step.candidates is not None
    assert values.calls == [[(0, [0, 1])]]
    scores = np.array([2.0, 1.0, 0.5, 0.0]) + 2.0 * np.array([0.3, -0.2, 0.05, 0.05])
    np.testing.assert_allclose(step.candidates.p_steered, np.exp(scores) / np.exp(scores).sum(), atol=1e-6)


def test_a_kept_tail_is_value_augmented_sampling() -> None:
    row = [2.0, 1.0, 0.5, 0.0, -1.0, -3.0]
    values = TableValues([0.3, -0.2, 1.1, 0.7, 9.0, 9.0])
    config = SiaConfig(k=4, gate="dense", center=True, tail=True)
    (step,) = decode(TableBase([row]), values, [job(config, n=1, first=0)])
    assert step.candidates is not None
    np.testing.assert_allclose(
        step.candidates.p_steered, [0.5027785573, 0.1121850601, 0.2496724426, 0.1015092400], atol=1e-6
    )
    assert step.kl_truncation == pytest.approx(0, abs=1e-9)


def test_several_sequences_score_in_one_call_and_slots_take_the_next_job() -> None:
    base, values = TableBase(TABLE, slots=2), TableValues([0.0, 0.0, 5.0, 0.0])
    config = SiaConfig(k=3, threshold=0.5, sampling=GREEDY)
    jobs = [job(config, n=3, id=0), job(config, n=2, id=1), job(config, n=2, id=2)]
    stats = Stats()
    for one in jobs:
        one.stats = stats
    steps = list(decode(base, values, jobs, slots=2))
    alone = [s.token for s in decode(TableBase(TABLE), values, [job(config, n=3)])]
    assert [s.token for s in steps if s.job == 0] == alone
    assert {s.job for s in steps} == {0, 1, 2} and stats.tokens == 7
    assert stats.base_ms > stats.prefill_ms > 0 < stats.value_ms
    assert values.calls[0] == [(0, [1, 2, 0]), (1, [1, 2, 0])]
    assert base.decodes <= 4 + 3


def test_end_of_generation_is_a_step_and_is_not_accepted() -> None:
    base = TableBase([[0.0, 0.0, 0.0, 9.0]])
    steps = list(decode(base, None, [job(SiaConfig(sampling=GREEDY))]))
    assert [(s.token, s.finish) for s in steps] == [(END, "eog")] and base.held[0] == [0]


def test_a_full_context_ends_the_text() -> None:
    steps = list(decode(TableBase([[9.0, 0, 0, 0]]), None, [job(SiaConfig(sampling=GREEDY), n=50)], n_ctx=4))
    assert len(steps) == 3 and steps[-1].finish == "context"


def test_the_room_is_that_of_whoever_has_less() -> None:
    row, config = [[9.0, 0, 0, 0]], SiaConfig(k=3, gate="dense", sampling=GREEDY)
    for left, n_ctx in ((2, 99), (99, 3)):
        values = TableValues([0.0] * 4)
        values.left = left
        steps = list(decode(TableBase(row), values, [job(config, n=50)], n_ctx=n_ctx))
        assert [s.finish for s in steps] == [None, "context"]


@pytest.mark.parametrize(
    ("stop", "n", "tokens", "finish"),
    [("b", 6, [2, 1], "stop"), ("b", 2, [2, 1], "stop"), ("a", 2, [2, 1], "length"), ("d", 6, [3], "eog")],
)
def test_a_stop_string_ends_a_text_unless_the_model_did(stop: str, n: int, tokens: list[int], finish: str) -> None:
    base, values = TableBase(TABLE), TableValues([0.0, 0.0, 5.0, 50.0 if finish == "eog" else 0.0])
    asked = job(SiaConfig(k=4, threshold=0.5, sampling=GREEDY), n, stop=stop)
    steps = list(decode(base, values, [asked]))
    assert [s.token for s in steps] == tokens and steps[-1].finish == finish
    assert base.held[0] == values.held[0] == [0, *tokens[:-1]]
    # A stop string is seen by the sink itself.
    assert isinstance(asked.sink, Letters) and asked.sink.lasts[-1] == (finish == "eog" or len(tokens) == n)


def test_a_shared_decode_takes_along_who_is_sure_and_goes_on() -> None:
    """Three texts are sure while the first is at a junction: one goes on, one ends, one had its last token."""
    table = [[0.0, 1.0, 1.0, -9.0], [9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
    base, values = TableBase(table, slots=4), TableValues([0.0, 0.0, 5.0, 0.0])
    config = SiaConfig(k=3, threshold=0.5, sampling=GREEDY)
    jobs = [job(config, id=i, first=first, n=n) for i, (first, n) in enumerate([(0, 6), (1, 6), (2, 6), (1, 1)])]
    loop = Loop(base, values, slots=4)
    for one in jobs:
        loop.admit(one)
    steps = {one.id: step for one, step in loop.round()}
    assert [steps[i].finish for i in range(4)] == [None, None, "eog", "length"]
    assert (values.calls, values.also) == ([[(0, [1, 2, 0])]], [[1]])
    assert sorted(loop.free) == [2, 3]


def test_a_cancelled_text_leaves_its_slot_and_the_others_alone() -> None:
    base = TableBase(TABLE, slots=2)
    loop, jobs = Loop(base, None, slots=2), [job(SiaConfig(k=3), id=i) for i in range(3)]
    for one in jobs[:2]:
        loop.admit(one)
    loop.round()
    loop.cancel([jobs[0], jobs[2]])
    assert loop.free == [0] and [one.id for one, _ in loop.round()] == [1]
    loop.admit(jobs[2])
    assert [one.id for one, _ in loop.round()] == [1, 2] and not loop.free
    # Its prompt is the first token of what the slot held.
    assert [one.stats.cached_tokens for one in jobs] == [0, 0, 1]


class NotTwice:
    """The last token is not taken again."""

    def __init__(self) -> None:
        self.last: int | None = None

    def candidates(self, logits: Any, k: int) -> tuple[IntArray, Float64]:
        ids = np.array([i for i in np.argsort(-logits, kind="stable") if i != self.last][:k], np.int32)
        return ids, logits[ids].astype(np.float64)

    def narrow(self, ids: IntArray, logits: Float64) -> tuple[IntArray, Float64]:
        return ids, logits

    def accept(self, token: int) -> None:
        self.last = token


def test_a_filter_hears_what_was_taken() -> None:
    row, config = [3.0, 2.0, 1.0, 0.0], SiaConfig(k=2, gate="off", sampling=GREEDY)
    steps = list(decode(TableBase([row] * 4), None, [job(config, n=4, filter=NotTwice())]))
    assert [s.token for s in steps] == [0, 1, 0, 1]
    assert steps[1].logprob == pytest.approx(2.0 - np.log(np.exp(row).sum()))


class Slow:
    """A reader that is behind for two pieces."""

    def __init__(self, left: int):
        self.left = left

    def behind(self, slot: int) -> bool:
        return self.left > 0

    def read_piece(self, slot: int) -> bool:
        self.left -= 1
        return self.behind(slot)


def test_a_junction_waits_for_values_and_is_looked_at_once() -> None:
    base, values = TableBase(TABLE), TableValues([0.0, 0.0, 5.0, 0.0])
    values.engines = [Slow(2)]
    loop = Loop(base, values)
    loop.admit(job(SiaConfig(k=3, threshold=0.5, sampling=GREEDY)))
    rounds = [[step.token for _, step in loop.round()] for _ in range(4)]
    assert rounds == [[], [], [2], [1]] and len(values.calls) == 1 and base.decodes == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_with_a_sentence(bad: float) -> None:
    with pytest.raises(NumericError, match="base model's logits at token 0"):
        list(decode(TableBase([[0.0, bad, 0.0, 0.0]]), None, [job(SiaConfig())]))
    with pytest.raises(NumericError, match="value model returned NaN"):
        list(decode(TableBase(TABLE), TableValues([0, bad, 0, 0]), [job(SiaConfig(gate="dense"))]))
