"""Junctions for distillation: the base writes, half of its texts steered by the teacher, and the teacher scores the
candidates wherever the base is unsure. Imports generation and values; the rest of this package needs neither."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError, DataError
from ..generation.decode import Job
from ..generation.sia import SIA
from ..llama.engine import Engine
from ..records import Float64, IntArray, Prompt, Step
from ..seeds import text_seed
from ..values.sources import Source
from .junctions import Junctions, JunctionWriter


@dataclass(frozen=True)
class CollectConfig:
    """k: candidates the teacher scores. threshold: top-k entropy, nats, from which on it is asked. texts: how many, the
    prompts in turn; every other one is steered at beta, in the teacher's spreads. max_tokens: of a text."""

    k: int = field(default=10, metadata={"help": "Candidates the teacher scores at a junction."})
    threshold: float = field(default=0.7, metadata={"help": "Ask the teacher from this entropy on, nats."})
    texts: int = field(default=1000, metadata={"help": "Texts to write; every other one is steered."})
    max_tokens: int = field(default=64, metadata={"help": "Tokens of a text."})
    beta: float = field(default=2.0, metadata={"help": "Strength in the steered half, in the teacher's spreads."})
    seed: int = field(default=0, metadata={"help": "The same gives the same texts."})

    def __post_init__(self) -> None:
        for name, least in (("k", 2), ("texts", 1), ("max_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")

    def steering(self, text: int) -> SiaConfig:
        """A text's configuration: the teacher is asked at every junction, and steers in every other text."""
        beta = self.beta if text % 2 else 0.0
        return SiaConfig(k=self.k, gate="entropy", threshold=self.threshold, beta=beta, beta_unit="spread")


@dataclass(frozen=True)
class Progress:
    texts: int
    of: int
    junctions: int


class _Recorder:
    """The teacher, with the base's hidden state kept of every junction it is asked about, in the order of asking."""

    def __init__(self, teacher: Source, base: Engine):
        self.teacher, self._base = teacher, base
        self.spread, self.max_candidates = teacher.spread, teacher.max_candidates
        self.name, self.engines, self.shares_base = teacher.name, teacher.engines, teacher.shares_base
        self.hidden: deque[Any] = deque()

    def begin(self, slot: int, prompt: Prompt) -> None:
        self.teacher.begin(slot, prompt)

    def room(self, slot: int) -> int:
        return self.teacher.room(slot)

    def accept(self, slot: int, token: int) -> None:
        self.teacher.accept(slot, token)

    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int]) -> Sequence[Any]:
        self.hidden.extend(self._base.hidden(slot).astype(np.float16) for slot, _ in requests)
        return self.teacher.score(requests, also)

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        return self.teacher.trajectory(slot, prompt, tokens)

    def close(self) -> None:
        """The SIA that loaded the teacher closes it."""


def collect(
    sia: SIA,
    prompts: Sequence[str],
    folder: Path,
    config: CollectConfig,
    settings: dict[str, Any],
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Fills `folder` with the junctions of `config.texts` texts; a second call goes on where the first was stopped.

    sia: a base that keeps hidden states (Setup.hidden_states) with the teacher as its value. settings: what else the
    junctions depend on, such as the teacher's file. Raises ConfigError for a folder begun with other settings.
    """
    if sia.value is None:
        raise ConfigError("there is no teacher; expected a SIA loaded with a value")
    if not prompts:
        raise DataError("there are no prompts to write texts for; give a file with one prompt a line")
    recorder = _Recorder(sia.value, sia.engine)
    writing = SIA(sia.model, sia.engine, recorder, sia.setup)
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    # More texts may be asked for later; everything else must stay.
    fixed = {name: value for name, value in vars(config).items() if name != "texts"}
    with JunctionWriter(folder, {**settings, **fixed, "prompts": digest}) as out:
        waiting = [text for text in range(config.texts) if text not in out.finished]
        done, found = config.texts - len(waiting), 0

        def jobs() -> Iterator[Job]:
            for text in waiting:
                prompt = prompts[text % len(prompts)]
                seed = text_seed(config.seed, str(text), 0)
                asked = {"max_tokens": config.max_tokens, "seed": seed, "trace": True}
                yield writing.job(prompt, config.steering(text), id=text, **asked)

        kept: dict[int, list[tuple[Any, Step]]] = {}
        for step in writing.run(jobs()):
            steps = kept.setdefault(step.job, [])
            if step.values_asked:
                steps.append((recorder.hidden.popleft(), step))
            if step.finish:
                junctions = _junctions(kept.pop(step.job), step.job % len(prompts), config.k)
                found += 0 if junctions is None else len(junctions)
                done += 1
                out.add(step.job, junctions)
                progress(Progress(done, config.texts, found))


def _junctions(steps: Sequence[tuple[Any, Step]], prompt: int, k: int) -> Junctions | None:
    full = [(h, c) for h, step in steps if (c := step.candidates) is not None and len(c.ids) == k]
    if not full:
        return None
    candidates = [c for _, c in full]
    return Junctions(
        hidden=np.stack([h for h, _ in full]),
        ids=np.stack([c.ids for c in candidates]).astype(np.int32),
        logits=np.stack([c.logits for c in candidates]).astype(np.float32),
        values=np.stack([c.values for c in candidates]).astype(np.float32),
        prompts=np.full(len(full), prompt, np.int32),
    )
