"""Nudging: where the base is unsure, the next word is a small instruct model's (Fei et al., arXiv 2410.09300).

    with Nudged.load("base.gguf", nudge="small-instruct.gguf", threshold=0.4) as nudged:
        for step in nudged.generate("Why is the sky blue?", max_tokens=200):
            print(step.text, end="", flush=True)

The two vocabularies may differ: what one model writes reaches the other as text and is spelled anew in its own
tokens. Each keeps its KV cache and decodes only what is new to it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError, ContextFullError, IncompatibleError
from ..llama.chat import TEMPLATE_ROOM, tokenize_chat
from ..llama.context import Context
from ..llama.engine import Engine
from ..llama.model import Model
from ..steering.choice import Choice
from ..text import TextStream
from .decode import Prompt, Stats, Step
from .duet import Duet, Voice
from .filters import LogitFilter
from .sia import SIA, Messages

DEFAULT_THRESHOLD = 0.4


class Nudged:
    """Generates like SIA: a Step a token of the base (steered False) or a nudged word (True; token: its last id).

    tokens: of the last text, as the base reads it. A nudge's KL from the base is not known and counts as 0.
    Use as a context manager, or call close().
    """

    value = None

    def __init__(self, sia: SIA, small: Model, context: Context, threshold: float = DEFAULT_THRESHOLD):
        check_threshold(threshold)
        self.sia, self.small, self.threshold = sia, small, threshold
        self._context = context
        self._engine = Engine(context, 1)
        self.last_stats = Stats()
        self.tokens: list[int] = []

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        nudge: str | os.PathLike[str],
        threshold: float = DEFAULT_THRESHOLD,
        *,
        n_gpu_layers: int = 0,
        **options: Any,
    ) -> Nudged:
        """threshold: a nudge where the base's likeliest token is less likely than this. options: as SIA.load takes."""
        check_threshold(threshold)
        sia = SIA.load(model, n_gpu_layers=n_gpu_layers, **options)
        try:
            return cls.beside(sia, nudge, threshold, n_gpu_layers=n_gpu_layers)
        except BaseException:
            sia.close()
            raise

    @classmethod
    def beside(
        cls, sia: SIA, nudge: str | os.PathLike[str], threshold: float = DEFAULT_THRESHOLD, *, n_gpu_layers: int = 0
    ) -> Nudged:
        """A small model beside a loaded base, with the base's context options; closing closes both."""
        options = sia.engine.context.options
        small = Model(nudge, n_gpu_layers=n_gpu_layers)
        try:
            context = Context(small, replace(options, n_ctx=sia.n_ctx + TEMPLATE_ROOM, n_seq_max=1))
            return cls(sia, small, context, threshold)
        except BaseException:
            small.close()
            raise

    def __enter__(self) -> Nudged:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.close()
        self.small.close()
        self.sia.close()

    @property
    def n_ctx(self) -> int:
        return self.sia.n_ctx

    @property
    def model(self) -> Model:
        return self.sia.model

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt:
        return self.sia.prompt(prompt, raw)

    def small_tokens(self, prompt: Prompt) -> list[int]:
        """The prompt as the small model reads it: in its own chat template where it has one."""
        template = self.small.chat_template
        if template is None and prompt.messages is None:
            tokens = self.small.tokenize(prompt.text, add_special=True, parse_special=True)
        elif template is None:
            raise IncompatibleError(
                f"{self.small.path.name}: has no chat template, so it cannot answer a chat; nudge with an instruct "
                "model, or give plain text with raw=True (--raw)"
            )
        else:
            tokens = tokenize_chat(self.small, template, prompt.messages or [{"role": "user", "content": prompt.text}])
        if len(tokens) >= self._context.n_ctx:
            raise ContextFullError(
                f"the prompt is {len(tokens)} tokens for {self.small.path.name}, its context holds "
                f"{self._context.n_ctx}; shorten it or raise --ctx"
            )
        return tokens

    def generate(
        self,
        prompt: str | Messages | Prompt,
        config: SiaConfig | None = None,
        *,
        max_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        raw: bool = False,
        trace: bool = False,
    ) -> Iterator[Step]:
        """config: k and sampling hold for both models (a grammar is refused); its gate and beta do not apply.

        raw: the base reads plain text; an instruct model reads the same text in its chat template all the same.
        """
        config = config or SiaConfig()
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}; expected at least 1")
        if config.sampling.grammar:
            raise ConfigError("nudging and a grammar were asked for; nudged words follow no grammar, drop one of them")
        made = prompt if isinstance(prompt, Prompt) else self.prompt(prompt, raw)
        small_prompt = self.small_tokens(made)
        voices = [
            Voice(engine, model, read, config, _filter(model, config, read), n_ctx, model.path.name)
            for engine, model, read, n_ctx in (
                (self.sia.engine, self.model, made.tokens, self.n_ctx),
                (self._engine, self.small, small_prompt, self._context.n_ctx),
            )
        ]
        duet = Duet(voices[0], voices[1], self.threshold, np.random.default_rng(seed))
        yield from self._run(duet, max_tokens, stop, trace)

    def _run(self, duet: Duet, max_tokens: int, stop: Sequence[str], trace: bool) -> Iterator[Step]:
        stats = self.last_stats = Stats(prompt_tokens=len(duet.base.prompt))
        self.tokens = duet.base.ids
        written: list[bytes] = []
        stream = TextStream(written.__getitem__, stop)
        started = time.perf_counter()
        self.sia.engine.logits([0])
        stats.prefill_ms = (time.perf_counter() - started) * 1e3
        finish = None
        while finish is None:
            before = len(duet.base.ids)
            turn = duet.turn()
            finish, self.tokens = turn.finish, duet.base.ids
            if finish is None and len(self.tokens) >= max_tokens:
                finish = "length"
            written.append(turn.data)
            text, stopped = stream.push(len(written) - 1, finish is not None)
            if stopped and finish is None:
                finish = "stop"
            stats.tokens = len(self.tokens) + (finish == "eog")
            stats.junctions += turn.nudged
            stats.wall_ms = (time.perf_counter() - started) * 1e3
            stats.value_ms, stats.base_ms = duet.small_ms, stats.wall_ms - duet.small_ms
            yield Step(
                job=0,
                index=before,
                token=turn.token,
                text=text,
                entropy=turn.choice.entropy,
                steered=turn.nudged,
                kl=0.0 if turn.nudged else turn.choice.kl,
                kl_truncation=0.0 if turn.nudged else turn.choice.kl_truncation,
                logprob=math.nan if turn.nudged else _logprob(turn.choice, turn.token),
                beta=0.0,
                finish=finish,
                candidates=turn.choice.candidates() if trace else None,
            )


def check_threshold(threshold: float) -> None:
    """Raises ConfigError unless it is a probability."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"the nudge threshold is {threshold}; expected a probability from 0 (never) to 1 (always)")


def _filter(model: Model, config: SiaConfig, prompt: Sequence[int]) -> LogitFilter | None:
    sampling = config.sampling
    return LogitFilter(model, sampling, list(prompt)) if sampling.filters else None


def _logprob(choice: Choice, token: int) -> float:
    return float(choice.base_logprobs[int(np.flatnonzero(choice.ids == token)[0])])
