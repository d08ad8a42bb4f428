"""A pair of language models as a source of values; no training needed.

V = log p+(y|s) − log p−(y|s) (proxy tuning, arXiv 2401.08565; emulated fine-tuning, arXiv 2310.12962), or log p+
alone (an autoregressive reward model, GenARM, arXiv 2410.08193).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import MOST_BETA, Setup
from ..errors import ConfigError, IncompatibleError
from ..llama.chat import TEMPLATE_ROOM, tokenize_chat
from ..llama.context import Context, options_for
from ..llama.engine import Engine
from ..llama.library import FloatArray
from ..llama.model import Model
from ..llama.part import AnyEngine, EnginePart, logits_together
from ..llama.vocabulary import Vocabulary
from ..records import Float64, IntArray, Prompt
from ..steering.entropy import log_partition

PathLike = str | os.PathLike[str]

INSTEAD = "use a guide of the same family, or `sia-local generate --nudge`, which works on text"


@dataclass(frozen=True)
class Guides:
    """Language models as a source of values: V = log p+ − log p−, or log p+ without `minus`. Nats.

    Their vocabulary must be the base's. plus_prompt / minus_prompt: what this guide reads in place of the last
    user message, with {prompt} standing for it; so one model under two instructions is a pair, too. spread: what
    counts as one unit of V when several sources are weighted.
    """

    plus: PathLike
    minus: PathLike | None = None
    weight: float | None = None
    name: str = "guides"
    plus_prompt: str | None = None
    minus_prompt: str | None = None
    spread: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight, self.name)
        if not self.spread > 0:
            raise ConfigError(f"the spread of {self.name} is {self.spread}; expected above 0 nats")
        for text in (self.plus_prompt, self.minus_prompt):
            if text is not None and "{prompt}" not in text:
                raise ConfigError(
                    f"the guide's prompt {text!r} has no {{prompt}}; write {{prompt}} where the user's message belongs"
                )


def instruction(sentence: str) -> str:
    """A guide's prompt from an instruction: the sentence before the message, unless it places {prompt} itself."""
    return sentence if "{prompt}" in sentence else f"{sentence.strip()} {{prompt}}"


def check_weight(weight: float | None, name: str) -> None:
    if weight is not None and not abs(weight) <= MOST_BETA:
        raise ConfigError(
            f"the weight of {name} is {weight}; expected {-MOST_BETA:g} to {MOST_BETA:g}, such as {name}:0.7"
        )


class Guide:
    """A language model that reads along, lazily: nothing is decoded before a junction."""

    def __init__(self, model: Model, engine: AnyEngine, rewording: str | None = None, owned: Sequence[Any] = ()):
        self.model = model
        self.engine = engine
        self._rewording = rewording
        self._owned = owned

    def close(self) -> None:
        for thing in self._owned:
            thing.close()

    def tokens(self, prompt: Prompt) -> Sequence[int]:
        """The prompt as this model reads it: its own chat template, its own wording."""
        template = self.model.chat_template
        if not prompt.messages or template is None:
            if self._rewording is None:
                return prompt.tokens
            text = self._rewording.replace("{prompt}", prompt.text)
            return self.model.tokenize(text, add_special=True, parse_special=True)
        messages = [dict(m) for m in prompt.messages]
        if self._rewording is not None:
            last = next((m for m in reversed(messages) if m["role"] == "user"), messages[-1])
            last["content"] = self._rewording.replace("{prompt}", last["content"])
        return tokenize_chat(self.model, template, messages, prompt.told)

    def begin(self, slot: int, prompt: Prompt) -> None:
        self.engine.begin(slot, self.tokens(prompt))

    def accept(self, slot: int, token: int) -> None:
        self.engine.accept(slot, token)

    def text_logprobs(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        """log p of every token of a finished text, float64 [n]."""
        prefix = list(self.tokens(prompt))
        fed = [prefix[-1], *tokens[:-1]]
        out, at = np.empty(len(tokens)), 0
        for rows in self.engine.trail(slot, prefix[:-1], fed):
            for row in rows:
                out[at] = _logprobs(row, np.array([tokens[at]]))[0]
                at += 1
        return out


def _logprobs(row: FloatArray, ids: npt.NDArray[Any]) -> Float64:
    known = ids < len(row)
    out = np.full(len(ids), -np.inf)
    out[known] = row[ids[known]].astype(np.float64) - log_partition(row)
    # A token only the base's padded vocabulary has counts as unlikely as the least likely candidate.
    out[~known] = out[known].min() if known.any() else 0.0
    return out


class GuidePair:
    """V = log p+ − log p− of two guides, or log p+ of one."""

    max_candidates = 255
    shares_base = False
    # What a token adds to the log ratio of the text, not that ratio.
    absolute = False
    rates_texts = True

    def __init__(self, plus: Guide, minus: Guide | None = None, name: str = "guides", spread: float = 1.0):
        self.plus = plus
        self.minus = minus
        self.name = name
        self.spread: float | None = spread

    @property
    def _guides(self) -> tuple[Guide, ...]:
        return (self.plus,) if self.minus is None else (self.plus, self.minus)

    @property
    def engines(self) -> list[AnyEngine]:
        return [guide.engine for guide in self._guides]

    def close(self) -> None:
        for guide in self._guides:
            guide.close()

    def begin(self, slot: int, prompt: Prompt) -> None:
        for guide in self._guides:
            guide.begin(slot, prompt)

    def room(self, slot: int) -> int:
        return min(guide.engine.room(slot) for guide in self._guides)

    def accept(self, slot: int, token: int) -> None:
        for guide in self._guides:
            guide.accept(slot, token)

    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int] = ()) -> list[Float64]:
        """Only the queues are decoded, one output row each, those of both guides at once where they share a model."""
        rows = logits_together(self.engines, [slot for slot, _ in requests])
        read = [[_logprobs(row, ids) for row, (_, ids) in zip(mine, requests, strict=True)] for mine in rows]
        return read[0] if self.minus is None else [plus - minus for plus, minus in zip(*read, strict=True)]

    def levels(self, hidden: FloatArray) -> None:
        """Not known: guides read on their own."""

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        """log p+(y≤t) − log p−(y≤t) after every token: the implicit reward of the text so far, nats."""
        values = self.plus.text_logprobs(slot, prompt, tokens)
        if self.minus is not None:
            values = values - self.minus.text_logprobs(slot, prompt, tokens)
        return np.cumsum(values)


def open_guides(spec: Guides, base: Model, vocabulary: Vocabulary | None, setup: Setup) -> GuidePair:
    both = (spec.plus, spec.plus_prompt), (spec.minus, spec.minus_prompt)
    asked = [(Path(path), rewording) for path, rewording in both if path is not None]
    for path, _ in asked:
        guide = Vocabulary.read(path)
        if vocabulary is None or guide is None:
            raise IncompatibleError(f"{path.name} or {base.path.name} has no vocabulary; {INSTEAD}")
        vocabulary.check_same(guide, renamed=setup.same_vocabulary, instead=INSTEAD)
    guides: list[Guide] = []
    with ExitStack() as undo:
        for file in dict.fromkeys(path.resolve() for path, _ in asked):
            # A guide that is the base shares its weights, and one that is the other one its context, too.
            owned: list[Any] = []
            model = base
            if file != Path(base.path).resolve():
                model = undo.enter_context(closing(Model(file, n_gpu_layers=setup.n_gpu_layers)))
                owned.append(model)
            rewordings = [rewording for path, rewording in asked if path.resolve() == file]
            slots = setup.slots
            wide = replace(setup, slots=slots * len(rewordings))
            context = undo.enter_context(closing(Context(model, options_for(model, wide, extra=TEMPLATE_ROOM))))
            whole = Engine(context, wide.slots)
            for i, rewording in enumerate(rewordings):
                part = EnginePart(whole, i * slots, slots) if len(rewordings) > 1 else whole
                guides.append(Guide(model, part, rewording, [] if i else [context, *owned]))
        undo.pop_all()
    return GuidePair(guides[0], guides[1] if len(guides) == 2 else None, spec.name, spec.spread)
