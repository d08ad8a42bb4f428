"""A model and its values as tables, behind what evaluation and calibration ask of a SIA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sia_local.config import SiaConfig
from sia_local.generation.decode import Job, Loop
from sia_local.generation.writing import Desk, Run, Stop
from sia_local.llama.engine import Engine
from sia_local.prompts import PromptItem
from sia_local.reasoning import ANSWER
from sia_local.records import Prompt, Request
from sia_local.rewards.load import FunctionReward
from sia_local.text import Shown
from sia_local.values.sources import text_value

WORDS = ("good ", "bad ", "so ", "the ", ".")
# Two unsure words (after `so` more so than after `the`), two sure ones; 4 ends a text.
LOGITS = np.array([[0, 0, 9, 0, 1], [0, 0, 0, 9, 1], [2, 2, 1, 1, 0], [3, 2, 0, 0, 0], [0] * 5], np.float32)
VALUES = np.array([1.0, -1.0, 0.0, 0.0, 0.0])
GOOD = FunctionReward("good", lambda prompts, responses: [r.count("good") - r.count("bad") for r in responses])
PROMPTS = [PromptItem(f"p{i}", "x" * i) for i in range(1, 7)]


class Base:
    """Logits follow from the last token alone."""

    def __init__(self, slots: int):
        self.last = [0] * slots

    def best_slot(self, free: Sequence[int], tokens: Sequence[int]) -> int:
        return free[0]

    def begin(self, slot: int, tokens: Sequence[int]) -> int:
        self.last[slot] = tokens[-1]
        return 0

    def logits(self, slots: Sequence[int]) -> list[np.ndarray]:
        return [LOGITS[self.last[slot]] for slot in slots]

    def read_piece(self, slot: int) -> bool:
        return False

    def accept(self, slot: int, token: int) -> None:
        self.last[slot] = token


class Values:
    """A value a candidate, whatever came before."""

    name = "table"
    spread: float | None = None
    max_candidates = 5
    shares_base = False
    absolute = rates_texts = True

    def __init__(self, values: np.ndarray):
        self.values = values
        self.engines: list[Engine] = []

    def begin(self, slot: int, prompt: Prompt) -> None: ...

    def room(self, slot: int) -> int:
        return 1 << 30

    def score(self, requests: Sequence[tuple[int, np.ndarray]], also: Sequence[int]) -> list[np.ndarray]:
        return [self.values[ids] for _, ids in requests]

    def levels(self, hidden: np.ndarray) -> None: ...

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> np.ndarray:
        return np.cumsum(self.values[list(tokens)])

    def accept(self, slot: int, token: int) -> None: ...

    def close(self) -> None: ...


class Words:
    part = ANSWER

    def push(self, token: int, last: bool) -> Shown:
        return Shown(WORDS[token])


class TableSIA:
    def __init__(self, values: np.ndarray = VALUES):
        self.value = Values(values)

    def prompt_of(self, request: Request) -> Prompt:
        # Prompts begin at one of the two unsure words.
        assert isinstance(request.prompt, str)
        return Prompt((2 + len(request.prompt) % 2,), None, request.prompt)

    def job(self, prompt: Request, *, id: int = 0) -> Job:
        return Job(prompt, self.prompt_of(prompt), lambda token: token == 4, Words(), id=id)

    def run(self, jobs: Iterable[Job], stop: Stop | None = None) -> Run:
        return Run(Desk(Loop(Base(2), self.value, 2)), jobs, stop)

    def value_of(self, prompt: Prompt, tokens: Sequence[int]) -> float:
        return text_value(self.value, 0, prompt, tokens)

    def log_likelihoods(self, prompt: Prompt, tokens: Sequence[int], config: SiaConfig) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None: ...
