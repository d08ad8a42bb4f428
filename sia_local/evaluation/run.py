"""Runs prompts through arms: samples every text once, scores it, and survives interruptions and failing arms."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..config import SiaConfig
from ..errors import SiaError
from ..prompts import PromptItem
from ..rewards import Reward
from .arms import Arm
from .samples import Sample, SampleFile

if TYPE_CHECKING:
    from ..api import SIA
    from ..decode import Job

SCORE_BATCH = 16
FEW_PROMPTS = 30


@dataclass(frozen=True)
class Plan:
    """What to run. samples: texts a prompt in every arm; with best_of N, each of them is the best of N."""

    prompts: Sequence[PromptItem]
    arms: Sequence[Arm]
    config: SiaConfig
    max_tokens: int = 80
    samples: int = 1
    seed: int = 0
    raw: bool = False
    stop: Sequence[str] = ()

    def texts(self, arm: Arm) -> int:
        return len(self.prompts) * self.samples * arm.best_of


@dataclass
class Progress:
    """Where a run stands; `seconds_left` is None before the first text has finished."""

    arm: str
    arm_index: int
    arms: int
    done: int
    texts: int
    tokens_per_second: float
    seconds_left: float | None


@dataclass
class Outcome:
    failed: dict[str, str] = field(default_factory=dict)  # arm key -> sentence
    thresholds: dict[float, float] = field(default_factory=dict)  # rate -> nats
    interrupted: bool = False


def evaluate(
    plan: Plan,
    load: Callable[[str], SIA],
    store: SampleFile,
    reward: Reward,
    judge: Reward | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Fills `store` with every text the plan asks for and it does not hold yet.

    load: the SIA of a value source, called once a source. An arm that fails is noted in the outcome and the
    others go on. Ctrl-C keeps what is finished and says so in the outcome.
    """
    outcome = Outcome()
    opened: dict[str, SIA] = {}
    missing = {arm.key: _missing(plan, arm, store) for arm in plan.arms}
    clock = _Clock(sum(map(len, missing.values())))
    try:
        for index, arm in enumerate(plan.arms):
            todo = missing[arm.key]
            try:
                if arm.source not in opened and todo:
                    opened[arm.source] = load(arm.source)
                if todo:
                    threshold = _threshold(arm, plan, store, outcome)
                    sia = opened[arm.source]
                    finished = _run(sia, plan, arm, todo, arm.make_config(plan.config, threshold))
                    at = Progress(arm.series, index + 1, len(plan.arms), 0, len(todo), 0.0, None)
                    _collect(finished, store, reward, judge, lambda s, at=at: report(clock.tick(at, s)))  # type: ignore[misc]
                else:
                    _threshold(arm, plan, store, outcome)
            except Exception as error:  # whatever broke this arm, the others are still worth having
                sentence = str(error) if isinstance(error, SiaError) else f"{type(error).__name__}: {error}"
                outcome.failed[arm.key] = sentence
                clock.drop(len(_missing(plan, arm, store)))
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        for sia in opened.values():
            sia.close()
    return outcome


def _missing(plan: Plan, arm: Arm, store: SampleFile) -> list[tuple[PromptItem, int]]:
    return [
        (item, sample)
        for sample in range(plan.samples * arm.best_of)
        for item in plan.prompts
        if (old := store.samples.get((arm.key, item.id, sample))) is None or old.prompt != item.text
    ]


def _threshold(arm: Arm, plan: Plan, store: SampleFile, outcome: Outcome) -> float | None:
    """The entropy that the arm's rate of unsteered tokens exceeds: what `--gate entropy` would be set to."""
    if arm.family != "sparse" or arm.rate is None:
        return None
    wanted = {item.id for item in plan.prompts}
    entropies = [h for s in store.of_arm("off") if s.prompt_id in wanted for h in s.entropies or ()]
    if not entropies:
        return None
    return outcome.thresholds.setdefault(arm.rate, float(np.quantile(entropies, 1 - arm.rate)))


def _run(
    sia: SIA, plan: Plan, arm: Arm, todo: Sequence[tuple[PromptItem, int]], config: SiaConfig
) -> Iterator[Sample]:
    """Yields each text as it finishes. Flips, values and seconds are counted between finished texts: their sums
    are exact, single ones are not when several sequences run at once."""
    open_texts: dict[int, Sample] = {}

    def jobs() -> Iterator[Job]:
        for number, (item, sample) in enumerate(todo):
            open_texts[number] = Sample(arm.key, item.id, sample, item.text)
            yield sia.job(
                item.text,
                config,
                max_tokens=plan.max_tokens,
                seed=text_seed(plan.seed, item.id, sample),
                stop=plan.stop,
                raw=plan.raw,
                id=number,
            )

    keep_entropies = arm.family == "off"
    flips = asked = 0
    since = time.perf_counter()
    for step in sia.run(jobs()):
        text = open_texts[step.job]
        text.response += step.text
        text.steps += 1
        text.junctions += step.steered
        text.kl += step.kl
        text.kl_truncation += step.kl_truncation
        text.nll -= step.logprob
        if step.finish != "eog":
            text.tokens.append(step.token)
        if keep_entropies:
            text.entropies = [*(text.entropies or ()), round(step.entropy, 4)]
        if step.finish:
            now, stats = time.perf_counter(), sia.last_stats
            text.finish, text.seconds = step.finish, now - since
            text.flips, text.values_asked = stats.flips - flips, stats.values_asked - asked
            since, flips, asked = now, stats.flips, stats.values_asked
            yield open_texts.pop(step.job)


def _collect(
    finished: Iterator[Sample],
    store: SampleFile,
    reward: Reward,
    judge: Reward | None,
    tick: Callable[[Sample], None],
) -> None:
    """Scores and stores texts in small batches; what has finished is stored whatever ends the run."""
    waiting: list[Sample] = []
    try:
        for sample in finished:
            waiting.append(sample)
            tick(sample)
            if len(waiting) >= SCORE_BATCH:
                _score_and_store(waiting, store, reward, judge)
                waiting = []
    except BaseException:
        _score_and_store(waiting, store, reward, judge)
        raise
    _score_and_store(waiting, store, reward, judge)


def _score_and_store(samples: list[Sample], store: SampleFile, reward: Reward, judge: Reward | None) -> None:
    if not samples:
        return
    prompts, responses = [s.prompt for s in samples], [s.response for s in samples]
    for sample, value in zip(samples, reward(prompts, responses), strict=True):
        sample.reward = value
    if judge is not None:
        for sample, value in zip(samples, judge(prompts, responses), strict=True):
            sample.judge = value
    store.add(samples)


def text_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The same for a text in every arm, so that arms differ by steering and not by luck alone."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


class _Clock:
    """Time left from the time that the texts of this run took."""

    def __init__(self, texts: int):
        self.left = texts
        self.done = 0
        self.tokens = 0
        self.started = time.perf_counter()

    def tick(self, progress: Progress, sample: Sample) -> Progress:
        self.done += 1
        self.left -= 1
        self.tokens += sample.steps
        progress.done += 1
        spent = time.perf_counter() - self.started
        progress.tokens_per_second = self.tokens / spent if spent > 0 else 0.0
        progress.seconds_left = spent / self.done * self.left
        return progress

    def drop(self, texts: int) -> None:
        self.left -= texts
