"""SIA: a base model and a value source, loaded together, generating."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..config import SiaConfig
from ..errors import ConfigError, ContextFullError, IncompatibleError
from ..llama.context import Context, ContextOptions
from ..llama.engine import Engine
from ..llama.model import Model
from ..text import TextStream
from ..values.model import sequences_for, tokenize_chat
from ..values.sources import Source, Specs, open_sources, parse_specs, read_files
from .decode import Base, Job, Prompt, Stats, Step, decode
from .filters import LogitFilter
from .overlap import SideBySide

Messages = Sequence[dict[str, str]]

DEFAULT_CANDIDATES = 10
DEFAULT_HEAD_CANDIDATES = 4


@dataclass
class Completion:
    """One finished text: its steps' sums. kl, kl_truncation and nll (of the base) in nats."""

    job: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    steps: int = 0
    junctions: int = 0
    kl: float = 0.0
    kl_truncation: float = 0.0
    nll: float = 0.0

    def add(self, step: Step) -> None:
        self.text += step.text
        self.steps += 1
        self.junctions += step.steered
        self.kl += step.kl
        self.kl_truncation += step.kl_truncation
        self.nll -= step.logprob
        self.finish = step.finish
        if step.finish != "eog":
            self.tokens.append(step.token)


class SIA:
    """Use as a context manager, or call close(). Not thread safe: one generation at a time."""

    def __init__(
        self,
        model: Model,
        engine: Engine,
        value: Source | None,
        n_ctx: int,
        slots: int,
        overlap_prompts: bool = False,
    ):
        self.model = model
        self.engine = engine
        self.value = value
        self.n_ctx = n_ctx
        self.slots = slots
        self.last_stats = Stats()
        others = value.engines if overlap_prompts and value is not None else []
        self._base: Base = SideBySide(engine, others) if others else engine

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        value: Specs | None = None,
        *,
        n_ctx: int = 2048,
        slots: int = 1,
        n_threads: int = 0,
        n_gpu_layers: int = 0,
        max_candidates: int | None = None,
        type_k: str = "f16",
        type_v: str = "f16",
        flash_attention: str = "auto",
        overlap_prompts: bool = False,
    ) -> SIA:
        """Loads a base GGUF and, beside it, a value GGUF of any placement.

        value: a path, `Guides(plus, minus)`, or several sources with weights ("a.gguf:0.7", (path, weight), ValuePath,
        Guides): then `sia.value` is a MixedValues, whose weights can change. n_ctx: tokens a sequence may hold.
        slots: sequences that generate at once. max_candidates: most candidates a junction can score (default 10; 4
        for a `value-head`, which scores in the base's own decode). overlap_prompts: the value source reads a prompt
        while the base does, not at the first junction. Raises ModelFileError and IncompatibleError with a
        sentence each.
        """
        if slots < 1:
            raise ConfigError(f"slots is {slots}; expected at least 1 sequence")
        specs = parse_specs(value)
        files = read_files(specs)
        branches = max_candidates or DEFAULT_CANDIDATES
        base_branches = 0
        if any(file is not None and file.kind == "value-head" for file in files):
            base_branches = max_candidates or DEFAULT_HEAD_CANDIDATES
        options = ContextOptions(
            n_ctx=n_ctx,
            n_threads=n_threads,
            type_k=type_k,
            type_v=type_v,
            flash_attention=flash_attention,
        )
        base = Model(model, n_gpu_layers=n_gpu_layers)
        context = None
        try:
            context = Context(base, sequences_for(options, slots, base_branches))
            engine = Engine(context, slots, base_branches)
            opened = open_sources(
                specs,
                files,
                base,
                engine,
                slots=slots,
                options=options,
                max_candidates=branches,
                n_gpu_layers=n_gpu_layers,
            )
        except BaseException:
            if context is not None:
                context.close()
            base.close()
            raise
        return cls(base, engine, opened, n_ctx, slots, overlap_prompts)

    def __enter__(self) -> SIA:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.value is not None:
            self.value.close()
        self.engine.context.close()
        self.model.close()

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt:
        """A prompt as both models will read it.

        A string is a user turn in the model's chat template; with `raw`, or without a template, it is plain
        text to continue. A list of messages ({"role", "content"}) is a whole chat.
        """
        template = self.model.chat_template
        if raw or (template is None and isinstance(prompt, str)):
            if not isinstance(prompt, str):
                raise ConfigError("raw generation takes a string, a list of messages was given")
            tokens = self.model.tokenize(prompt, add_special=True, parse_special=True)
            made = Prompt(tuple(tokens), None, prompt)
        else:
            if template is None:
                raise IncompatibleError(
                    f"{self.model.path.name}: has no chat template; give plain text with raw=True (--raw)"
                )
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            if any("role" not in message or "content" not in message for message in messages):
                raise ConfigError("a message of the chat has no role or no content; expected both in every message")
            tokens = tokenize_chat(self.model, template, messages)
            made = Prompt(tuple(tokens), tuple(messages), messages[-1]["content"] if messages else "")
        if not made.tokens:
            raise ConfigError("the prompt is empty; give at least one character")
        if len(made.tokens) >= self.n_ctx:
            raise ContextFullError(
                f"the prompt is {len(made.tokens)} tokens, the context holds {self.n_ctx}; shorten the prompt or "
                "raise the context length (--ctx)"
            )
        return made

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
        """Streams one Step a token; `trace` keeps each step's candidates. `last_stats` fills as it runs."""
        yield from self.run(
            [self.job(prompt, config, max_tokens=max_tokens, seed=seed, stop=stop, raw=raw, trace=trace)]
        )

    def job(
        self,
        prompt: str | Messages | Prompt,
        config: SiaConfig | None = None,
        *,
        max_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        raw: bool = False,
        trace: bool = False,
        id: int = 0,
    ) -> Job:
        """A text to generate, for run()."""
        config = config or SiaConfig()
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}; expected at least 1")
        if seed < 0:
            raise ConfigError(f"the seed is {seed}; expected a whole number of 0 or more")
        made = prompt if isinstance(prompt, Prompt) else self.prompt(prompt, raw)
        self._check(config)
        sampling = config.sampling
        return Job(
            prompt=made,
            config=config,
            max_tokens=max_tokens,
            seed=seed,
            ends=self.model.is_eog,
            sink=TextStream(self.model.piece, stop),
            filter=LogitFilter(self.model, sampling, list(made.tokens)) if sampling.filters else None,
            trace=trace,
            id=id,
        )

    def run(self, jobs: Iterable[Job]) -> Iterator[Step]:
        """Runs many jobs over the slots this SIA was loaded with; steps of different jobs interleave."""
        self.last_stats = Stats()
        yield from decode(self._base, self.value, jobs, self.slots, self.n_ctx, self.last_stats)

    def complete(self, jobs: Iterable[Job]) -> Iterator[Completion]:
        """Runs jobs and yields each finished text, in the order they finish."""
        open_jobs: dict[int, Completion] = {}
        for step in self.run(jobs):
            completion = open_jobs.setdefault(step.job, Completion(step.job))
            completion.add(step)
            if step.finish:
                yield open_jobs.pop(step.job)

    def _check(self, config: SiaConfig) -> None:
        limit = getattr(self.value, "max_candidates", None)
        shares = bool(self.engine.branches)
        if limit is not None and config.gate != "off" and config.k > limit and not shares:
            raise ConfigError(
                f"k is {config.k}, the value model was loaded for {limit} candidates; load with "
                f"max_candidates={config.k}"
            )
