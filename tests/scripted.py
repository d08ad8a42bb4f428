"""A writer that says the same four words to everything, for tests of what is around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tables import Values

from sia_local import SiaConfig
from sia_local.chat.commands import Commands
from sia_local.chat.session import Notice, Session
from sia_local.errors import ContextFullError, NumericError
from sia_local.generation.writing import Generation
from sia_local.llama.model import Model
from sia_local.records import Candidates, Message, Messages, Prompt, Request, Stats, Step
from sia_local.values.sources import Source

WORDS = ["sad", "happy", "dog", "ran", "the", "."]


class Scripted:
    """Answers `the happy dog .`, one word a token; the second word is a junction that turned from sad to happy.

    A prompt is as long as its words. Seeds and configurations of every call are kept.
    """

    n_ctx = 40

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at, self.says = fail_at, [4, 1, 2, 5]
        self.value: Source | None = Values(np.zeros(len(WORDS)))
        self.calls: list[tuple[list[Message], SiaConfig, int]] = []

    @property
    def model(self) -> Model:
        raise AssertionError("a scripted writer has no model")

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt:
        assert not isinstance(prompt, str)
        n = sum(len(m["content"].split()) for m in prompt)
        if n >= self.n_ctx:
            raise ContextFullError(f"the prompt is {n} tokens")
        return Prompt((0,) * n, tuple(prompt), prompt[-1]["content"])

    def write(self, request: Request) -> Generation:
        assert isinstance(request.prompt, Prompt) and request.prompt.messages is not None
        self.calls.append((list(request.prompt.messages), request.config, request.seed))
        stats = Stats()
        return Generation(request, self.steps(request, stats), stats)

    def steps(self, request: Request, stats: Stats) -> Iterator[Step]:
        if not self.says:
            ended = replace(self.step(3, 5, False), index=0, text="")
            stats.add(ended)
            yield ended
        for index, token in enumerate(self.says[: request.max_tokens]):
            if index == self.fail_at:
                raise NumericError("the base model's logits contain NaN")
            step = self.step(index, token, index == 1 and request.config.gate != "off")
            stats.add(step)
            yield step

    def step(self, index: int, token: int, steered: bool) -> Step:
        ids = np.array([0, 1] if token == 1 else [token, 3], np.int32)
        values = np.array([-0.35, 0.81]) if steered else np.full(2, np.nan)
        after = np.array([0.2, 0.8]) if steered else np.array([0.6, 0.4])
        candidates = Candidates(ids, np.log([0.6, 0.4]), values, np.array([0.54, 0.36]), after)
        finish = "eog" if index == 3 else None
        text = " ." if index == 3 else f" {WORDS[token]}"
        return Step(0, index, token, text, 1.25, steered, 0.2, 0.1, -0.5, 2.0, finish, candidates, flipped=steered)


def read(stream: Iterator[Step | Notice]) -> str:
    return "".join(f"[{e.text}]" if isinstance(e, Notice) else e.text for e in stream)


def commands(session: Session) -> Commands:
    return Commands(session, lambda token: f" {WORDS[token]}")
