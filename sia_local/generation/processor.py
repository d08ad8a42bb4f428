"""Steering for programs that already use llama-cpp-python: a logits processor, three lines to add.

    from llama_cpp import Llama
    from sia_local import SiaLogitsProcessor

    llm = Llama("base.gguf")
    sia = SiaLogitsProcessor(llm, "value.gguf")
    llm("Once upon a time", top_k=10, top_p=1.0, min_p=0.0, logits_processor=sia.processors)

A LogitsProcessorList of your own works, too, but not in a call with `logit_bias=`: llama-cpp-python 0.3.36 drops every
processor there.

The program keeps its own sampler: temperature, top-k, penalties and grammar of the call apply after the processor,
to the tilted logits. That is right for temperature and truncation; a repetition penalty after steering undoes
what the values chose, so leave it at 1.0. For the same candidates at steered and unsteered tokens pass top_k=k.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import DEFAULT_CANDIDATES, SamplingConfig, Setup, SiaConfig
from ..errors import ConfigError, SiaError
from ..llama.library import has_gpu
from ..llama.model import Model
from ..llama.processors import ProcessorList
from ..records import Prompt, Stats, Step
from ..steering.choice import Choice
from ..text import Shown, TextStream
from ..values.sources import AnyFile, Guides, Spec, Specs, open_sources, parse_specs, read_files
from .decode import make_step

Ids = npt.NDArray[np.intc]
Scores = npt.NDArray[np.single]


class SiaLogitsProcessor:
    """Called with (input_ids int32[n], scores float32[n_vocab]) before every token; returns float32[n_vocab].

    Steered steps: z + beta V on the candidates, −inf elsewhere (with config.tail: z elsewhere). All other steps, and
    beta = 0: `scores` as they came. A call that goes on from the previous one by one token belongs to the same
    text; any other prefix begins a new one, with a fresh gate and KL budget, while the value model re-reads only
    what differs from what it holds.

    steps: of the text being written, in the order of its tokens; the token of the last one is not known yet (-1)
    and its logprob NaN. stats: their sums. error: what made the rest of a text go unsteered, or None:
    llama-cpp-python calls from C, where an exception would be lost, so it becomes a warning.
    """

    def __init__(
        self,
        llm: Any,
        value: Specs,
        config: SiaConfig | None = None,
        *,
        seed: int = 0,
        trace: bool = True,
        **changes: Any,
    ):
        """llm: the `llama_cpp.Llama` to steer, or the path of its GGUF. value: as SIA.load takes it (a value-head and a
        value-qhead need the base's own decode and are refused). seed: of `gate="random"` alone. trace: whether steps
        keep their candidates. changes: fields of Setup; n_ctx, n_threads and n_gpu_layers are otherwise the Llama's.

        config.sampling.temperature should be the call's, if there is a KL budget or the steps' KL is read; nothing
        else of config.sampling applies here. Raises ConfigError, ModelFileError or IncompatibleError.
        """
        self.config = _checked(config or SiaConfig())
        if getattr(llm, "draft_model", None) is not None:
            raise ConfigError(
                "this Llama has a draft model, which asks a logits processor about tokens that are not in the text "
                "yet; make it without draft_model"
            )
        self.seed, self.trace = seed, trace
        base_path = Path(getattr(llm, "model_path", llm))
        specs = parse_specs(value)
        files = read_files(specs)
        # A Llama of a build without GPU takes any number of layers to put there.
        layers = getattr(getattr(llm, "model_params", None), "n_gpu_layers", 0)
        own: dict[str, Any] = {"n_gpu_layers": layers if has_gpu() else 0}
        if hasattr(llm, "n_ctx"):
            own |= {"n_ctx": llm.n_ctx(), "n_threads": llm.n_threads}
        own["max_candidates"] = max(self.config.k, DEFAULT_CANDIDATES)
        setup = Setup.of(**{**own, **changes})
        with ExitStack() as undo:
            words_alone = not _runs_on_base(specs, files, base_path)
            base = Model(base_path, n_gpu_layers=setup.n_gpu_layers, vocab_only=words_alone, rpc=setup.rpc)
            undo.callback(base.close)
            source = open_sources(specs, files, base, None, setup)
            if source is None:
                raise ConfigError("no value source was given; expected a value GGUF or Guides(plus, minus)")
            undo.callback(source.close)
            self._choice = Choice(self.config, seed, source)
            undo.pop_all()
        self.model, self.value = base, source
        self.error: SiaError | None = None
        self._messages: tuple[dict[str, str], ...] | None = None
        self._ids: Ids = np.empty(0, np.intc)
        self._forget()

    def __enter__(self) -> SiaLogitsProcessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.value.close()
        self.model.close()

    @property
    def processors(self) -> ProcessorList:
        """A list for `logits_processor=` that holds this processor, also beside `logit_bias=`."""
        return ProcessorList([self])

    def chat(self, messages: Sequence[dict[str, str]] | None) -> None:
        """What the prompts of the coming texts say, for value models with a rendering of their own; None: ids as is."""
        self._messages = None if messages is None else tuple(messages)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        ids = np.array(input_ids, np.intc)
        try:
            if len(ids) == len(self._ids) + 1 > 1 and np.array_equal(ids[:-1], self._ids):
                self._accept(int(ids[-1]))
            else:
                self._begin(ids)
            self._ids = ids
            return scores if self.error else self._steer(scores)
        except SiaError as error:
            self._ids, self.error = ids, error
            warnings.warn(f"the text goes on unsteered: {error}", RuntimeWarning, stacklevel=2)
            return scores

    def _forget(self) -> None:
        self.steps: list[Step] = []
        self.stats = Stats()
        self._stream = TextStream(self.model.piece)
        self.error = None
        self._started = time.perf_counter()

    def _begin(self, ids: Ids) -> None:
        """A new text: what its prompt shares with what the source holds is not read again."""
        self._forget()
        self._choice = Choice(self.config, self.seed, self.value)
        self.stats.prompt_tokens = len(ids)
        if self._choice.uses_value:
            # A guide that rewords the prompt needs it as text.
            text = b"".join(map(self.model.piece, ids.tolist())).decode("utf-8", "replace")
            prompt = Prompt(tuple(ids.tolist()), self._messages, text)
            self.value.begin(0, prompt)

    def _accept(self, token: int) -> None:
        if self.error is not None:
            return
        text = self._stream.push(token).text
        self.steps[-1] = replace(self.steps[-1], token=token, text=text, logprob=self._logprob(token))
        if self._choice.uses_value:
            self.value.accept(0, token)

    def _steer(self, scores: Scores) -> Scores:
        choice, stats, clock = self._choice, self.stats, time.perf_counter
        # llama-cpp-python hands over a strided view of llama.cpp's own candidate array.
        row = np.array(scores, np.single)
        look = choice.look(row)
        values = None
        if look.asks:
            t0 = clock()
            (values,) = self.value.score([(0, look.asked)], ())
            stats.value_ms += (clock() - t0) * 1e3
        verdict = choice.weigh(look, values)
        step = make_step(
            verdict, token=-1, shown=Shown(""), logprob=math.nan, finish=None, k=self.config.k if self.trace else 0
        )
        if verdict.beta == 0:
            step = replace(step, kl=0.0, kl_truncation=0.0)
        self._row, self._log_z = row, look.log_z
        self.steps.append(step)
        stats.add(step)
        stats.wall_ms = (clock() - self._started) * 1e3
        if verdict.beta == 0:
            return scores
        out = np.full(len(row), -np.inf, np.single)
        out[look.ids] = verdict.scores
        return out

    def _logprob(self, token: int) -> float:
        return float(self._row[token]) - self._log_z


def _runs_on_base(specs: Sequence[Spec], files: Sequence[AnyFile | None], base: Path) -> bool:
    """Whether a source needs the base's weights; otherwise its vocabulary is enough."""
    guides = [path for spec in specs if isinstance(spec, Guides) for path in (spec.plus, spec.minus)]
    same = any(path is not None and Path(path).resolve() == base.resolve() for path in guides)
    return same or any(file is not None and file.kind != "value" for file in files)


def _checked(config: SiaConfig) -> SiaConfig:
    plain = SamplingConfig(temperature=config.sampling.temperature)
    if config.sampling != plain:
        raise ConfigError(
            "config.sampling asks for penalties, truncation or a grammar, which are llama-cpp-python's here; pass them "
            "to the call (a repetition penalty is best left at 1.0), and only temperature in config.sampling"
        )
    return config
