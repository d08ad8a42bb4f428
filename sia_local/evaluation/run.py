"""Runs prompts through arms: samples every text once, scores it, and survives interruptions and failing arms."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from ..config import SiaConfig
from ..errors import ConfigError, ContextFullError, SiaError
from ..progress import Pace
from ..prompts import PromptItem
from ..records import Prompt
from ..rewards.load import Reward
from ..views.trace import config_dict
from ..workers import Executor, Here, silent
from .arms import Arm
from .metrics import threshold_of
from .plan import Plan, text_of
from .samples import Sample, SampleFile

if TYPE_CHECKING:
    from ..generation.decode import Job
    from ..generation.writing import Runner

SCORE_BATCH = 16
# Whole texts are read again where no text is being written; waiting for that leaves slots idle, so not too often.
READ_BATCH = 64
# What an arm decides; everything else is the same in all arms.
_OF_ARM = ("gate", "threshold", "rate", "beta")


@dataclass
class Progress:
    """Where a run stands; `seconds_left` is None while the pace is not known."""

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
    left_out: set[str] = field(default_factory=set)  # ids of prompts that do not fit as an arm reads them


@dataclass(frozen=True)
class _LeftOut:
    """A text that is not written: its prompt does not fit."""

    prompt_id: str
    sample: int
    error: ContextFullError


def evaluate(
    plan: Plan,
    load: Callable[[str], Runner],
    store: SampleFile,
    reward: Reward,
    judge: Reward | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    executor: Executor | None = None,
) -> Outcome:
    """Fills `store` with every text the plan asks for and it does not hold yet.

    load: what writes with a value source (`value`, `guide`), called when the arms change to it. An arm that fails is
    noted in the outcome and the others go on. A prompt that does not fit as the arm reads it, by a value model's own
    template, say, is left out; an arm left without any failed. Ctrl-C keeps what is finished and says so in the
    outcome. Texts whose scoring failed are stored, and scored by the next run. executor: where texts are made; where it
    is named, each arm loads anew.
    """
    outcome = Outcome()
    missing = {arm.key: _missing(plan, arm, store) for arm in plan.arms}
    clock = _Clock(sum(map(len, missing.values())))
    opened: tuple[str, Runner] | None = None
    try:
        for index, arm in enumerate(plan.arms):
            todo = missing[arm.key]
            try:
                config = _fixed_config(arm, plan, store, outcome)
                _score_the_unscored(arm, plan, store, reward, judge)
                if not todo:
                    continue
                read = _valued if arm.by_value else _told_apart if arm.instruction else None
                run = _run if read is None else partial(_run_and_read, read=read)
                clock.pace.pause()
                if executor is None and (opened is None or opened[0] != arm.source):
                    # One at a time: two value sources beside a large base may not fit.
                    if opened is not None:
                        opened[1].close()
                        opened = None
                    opened = arm.source, load(arm.source)
                at = Progress(arm.label, index + 1, len(plan.arms), 0, len(todo), 0.0, None)
                if opened is not None:
                    finished = run(opened[1], plan, arm, todo, config, clock.pace.part)
                else:
                    make = partial(ArmWorker, load, run, plan, arm, config)
                    finished = _elsewhere(executor or Here(), make, todo, clock.pace)
                texts = _fitting(finished, arm, store, outcome, clock.pace)
                _collect(texts, store, reward, judge, lambda s, at=at: report(clock.tick(at, s)))  # type: ignore[misc]
            except Exception as error:  # whatever broke this arm, the others are still worth having
                sentence = str(error) if isinstance(error, SiaError) else f"{type(error).__name__}: {error}"
                outcome.failed[arm.key] = sentence
                clock.pace.drop(len(_missing(plan, arm, store)))
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        if opened is not None:
            opened[1].close()
    return outcome


def _fitting(
    finished: Iterable[Sample | _LeftOut], arm: Arm, store: SampleFile, outcome: Outcome, pace: Pace
) -> Iterator[Sample]:
    """The texts; what is left out is noted. Raises ContextFullError, at the end, where the arm has no text at all."""
    errors, made = list[ContextFullError](), bool(store.of_arm(arm.key))
    for one in finished:
        if isinstance(one, Sample):
            made = True
            yield one
        else:
            errors.append(one.error)
            outcome.left_out.add(one.prompt_id)
    if errors and not made:
        raise errors[0]
    pace.drop(len(errors))


class ArmWorker:
    """A worker that writes texts of one arm."""

    def __init__(self, load: Callable[[str], Runner], run: Callable[..., Iterator[Sample | _LeftOut]], plan: Plan,
                 arm: Arm, config: SiaConfig):  # fmt: skip
        self.sia = load(arm.source)
        self._run = partial(run, self.sia, plan, arm, config=config, tick=silent)

    def close(self) -> None:
        self.sia.close()

    def run(
        self, items: Iterable[tuple[PromptItem, int]], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, Sample | _LeftOut]]:
        todo = list(items)
        places = {(item.id, sample): i for i, (item, sample) in enumerate(todo)}
        for text in self._run(todo=todo):
            yield places[text.prompt_id, text.sample], text


def _elsewhere(
    executor: Executor, make: Callable[[], ArmWorker], todo: Sequence[tuple[PromptItem, int]], pace: Pace
) -> Iterator[Sample | _LeftOut]:
    with executor.open(make) as pool:
        pace.together = pool.size
        for _, text in pool.map(todo):
            yield text


def _missing(plan: Plan, arm: Arm, store: SampleFile) -> list[tuple[PromptItem, int]]:
    return [
        (item, sample)
        for sample in range(plan.samples * arm.best_of)
        for item in plan.prompts
        if (old := store.samples.get((arm.key, item.id, sample))) is None or old.prompt != item.text
    ]


def _fixed_config(arm: Arm, plan: Plan, store: SampleFile, outcome: Outcome) -> SiaConfig:
    """The arm's settings: those its stored texts were made with, so that no arm mixes two thresholds.

    A sparse arm's threshold is what its rate of the unsteered tokens exceeds: what `--gate entropy` would be given.
    Where the plan has no unsteered arm its gate holds the rate instead; where that arm failed, SiaError.
    """
    threshold = None
    if arm.by_entropy and arm.rate is not None:
        name, off = f"threshold {arm.rate:g}", Arm("off")
        if name in store.fixed:
            threshold = store.fixed[name]
        elif not _missing(plan, off, store):
            wanted = {item.id for item in plan.prompts}
            entropies = [h for s in store.of_arm(off.key) if s.prompt_id in wanted for h in s.entropies or ()]
            threshold = store.fix(name, threshold_of(entropies, arm.rate, plan.request.config.steer))
        elif off in plan.arms:
            raise SiaError(
                "it waits for the unsteered arm, whose tokens give its threshold and which lacks texts; "
                "run the command again"
            )
        if threshold is not None:
            outcome.thresholds[arm.rate] = threshold
    config = arm.make_config(plan.request.config, threshold)
    own = _OF_ARM if arm.kl_per_token is None else (*_OF_ARM, "kl_per_token")
    made = {name: value for name, value in config_dict(config).items() if arm.config is not None or name in own}
    if not arm.steers:
        made = {"gate": config.gate, **({"instruction": arm.instruction} if arm.instruction else {})}
    if store.fix(arm.key, made, anew=not store.of_arm(arm.key)) != json.loads(json.dumps(made)):
        raise ConfigError(
            f"the arm {arm.key} has texts made with other settings in '{store.path}'; choose another --out folder, "
            "or --fresh to start over"
        )
    return config


def _run(
    sia: Runner,
    plan: Plan,
    arm: Arm,
    todo: Sequence[tuple[PromptItem, int]],
    config: SiaConfig,
    tick: Callable[[], None],
) -> Iterator[Sample | _LeftOut]:
    """Yields each text as it finishes; its seconds count from the one before, so only their sum means something. Last
    come those whose prompts do not fit."""
    open_texts: dict[int, Sample] = {}
    too_long: list[_LeftOut] = []

    def leave_out(number: int, error: ContextFullError) -> None:
        open_texts.pop(number, None)
        item, sample = todo[number]
        too_long.append(_LeftOut(item.id, sample, error))

    def jobs() -> Iterator[Job]:
        for number, (item, sample) in enumerate(todo):
            try:
                job = sia.job(text_of(plan.request, item, sample, config, arm.instruction), id=number)
            except ContextFullError as error:
                leave_out(number, error)
                continue
            open_texts[number] = Sample(arm=arm.key, prompt_id=item.id, sample=sample, prompt=item.text)
            job.left_out = partial(leave_out, number)
            yield job

    keep_entropies = arm.family == "off"
    since = time.perf_counter()
    for step in sia.run(jobs()):
        tick()
        text = open_texts[step.job]
        text.add(step)
        if keep_entropies and config.acts_on(step.part):
            text.entropies = text.entropies or []
            text.entropies.append(round(step.entropy, 4))
        if step.finish:
            now = time.perf_counter()
            text.seconds = now - since
            since = now
            yield open_texts.pop(step.job)
    yield from too_long


def _run_and_read(
    sia: Runner,
    plan: Plan,
    arm: Arm,
    todo: Sequence[tuple[PromptItem, int]],
    config: SiaConfig,
    tick: Callable[[], None],
    read: Callable[[Runner, Plan, Sample], None],
) -> Iterator[Sample | _LeftOut]:
    """As `_run`, each text read once more. Raises ConfigError, before any is written, where no value can be read."""
    if arm.by_value:
        from ..generation.best_of import check_criterion

        check_criterion(sia.value, arm.best_of, "value", None)
    for at in range(0, len(todo), READ_BATCH):
        for text in list(_run(sia, plan, arm, todo[at : at + READ_BATCH], config, tick)):
            if isinstance(text, Sample):
                started = time.perf_counter()
                try:
                    read(sia, plan, text)
                except ContextFullError as error:
                    text = _LeftOut(text.prompt_id, text.sample, error)
                else:
                    text.seconds += time.perf_counter() - started
            yield text


def _valued(sia: Runner, plan: Plan, text: Sample) -> None:
    """Notes the text's value as the source of values means it."""
    text.value = sia.value_of(_prompt(sia, plan, text), text.all_tokens)


def _told_apart(sia: Runner, plan: Plan, text: Sample) -> None:
    """Notes how far an instruction moved the text from the base that was not told it.

    log P(text | with it) - log P(text | without): its mean over texts is the KL of the one from the other.
    """
    told = text.nll
    logp = sia.log_likelihoods(_prompt(sia, plan, text), text.all_tokens, SiaConfig(gate="off"))
    text.nll = -float(logp.sum())
    text.kl_steering = text.nll - told


def _prompt(sia: Runner, plan: Plan, text: Sample) -> Prompt:
    return sia.prompt_of(replace(plan.request, prompt=text.prompt))


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
                batch, waiting = waiting, []
                _score_and_store(batch, store, reward, judge)
    finally:
        _score_and_store(waiting, store, reward, judge)


def _score_the_unscored(arm: Arm, plan: Plan, store: SampleFile, reward: Reward, judge: Reward | None) -> None:
    """What an earlier run stored while a reward failed."""
    waiting = [
        text
        for text in plan.texts_of(store.of_arm(arm.key))
        if text.reward is None or (judge is not None and text.judge is None)
    ]
    for at in range(0, len(waiting), SCORE_BATCH):
        _score_and_store(waiting[at : at + SCORE_BATCH], store, reward, judge)


def _score_and_store(samples: list[Sample], store: SampleFile, reward: Reward, judge: Reward | None) -> None:
    if not samples:
        return
    prompts, responses = [s.prompt for s in samples], [s.text for s in samples]
    try:
        for sample, value in zip(samples, reward(prompts, responses), strict=True):
            sample.reward = value
        if judge is not None:
            for sample, value in zip(samples, judge(prompts, responses), strict=True):
                sample.judge = value
    finally:
        store.add(samples)


class _Clock:
    """Time left from the pace of this run, loading aside."""

    def __init__(self, texts: int):
        self.pace = Pace(texts)
        self.tokens = 0

    def tick(self, progress: Progress, sample: Sample) -> Progress:
        self.pace.item(parts=sample.steps)
        self.tokens += sample.steps
        progress.done += 1
        progress.tokens_per_second = self.pace.rate * self.tokens / max(1.0, self.pace.counted)
        progress.seconds_left = self.pace.left()
        return progress
