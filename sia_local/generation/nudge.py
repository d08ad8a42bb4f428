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
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError, ContextFullError, IncompatibleError, SiaError
from ..llama.chat import TEMPLATE_ROOM, tokenize_chat
from ..llama.context import Context
from ..llama.engine import Engine
from ..llama.model import Model
from ..records import Messages, Prompt, Request, Stats, Step
from ..steering.choice import Verdict
from ..text import TextStream
from .decode import make_step
from .duet import Duet, Voice
from .filters import LogitFilter
from .sia import SIA, WithSIA
from .writing import Generation

DEFAULT_THRESHOLD = 0.4


class Nudged(WithSIA):
    """Writes like SIA: a Step a token of the base (steered False) or a nudged word (True; token: its last id).

    A nudge's KL from the base is not known: NaN. Use as a context manager, or call close().
    """

    def __init__(self, sia: SIA, small: Model, context: Context, threshold: float = DEFAULT_THRESHOLD):
        check_threshold(threshold)
        self.sia, self.small, self.threshold = sia, small, threshold
        self._context = context
        self._engine = Engine(context, 1)
        self._writing: Callable[[], NudgedGeneration | None] = lambda: None

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

    def close(self) -> None:
        self._context.close()
        self.small.close()
        super().close()

    @property
    def value(self) -> None:
        return None

    def small_tokens(self, prompt: Prompt) -> list[int]:
        """The prompt as the small model reads it: in its own chat template where it has one."""
        template = self.small.chat_template
        if template is None and prompt.messages is None:
            tokens = self.small.tokenize(prompt.text, add_special=True, parse_special=True)
        elif template is None:
            raise IncompatibleError(
                f"{self.small.path.name}: has no chat template, so it cannot answer a chat; nudge with an instruct "
                "model, or ask with a plain text"
            )
        else:
            messages = prompt.messages or [{"role": "user", "content": prompt.text}]
            tokens = tokenize_chat(self.small, template, messages, prompt.told)
        if len(tokens) >= self._context.n_ctx:
            raise ContextFullError(
                f"the prompt is {len(tokens)} tokens for {self.small.path.name}, its context holds "
                f"{self._context.n_ctx}; shorten it or raise --ctx"
            )
        return tokens

    def generate(
        self, prompt: str | Messages | Prompt | Request, config: SiaConfig | None = None, **changes: Any
    ) -> NudgedGeneration:
        """As SIA.generate. config: k and sampling hold for both models (a grammar is refused); its gate and beta do not
        apply. raw: the base reads plain text; an instruct model reads the same text in its chat template all the same.
        """
        return self.write(Request.of(prompt, config, **changes))

    def write(self, request: Request) -> NudgedGeneration:
        """One text at a time: raises SiaError while another is being written."""
        if request.config.sampling.grammar:
            raise ConfigError("nudging and a grammar were asked for; nudged words follow no grammar, drop one of them")
        if request.special:
            raise ConfigError(
                "nudging and control tokens in the text were asked for; two models read the text, and their control "
                "tokens differ, drop one of them"
            )
        if (writing := self._writing()) is not None and not writing.over:
            raise SiaError("another text is being nudged; read it to its end, or close() it, before the next")
        made = self.sia.prompt_of(request)
        duet = self._duet(made, request)
        generation = NudgedGeneration(self, request, duet)
        self._writing = weakref.ref(generation)
        return generation

    def _duet(self, prompt: Prompt, request: Request) -> Duet:
        sides = (
            (self.sia.engine, self.model, prompt.tokens, self.n_ctx),
            (self._engine, self.small, self.small_tokens(prompt), self._context.n_ctx),
        )
        base, small = (
            Voice(engine, model, read, request.config, _filter(model, request.config, read), n_ctx, model.path.name)
            for engine, model, read, n_ctx in sides
        )
        return Duet(base, small, self.threshold, np.random.default_rng(request.seed))


class NudgedGeneration(Generation):
    """A text of two models. all_tokens: the text so far as the base reads it, nudged words in its own spelling."""

    def __init__(self, nudged: Nudged, request: Request, duet: Duet):
        stats = Stats(prompt_tokens=len(duet.base.prompt))
        engines = (nudged.sia.engine, nudged._engine)
        super().__init__(request, self._write(engines, request, duet, stats), stats)
        self._duet, self._small, self._threshold = duet, nudged.small.path.name, nudged.threshold
        self.over = False

    def close(self) -> None:
        super().close()
        self.over = True

    @property
    def tokens(self) -> list[int]:
        return self._duet.base.ids

    @property
    def answer_tokens(self) -> list[int]:
        return self.tokens

    @property
    def remark(self) -> str:  # type: ignore[override]
        stats = self.stats
        return f"{stats.junctions} words by {self._small}, {stats.value_ms_per_junction:.1f} ms a word"

    @property
    def facts(self) -> dict[str, Any]:
        words = self.stats.junctions
        return {
            "tokens": self.tokens,
            "nudge": {"model": self._small, "threshold": self._threshold, "words": words},
        }

    def _write(self, engines: tuple[Engine, ...], request: Request, duet: Duet, stats: Stats) -> Iterator[Step]:
        written: list[bytes] = []
        stream = TextStream(written.__getitem__, request.stop)
        started = time.perf_counter()
        for engine in engines:
            while engine.read_piece(0):
                if self.stopped:
                    self.over = True
                    return
        engines[0].logits([0])
        stats.prefill_ms = (time.perf_counter() - started) * 1e3
        finish = None
        while finish is None:
            before = len(duet.base.ids)
            turn = duet.turn()
            finish = turn.finish
            if finish is None and len(duet.base.ids) >= request.max_tokens:
                finish = "length"
            written.append(turn.data)
            shown = stream.push(len(written) - 1, finish is not None)
            if shown.stopped and finish != "eog":
                finish = "stop"
            step = make_step(
                turn.verdict,
                token=turn.token,
                shown=shown,
                logprob=math.nan if turn.nudged else _logprob(turn.verdict, turn.token),
                finish=finish,
                k=request.config.k if request.trace else 0,
            )
            step = replace(step, index=before)
            if turn.nudged:
                # How likely the base would have written the small model's word, nobody asked it.
                step = replace(step, steered=True, kl=math.nan, kl_truncation=math.nan, kl_steering=math.nan)
            stats.add(step)
            # A word may be several tokens of the base; the one that ends a text counts, too.
            stats.steps = len(duet.base.ids) + (finish == "eog")
            stats.wall_ms = (time.perf_counter() - started) * 1e3
            stats.value_ms, stats.base_ms = duet.small_ms, stats.wall_ms - duet.small_ms
            self.over = finish is not None
            yield step


def check_threshold(threshold: float) -> None:
    """Raises ConfigError unless it is a probability."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"the nudge threshold is {threshold}; expected a probability from 0 (never) to 1 (always)")


def _filter(model: Model, config: SiaConfig, prompt: Sequence[int]) -> LogitFilter | None:
    sampling = config.sampling
    return LogitFilter(model, sampling, list(prompt)) if sampling.filters else None


def _logprob(verdict: Verdict, token: int) -> float:
    return float(verdict.look.base_logprobs[int(np.flatnonzero(verdict.look.ids == token)[0])])
