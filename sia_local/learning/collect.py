"""Junctions for distillation: the base writes, half of its texts steered by the teacher, and the teacher scores the
candidates wherever the base is unsure. Imports generation and values; the rest of this package needs neither."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Setup, SiaConfig
from ..errors import ConfigError, ContextFullError, DataError
from ..generation.decode import Job
from ..generation.sia import SIA
from ..progress import Pace, left
from ..records import Prompt, Step
from ..seeds import text_seed
from ..values.sources import Specs
from ..workers import Here, Pool, silent
from .junctions import Float32, Junctions, JunctionWriter, Transitions


@dataclass(frozen=True)
class CollectConfig:
    """k: candidates the teacher scores. threshold: top-k entropy, nats, from which on it is asked. texts: how many, the
    prompts in turn; every other one is steered at beta, in the teacher's spreads. max_tokens: of a text. raw: prompts
    are plain text to continue."""

    k: int = field(default=10, metadata={"help": "Candidates the teacher scores at a junction."})
    threshold: float = field(default=0.7, metadata={"help": "Ask the teacher from this entropy on, nats."})
    texts: int = field(default=1000, metadata={"help": "Texts to write; every other one is steered."})
    max_tokens: int = field(default=64, metadata={"help": "Tokens of a text."})
    beta: float = field(default=2.0, metadata={"help": "Strength in the steered half, in the teacher's spreads."})
    seed: int = field(default=0, metadata={"help": "The same gives the same texts."})
    raw: bool = field(default=False, metadata={"help": "Continue prompts as plain text, without the chat template."})

    def __post_init__(self) -> None:
        for name, least in (("k", 2), ("texts", 1), ("max_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.threshold > (most := math.log(self.k)):
            raise ConfigError(
                f"threshold is {self.threshold:g}; that of k = {self.k} candidates is at most {most:.2f} nats, so no "
                "token would be a junction: lower the threshold, or raise k"
            )

    @property
    def decisive(self) -> dict[str, Any]:
        """What the junctions of a text depend on, by name; not how many texts there are. `raw` where it is set."""
        return {name: value for name, value in vars(self).items() if name != "texts" and (name != "raw" or value)}

    def steering(self, text: int) -> SiaConfig:
        """A text's configuration: the teacher is asked at every junction, and steers in every other text."""
        beta = self.beta if text % 2 else 0.0
        return SiaConfig(k=self.k, gate="entropy", threshold=self.threshold, beta=beta, beta_unit="spread")


@dataclass(frozen=True)
class Progress:
    """texts: written, or left out, since their prompts do not fit the context. left: seconds, None while nothing can be
    said."""

    texts: int
    of: int
    junctions: int
    left: float | None
    left_out: int = 0

    def __str__(self) -> str:
        out = f" ({self.left_out} left out: their prompts do not fit the context)" if self.left_out else ""
        return f"{self.texts} of {self.of} texts{out}, {self.junctions} junctions, {left(self.left)}"


@dataclass(frozen=True)
class Wanted:
    """Text number `text`, which decides its seed and whether it is steered, of prompt number `number`: the first of
    equal ones, so that none of them is held out while another is learned from."""

    text: int
    number: int
    prompt: str


@dataclass(frozen=True)
class Collected:
    """What a text of `steps` tokens gave."""

    junctions: Junctions | None
    taken: Transitions | None
    steps: int


class Tally:
    """Counts texts as they come. done: how many of `of` came before, together: workers; see Pace."""

    def __init__(self, of: int, done: int = 0, together: int = 1):
        self._pace, self._junctions = Pace(of, done, together), 0
        self.part = self._pace.part
        self.too_long: list[ContextFullError] = []

    def add(self, made: Collected | ContextFullError) -> Progress:
        pace = self._pace
        if isinstance(made, ContextFullError):
            self.too_long.append(made)
            pace.skip()
        else:
            self._junctions += 0 if made.junctions is None else len(made.junctions)
            pace.item(parts=made.steps)
        return Progress(pace.done, pace.total, self._junctions, pace.left(), len(self.too_long))


def collect(
    sia: SIA,
    prompts: Sequence[str],
    folder: Path,
    config: CollectConfig,
    settings: dict[str, Any],
    progress: Callable[[Progress], None] = lambda _: None,
    anew: bool = False,
) -> None:
    """gather() with a base that keeps hidden states (Setup.hidden_states) and the teacher as its value."""
    with Here().open(lambda: Collector(sia, config, owns=False)) as pool:
        gather(pool, prompts, folder, config, settings, progress, anew)


def gather(
    pool: Pool[Wanted, Collected | ContextFullError],
    prompts: Sequence[str],
    folder: Path,
    config: CollectConfig,
    settings: dict[str, Any],
    progress: Callable[[Progress], None] = lambda _: None,
    anew: bool = False,
) -> None:
    """Fills `folder` with the junctions of `config.texts` texts; a second call goes on where the first was stopped.

    pool: of Collectors. settings: what else the junctions depend on, such as the teacher's file. Texts whose prompts do
    not fit the context are left out. Raises ConfigError for a folder begun with other settings, unless `anew` empties
    it, and ContextFullError when no prompt fits.
    """
    if not prompts:
        raise DataError("there are no prompts to write texts for; give a file with one prompt a line")
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    # More texts may be asked for later; everything else must stay.
    with JunctionWriter(folder, {**settings, **config.decisive, "prompts": digest}, anew=anew) as out:
        waiting = [text for text in range(config.texts) if text not in out.finished]
        next_text, tally = 0, Tally(config.texts, config.texts - len(waiting), pool.size)
        ready: dict[int, Collected | ContextFullError] = {}

        def store(place: int) -> None:
            if isinstance(made := ready.pop(place), Collected):
                out.add(waiting[place], made.junctions, made.taken)

        try:
            first = {prompt: number for number, prompt in reversed(list(enumerate(prompts)))}
            wanted = [Wanted(text, first[one], one) for text in waiting for one in [prompts[text % len(prompts)]]]
            for place, made in pool.map(wanted, tally.part):
                # In the order of the texts, not as they were finished: what is learned depends on it.
                ready[place] = made
                while next_text in ready:
                    store(next_text)
                    next_text += 1
                progress(tally.add(made))
        finally:
            for place in sorted(ready):
                store(place)
        if tally.too_long and not out.finished:
            raise tally.too_long[0]


class Collector:
    """A worker that writes texts and asks the teacher, `sia.value`, at their junctions. owns: it closes the SIA; taken:
    the teacher says what the tokens between junctions gained, too."""

    def __init__(self, sia: SIA, config: CollectConfig, owns: bool = True, taken: bool = True):
        if sia.value is None:
            raise ConfigError("there is no teacher; expected a SIA loaded with a value")
        self.sia, self.config, self._owns, self._taken = sia, config, owns, taken

    @classmethod
    def load(cls, base: str | os.PathLike[str], teacher: Specs, setup: Setup, config: CollectConfig) -> Collector:
        return cls(SIA.load(base, teacher, setup, hidden_states=True, max_candidates=config.k), config)

    def close(self) -> None:
        if self._owns:
            self.sia.close()

    def run(
        self, items: Iterable[Wanted], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, Collected | ContextFullError]]:
        sia, config = self.sia, self.config
        read: dict[int, tuple[Wanted, Prompt]] = {}
        too_long: list[tuple[int, ContextFullError]] = []

        def jobs() -> Iterator[Job]:
            for place, one in enumerate(items):
                seed = text_seed(config.seed, str(one.text), 0)
                asked = {"max_tokens": config.max_tokens, "seed": seed, "trace": True, "raw": config.raw}
                try:
                    job = sia.job(one.prompt, config.steering(one.text), id=place, **asked)
                except ContextFullError as error:
                    too_long.append((place, error))
                    continue
                read[place] = one, job.prompt
                job.left_out = partial(leave_out, place)
                yield job

        def leave_out(place: int, error: ContextFullError) -> None:
            del read[place]
            too_long.append((place, error))

        kept: dict[int, list[Step]] = {}
        for step in sia.run(jobs()):
            tick()
            # At once: the texts behind it wait for it before they are stored.
            while too_long:
                yield too_long.pop()
            kept.setdefault(step.job, []).append(step)
            if step.finish:
                (one, prompt), steps = read.pop(step.job), kept.pop(step.job)
                hidden = hidden_states(sia, prompt, [s.token for s in steps[:-1]])
                junctions = _junctions(hidden, steps, one.number, config.k)
                taken = _transitions(sia, hidden, prompt, steps, one.number) if self._taken else None
                yield step.job, Collected(junctions, taken, len(steps))
        yield from too_long


def hidden_states(sia: SIA, prompt: Prompt, tokens: Sequence[int]) -> Float32:
    """The base's hidden state behind a prompt and after each of `tokens`, float32 [n + 1, n_embd]."""
    *before, last = prompt.tokens
    with sia.desk.slot() as slot:
        return np.concatenate([rows.copy() for rows in sia.engine.trail(slot, before, [last, *tokens], hidden=True)])


def _transitions(sia: SIA, hidden: Float32, prompt: Prompt, steps: Sequence[Step], number: int) -> Transitions:
    """The tokens at which no candidates were scored, with what the teacher gained by each; the first or the last token
    of the text is not known. What a junction says of all its candidates needs no second, noisier mention."""
    assert sia.value is not None
    tokens = np.array([step.token for step in steps], np.int32)
    gains = np.full(len(tokens), np.nan)
    if (before := sia.value.levels(hidden)) is not None:
        gains[:-1] = np.diff(before)
    elif sia.value.rates_texts:
        with sia.desk.slot() as slot:
            gains[1:] = np.diff(sia.value.trajectory(slot, prompt, tokens.tolist()))
    known = np.isfinite(gains) & [not step.values_asked for step in steps]
    n = int(known.sum())
    return Transitions(
        hidden[known].astype(np.float16), tokens[known], gains[known].astype(np.float32), np.full(n, number, np.int32)
    )


def _junctions(hidden: Float32, steps: Sequence[Step], number: int, k: int) -> Junctions | None:
    asked = [
        (h, step.candidates)
        for h, step in zip(hidden, steps, strict=True)
        if step.values_asked and step.candidates is not None and len(step.candidates.ids) == k
    ]
    if not asked:
        return None
    return Junctions(
        hidden=np.stack([h for h, _ in asked]).astype(np.float16),
        ids=np.stack([c.ids for _, c in asked]).astype(np.int32),
        logits=np.stack([c.logits for _, c in asked]).astype(np.float32),
        values=np.stack([c.values for _, c in asked]).astype(np.float32),
        prompts=np.full(len(asked), number, np.int32),
    )
