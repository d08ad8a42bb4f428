"""Junctions for distillation: the base writes, half of its texts steered by the teacher, and the teacher scores the
candidates wherever the base is unsure. Imports generation and values; the rest of this package needs neither."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError, DataError
from ..generation.decode import Job
from ..generation.sia import SIA
from ..records import Prompt, Step
from ..seeds import text_seed
from .junctions import Float32, Junctions, JunctionWriter, Transitions


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
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    # More texts may be asked for later; everything else must stay.
    fixed = {name: value for name, value in vars(config).items() if name != "texts"}
    with JunctionWriter(folder, {**settings, **fixed, "prompts": digest}) as out:
        waiting = [text for text in range(config.texts) if text not in out.finished]
        done, found = config.texts - len(waiting), 0

        read: dict[int, Prompt] = {}

        def jobs() -> Iterator[Job]:
            for text in waiting:
                prompt = prompts[text % len(prompts)]
                seed = text_seed(config.seed, str(text), 0)
                asked = {"max_tokens": config.max_tokens, "seed": seed, "trace": True}
                job = sia.job(prompt, config.steering(text), id=text, **asked)
                read[text] = job.prompt
                yield job

        kept: dict[int, list[Step]] = {}
        for step in sia.run(jobs()):
            kept.setdefault(step.job, []).append(step)
            if step.finish:
                text, steps, number = read.pop(step.job), kept.pop(step.job), step.job % len(prompts)
                hidden = hidden_states(sia, text, [s.token for s in steps[:-1]])
                junctions = _junctions(hidden, steps, number, config.k)
                found += 0 if junctions is None else len(junctions)
                done += 1
                out.add(step.job, junctions, _transitions(sia, hidden, text, steps, number))
                progress(Progress(done, config.texts, found))


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
    else:
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
