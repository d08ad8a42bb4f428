"""SIA: a base model and a value source, loaded together, writing."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from ..config import Setup, SiaConfig
from ..errors import ConfigError, IncompatibleError, SiaError
from ..llama.context import Context, options_for
from ..llama.engine import Engine
from ..llama.model import Model
from ..llama.part import AnyEngine
from ..llama.store import StateStore
from ..llama.templates import find_template
from ..reasoning import REASONING, Splitter, find_format
from ..records import Completion, Float64, Messages, Prompt, Request
from ..text import TextStream
from ..values.sources import Source, Specs, open_sources, parse_specs, read_files, text_value
from .decode import Base, Job, Loop
from .filters import LogitFilter
from .likelihood import log_likelihoods
from .overlap import SideBySide
from .prompting import read_again, read_prompt
from .writing import Desk, Generation, Run, Stop

# Tokens at the end of a prompt in which a template may have opened, or ended, the reasoning.
OPENING = 32
W = TypeVar("W", bound="WithSIA")


class SIA:
    """Use as a context manager, or call close(); what is dropped without frees itself.

    Several texts may be read in turns or by several threads: see writing.Desk.
    """

    def __init__(
        self, model: Model, engine: Engine, value: Source | None, setup: Setup, owned: ExitStack | None = None
    ):
        self.model, self.engine, self.value, self.setup = model, engine, value, setup
        self.reasoning = find_format(setup.reasoning, model.chat_template, lambda mark: len(model.spelled(mark)) == 1)
        marks = self.reasoning.marks if self.reasoning is not None else ()
        # Marks that are control tokens have no text of their own.
        self._marks = {token for mark in marks for token in model.spelled(mark) if not model.piece(token)}
        others = value.engines if setup.overlap_prompts and value is not None else []
        base: Base = SideBySide(engine, others) if others else engine
        self.store = StateStore(setup.prompt_cache) if setup.prompt_cache else None
        self._keep_states(engine, *(value.engines if value is not None else ()))
        self.desk = Desk(Loop(base, value, setup.slots, setup.n_ctx))
        # The desk lives as long as anything that still reads from it.
        owned = owned or ExitStack()
        # What use() opens goes before the model it stands on.
        self._borrowed = owned.enter_context(ExitStack())
        self._free = weakref.finalize(self.desk, owned.close)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | Model,
        value: Specs | None = None,
        setup: Setup | None = None,
        **changes: Any,
    ) -> SIA:
        """Loads a base GGUF and, beside it, a value GGUF of any placement.

        model: a path, or a Model that is loaded already and stays its owner's. value: a path, `Guides(plus, minus)`, or
        several sources with weights ("a.gguf:0.7", (path, weight), ValuePath, Guides): then `sia.value` is a
        MixedValues, whose weights can change. changes: fields of Setup. Raises ConfigError, ModelFileError and
        IncompatibleError with a sentence each.
        """
        setup = Setup.of(setup, **changes)
        specs = parse_specs(value)
        files = read_files(specs)
        kinds = {file.kind for file in files if file is not None}
        branches = (setup.shortlist or setup.head_candidates) if "value-head" in kinds else 0
        with ExitStack() as undo:
            if not isinstance(model, Model):
                model = Model(model, n_gpu_layers=setup.n_gpu_layers, rpc=setup.rpc)
                undo.callback(model.close)
            if setup.chat_template is not None:
                model.template = find_template(setup.chat_template)
            context = Context(model, options_for(model, setup, branches))
            undo.callback(context.close)
            hidden = setup.hidden_states or "value-qhead" in kinds
            engine = Engine(context, setup.slots, branches, keeps_hidden=hidden)
            opened = open_sources(specs, files, model, engine, setup)
            if opened is not None:
                undo.callback(opened.close)
            return cls(model, engine, opened, setup, undo.pop_all())

    def __enter__(self) -> SIA:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._free()

    def use(self, value: Specs | None) -> None:
        """Steers by another value from the next text on. What load() opened stays loaded, for put() to return to; what
        an earlier use() opened is freed.

        value: as load() takes it. Raises as load() does, and SiaError while a text is being written.
        """
        if self.desk.loop.live:
            raise SiaError("a text is being written; read it to its end, or close() it, before changing what steers")
        specs = parse_specs(value)
        files = read_files(specs)
        if any(file is not None and file.kind == "value-head" for file in files) and not self.engine.branches:
            raise IncompatibleError("a value-head needs room for its candidates in the base's context; load it at once")
        if any(file is not None and file.kind == "value-qhead" for file in files):
            self.engine.keep_hidden()
        opened = open_sources(specs, files, self.model, self.engine, self.setup)
        # In this order, so that what steers is never closed, whenever Ctrl-C comes.
        earlier = self._borrowed.pop_all()
        if opened is not None:
            self._borrowed.callback(opened.close)
        self.put(opened)
        earlier.close()

    def put(self, source: Source | None) -> None:
        """Steers by a source that is loaded already, or not at all."""
        self.value = self.desk.loop.value = source
        self._keep_states(*(source.engines if source is not None else ()))

    def _keep_states(self, *engines: AnyEngine) -> None:
        for engine in engines:
            engine.store = self.store

    @property
    def n_ctx(self) -> int:
        """Tokens a sequence may hold."""
        return self.setup.n_ctx

    @property
    def slots(self) -> int:
        return self.setup.slots

    def prompt(self, prompt: str | Messages, raw: bool = False, extra: Mapping[str, Any] | None = None) -> Prompt:
        """A prompt as both models will read it; see prompting.read_prompt. extra: beside Setup.template_arg."""
        told = {**self.setup.template_args, **(extra or {})}
        return read_prompt(self.model, self.n_ctx, prompt, raw, told)

    def prompt_again(
        self, prompt: str, rendered: str, raw: bool = False, told: Mapping[str, Any] | None = None
    ) -> Prompt:
        """The prompt of a text that was written before, as both models read it; see prompting.read_again."""
        return read_again(self.model, self.n_ctx, prompt, rendered, raw, told)

    def prompt_of(self, request: Request) -> Prompt:
        """A request's prompt as both models will read it."""
        return request.prompt if isinstance(request.prompt, Prompt) else self.prompt(request.prompt, request.raw)

    def generate(
        self, prompt: str | Messages | Prompt | Request, config: SiaConfig | None = None, **changes: Any
    ) -> Generation:
        """Streams one Step a token. changes: fields of Request (max_tokens, seed, stop, raw, trace)."""
        return self.write(Request.of(prompt, config, **changes))

    def write(self, request: Request) -> Generation:
        """One text, as it is read. What cannot be generated raises here, not at the first step."""
        job = self.job(request)
        stop = Stop()
        return Generation(request, self.desk.steps([job], stop), job.stats, stop)

    def job(
        self,
        prompt: str | Messages | Prompt | Request,
        config: SiaConfig | None = None,
        *,
        id: int = 0,
        **changes: Any,
    ) -> Job:
        """A text to generate, for run(); arguments as for generate()."""
        request = Request.of(prompt, config, **changes)
        made = self.prompt_of(request)
        split = self._split(request, made)
        self._check(request.config, split is not None)
        sampling = request.config.sampling
        sink = TextStream(self._pieces(request), request.stop, self._stop_tokens(request.stop), split)
        # Else the model may still choose not to reason, and a grammar holds from the first token.
        opened: dict[str, Any] = {"part": lambda: sink.part} if sink.part == REASONING else {}
        opened["longest"] = self.n_ctx
        return Job(
            request=request,
            prompt=made,
            ends=self.model.is_eog,
            sink=sink,
            filter=LogitFilter(self.model, sampling, list(made.tokens), **opened) if sampling.filters else None,
            id=id,
        )

    def run(self, jobs: Iterable[Job], stop: Stop | None = None) -> Run:
        """Runs many jobs over the slots this SIA was loaded with; steps of different jobs interleave."""
        return Run(self.desk, jobs, stop)

    def complete(self, jobs: Iterable[Job]) -> Iterator[Completion]:
        """Runs jobs and yields each finished text, in the order they finish."""
        open_jobs: dict[int, Completion] = {}
        for step in self.run(jobs):
            completion = open_jobs.setdefault(step.job, Completion(job=step.job))
            completion.add(step)
            if step.finish:
                yield open_jobs.pop(step.job)

    def value_of(self, prompt: Prompt, tokens: Sequence[int]) -> float:
        """The value of a whole text (non-empty), as its source means it; see values.sources.text_value."""
        assert self.value is not None
        with self.desk.slot() as slot:
            return text_value(self.value, slot, prompt, tokens)

    def log_likelihoods(
        self, prompt: Prompt, tokens: Sequence[int], config: SiaConfig | None = None, known: int = 0
    ) -> Float64:
        """log P of every token of a given text after the first `known`, float64, nats: the base's, or under config that
        of the base as it is steered; see likelihood.log_likelihoods."""
        config = config or SiaConfig(gate="off")
        self._check(config, True)
        with self.desk.slot() as slot:
            return log_likelihoods(self.engine, self.value, slot, prompt, tokens, config, known)

    def _pieces(self, request: Request) -> Callable[[int], bytes]:
        """The bytes of a token, those of marks among them, of any control token where the request wants to see them."""
        model = self.model
        marks = self._marks.union(*map(model.spelled, request.marks))
        if not request.special and not marks:
            return model.piece
        return lambda token: (
            model.piece(token) or (model.token_text(token).encode() if request.special or token in marks else b"")
        )

    def _split(self, request: Request, prompt: Prompt) -> Splitter | None:
        """What tells reasoning from the answer; of plain text to continue nobody knows, unless a format was named."""
        form = self.reasoning
        if form is None or request.special or (prompt.messages is None and self.setup.reasoning == "auto"):
            return None
        end = [self.model.piece(token) or self.model.token_text(token).encode() for token in prompt.tokens[-OPENING:]]
        return form.splitter(b"".join(end).decode("utf-8", "replace"))

    def _stop_tokens(self, stop: Sequence[str]) -> list[int]:
        """The control tokens among stop strings; they have no text to be found in."""
        return [token for text in stop if (token := self.model.control_token(text)) is not None]

    def _check(self, config: SiaConfig, reasons: bool) -> None:
        if config.steer == "reasoning" and not reasons:
            raise ConfigError(
                "only the reasoning was to be steered, but nothing says how this model marks it; name the marks "
                "(--reasoning '<think>,</think>'), or steer the answer"
            )
        limit = self.value.max_candidates if self.value is not None else None
        shares = bool(self.engine.branches)
        if limit is not None and config.gate != "off" and config.k > limit and not shares:
            raise ConfigError(
                f"k is {config.k}, the value model was loaded for {limit} candidates; give at most these, or load "
                f"with max_candidates={config.k} (`-k {config.k}` where it is loaded by a command)"
            )


class WithSIA:
    """A way of writing that has its models, and reads prompts, as the SIA it writes with. Closing it closes that."""

    sia: SIA

    @property
    def model(self) -> Model:
        return self.sia.model

    @property
    def value(self) -> Source | None:
        return self.sia.value

    @property
    def n_ctx(self) -> int:
        return self.sia.n_ctx

    def prompt(self, prompt: str | Messages, raw: bool = False) -> Prompt:
        return self.sia.prompt(prompt, raw)

    def __enter__(self: W) -> W:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sia.close()
