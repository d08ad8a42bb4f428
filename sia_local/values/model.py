"""Value models: a head over hidden states in three placements behind one protocol, `records.Values`.

separate: own GGUF (`merged` or `lean`) in its own engine. adapter: a LoRA over the base's own weights, in a
second context of the same model. head: on the base's own hidden states, in the base's engine, where the winner's
KV and logits are kept, so that the step after a junction needs no decode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Setup
from ..errors import IncompatibleError
from ..llama import keys
from ..llama.chat import tokenize_chat
from ..llama.context import Context, options_for
from ..llama.embeddings import EmbeddingRows
from ..llama.engine import Engine
from ..llama.gguf import GgufMetadata
from ..llama.library import FloatArray
from ..llama.model import LoraAdapter, Model
from ..llama.vocabulary import Vocabulary, check_vocabulary
from ..records import Float64, Prompt
from .qhead import ACTIVATIONS

# Weights of an output layer from which on leaving it out saves more than the callback for it costs.
LARGE_OUTPUT_LAYER = 1 << 24
READABLE_GRAPHS = ("llama", "qwen2", "qwen3")
# llama.cpp multiplies the embeddings of ids, but not vectors that are fed in, by the root of the width.
SCALED_EMBEDDINGS = ("gemma3",)
# A layer looks up embeddings of its own, by ids that a lean model is not given.
EMBEDDINGS_A_LAYER = ("gemma3n", "gemma4")


@dataclass(frozen=True)
class ValueHead:
    """V(h) = w·a + b in reward units, a = h or one hidden layer act(W h + c). All float32.

    weight [n_embd] or [n_hidden]; hidden_weight [n_hidden, n_embd]; hidden_bias [n_hidden].
    """

    weight: FloatArray
    bias: float
    hidden_weight: FloatArray | None = None
    hidden_bias: FloatArray | None = None
    activation: str = "silu"

    def __call__(self, hidden: FloatArray) -> Float64:
        """hidden float32 [n, n_embd] -> float64 [n]."""
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever asked
            if self.hidden_weight is not None:
                # As in QHead: BLAS would start threads that wait for llama.cpp's.
                inner = np.einsum("nj,ij->ni", hidden, self.hidden_weight) + self.hidden_bias
                hidden = ACTIVATIONS[self.activation](inner)
            return np.einsum("nj,j->n", hidden, self.weight).astype(np.float64) + self.bias

    @property
    def n_embd(self) -> int:
        return int(self.weight.shape[0] if self.hidden_weight is None else self.hidden_weight.shape[1])


@dataclass(frozen=True)
class ValueFile:
    """What the metadata of a value GGUF says; read once, before any weight is loaded."""

    path: Path
    kind: str
    layout: str
    architecture: str
    head: ValueHead
    spread: float | None
    vocab_sha256: str | None
    template: str | None
    about: dict[str, Any]

    @classmethod
    def of(cls, meta: GgufMetadata) -> ValueFile:
        """Raises IncompatibleError (no value head, unknown version)."""
        path = meta.path
        version = meta.get(keys.VERSION)
        weight = meta.get(keys.HEAD_WEIGHT)
        if version is None or weight is None:
            raise IncompatibleError(
                f"{path}: holds no value head (metadata {keys.HEAD_WEIGHT}); expected a value model, "
                "export one with `sia-convert export`"
            )
        if version != keys.CONTRACT_VERSION:
            raise IncompatibleError(
                f"{path}: value model contract version {version}, this program reads version "
                f"{keys.CONTRACT_VERSION}; update sia_local or export again"
            )
        kind = meta.get(keys.KIND, "value")
        if kind not in keys.KINDS:
            raise IncompatibleError(f"{path}: kind {kind!r} of value model; expected one of {', '.join(keys.KINDS)}")
        layout = meta.get(keys.LAYOUT, "merged")
        if kind == "value" and layout not in keys.LAYOUTS:
            raise IncompatibleError(
                f"{path}: layout {layout!r} of value model; expected one of {', '.join(keys.LAYOUTS)}, update "
                "sia_local or export again"
            )
        if kind == "value" and layout == "lean" and len(meta.parts) > 1:
            raise IncompatibleError(
                f"{path}: a lean value model in {len(meta.parts)} files, which leaves out its embedding rows; give "
                "the one file it was exported to"
            )
        activation = meta.get(keys.HEAD_ACTIVATION, "silu")
        if activation not in ACTIVATIONS:
            raise IncompatibleError(f"{path}: head activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        weight = np.asarray(weight, np.float32)
        hidden, offset = meta.get(keys.HEAD_HIDDEN_WEIGHT), meta.get(keys.HEAD_HIDDEN_BIAS)
        if hidden is not None and (offset is None or len(offset) != len(weight) or len(hidden) % len(weight)):
            raise IncompatibleError(
                f"{path}: the hidden layer of the value head has {len(hidden)} weights and "
                f"{0 if offset is None else len(offset)} biases, {len(weight)} units were expected; export it again"
            )
        head = ValueHead(
            weight=weight,
            bias=float(meta.get(keys.HEAD_BIAS, 0.0)),
            hidden_weight=None if hidden is None else hidden.astype(np.float32).reshape(len(weight), -1),
            hidden_bias=None if hidden is None else offset.astype(np.float32),
            activation=activation,
        )
        if not np.isfinite(head.weight).all() or not math.isfinite(head.bias):
            raise IncompatibleError(f"{path}: the value head contains NaN or infinity; export it again")
        spread = meta.get(keys.VALUE_SPREAD)
        return cls(
            path=path,
            kind=kind,
            layout=layout,
            architecture=meta.get("general.architecture", "?"),
            head=head,
            spread=float(spread) if spread and math.isfinite(spread) else None,
            vocab_sha256=meta.get(keys.VOCAB_SHA256) or meta.vocab_sha256(),
            template=meta.get(keys.PROMPT_TEMPLATE) or meta.get("tokenizer.chat_template"),
            about={
                key: meta.get(key)
                for key in (
                    keys.BASE_NAME,
                    keys.REWARD_NAME,
                    keys.REWARD_MEAN,
                    keys.REWARD_STD,
                    keys.TRAIN_LOSS,
                    keys.TRAIN_TOKENS,
                )
                if key in meta
            },
        )

    def check_fits(self, base: Model, vocabulary: Vocabulary | None, renamed: bool = False) -> None:
        """Raises IncompatibleError unless token ids mean the same in both and widths agree where shared."""
        instead = "use a value model trained for this base"
        check_vocabulary(vocabulary, self.path, self.vocab_sha256, renamed=renamed, instead=instead)
        if self.kind != "value" and self.head.n_embd != base.n_embd:
            raise IncompatibleError(
                f"{self.path.name} has a head of width {self.head.n_embd}, {base.path.name} has hidden states of "
                f"width {base.n_embd}; use a {self.kind} trained on this base"
            )


class ValueModel:
    """A value file at work. Protocol of `records.Values`; close() frees what it loaded."""

    absolute = rates_texts = True

    def __init__(
        self,
        file: ValueFile,
        tokenizer: Model,
        engine: Engine,
        shares_base: bool,
        owned: Sequence[Any] = (),
    ):
        self.file = file
        self.name = file.path.stem
        self.spread = file.spread
        self.max_candidates = engine.branches
        self.engine = engine
        self._tokenizer = tokenizer
        self.shares_base = shares_base
        self._lean = file.kind == "value" and file.layout == "lean"
        self._owned = owned

    def close(self) -> None:
        for thing in self._owned:
            thing.close()

    def __enter__(self) -> ValueModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def engines(self) -> list[Engine]:
        """What reads along beside the base's own engine."""
        return [] if self.shares_base else [self.engine]

    def tokens(self, prompt: Prompt) -> Sequence[int]:
        """The prompt as this model reads it."""
        if self.file.template and prompt.messages and not self.shares_base:
            return tokenize_chat(self._tokenizer, self.file.template, prompt.messages, prompt.told)
        return prompt.tokens

    def begin(self, slot: int, prompt: Prompt) -> None:
        """Sets what the slot has read. Nothing is decoded before its first junction."""
        if self.shares_base:
            return
        self.engine.begin(slot, self.tokens(prompt))

    def room(self, slot: int) -> int:
        return self.engine.room(slot)

    def score(self, requests: Sequence[tuple[int, Any]], also: Sequence[int] = ()) -> list[Float64]:
        """V of each candidate after what its slot has read: one decode for all requests, float64 [k] each.

        also: slots of the base whose queued tokens ride along when the engine is the base's.
        """
        known = [(slot, ids[ids < self.engine.n_rows]) for slot, ids in requests]
        asked = [request for request in known if len(request[1])]
        also = also if self.shares_base else ()
        rows: list[FloatArray] = []
        if asked or also:
            rows = self.engine.branch(asked, also=also, hidden=not self._lean, keep_rows=self.shares_base)
        left = iter(rows)
        scored = [self._values(next(left)) if len(ids) else np.zeros(0) for _, ids in known]
        return [_spread(values, ids, self.engine.n_rows) for values, (_, ids) in zip(scored, requests, strict=True)]

    def levels(self, hidden: FloatArray) -> Float64 | None:
        """V of prefixes by the base's hidden states behind them, float64 [n], of a head; None of other placements."""
        return self.file.head(hidden) if self.shares_base else None

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        """V after every token of a finished text, float64 [n]; the slot's content is replaced by it."""
        rows = self.engine.trail(slot, self.tokens(prompt), tokens, hidden=not self._lean)
        return np.concatenate([self._values(row) for row in rows])

    def _values(self, rows: FloatArray) -> Float64:
        if self._lean:
            return rows[:, 0].astype(np.float64) + self.file.head.bias
        return self.file.head(rows)

    def accept(self, slot: int, token: int) -> None:
        if not self.shares_base:
            self.engine.accept(slot, token)


def _spread(values: Float64, ids: Any, n_rows: int) -> Float64:
    """Values of the ids below n_rows, and for the padding above them, which count as unasked, their mean."""
    if len(values) == len(ids):
        return values
    out = np.full(len(ids), values.mean() if len(values) else 0.0)
    out[np.asarray(ids) < n_rows] = values
    return out


def open_value(
    file: ValueFile, base: Model, base_engine: Engine | None, vocabulary: Vocabulary | None, setup: Setup
) -> ValueModel:
    """Loads a value file beside its base. Only a value-head needs `base_engine`."""
    file.check_fits(base, vocabulary, setup.same_vocabulary)
    if file.kind == "value-head":
        if base_engine is None:
            raise IncompatibleError(
                f"{file.path.name} is a value-head: it reads the hidden states of the base's own decode, which belongs "
                "to another program here; use a value model of its own (kind value) or a value-adapter"
            )
        return ValueModel(file, base, base_engine, shares_base=True)
    slots, candidates = setup.slots, setup.candidates
    if file.kind == "value-adapter":
        adapter = LoraAdapter(base, file.path)
        context = Context(
            base, options_for(base, setup, candidates), adapter, hidden_only=_skips_output_layer(base, file)
        )
        return ValueModel(file, base, Engine(context, slots, candidates), shares_base=False, owned=(context, adapter))
    model = Model(file.path, n_gpu_layers=setup.n_gpu_layers)
    try:
        rows = None
        if file.layout == "lean":
            rows = EmbeddingRows.from_trailer(file.path) or EmbeddingRows.from_model(base.path, base.tables)
            needed = vocabulary.unpadded if vocabulary is not None else base.n_vocab
            if rows.n_embd != model.n_embd or rows.n_rows < needed:
                raise IncompatibleError(
                    f"{file.path}: embedding rows are {rows.n_rows} x {rows.n_embd}, expected at least "
                    f"{needed} x {model.n_embd}; export the lean model with its own rows"
                )
            if file.architecture in EMBEDDINGS_A_LAYER:
                raise IncompatibleError(
                    f"{file.path}: a lean {file.architecture} cannot be fed, since its layers look up embeddings of "
                    "their own; export it merged"
                )
            if file.architecture in SCALED_EMBEDDINGS:
                rows.scale = math.sqrt(model.n_embd)
        if file.head.n_embd != model.n_embd:
            raise IncompatibleError(
                f"{file.path}: the head is {file.head.n_embd} wide, the model {model.n_embd}; export it again"
            )
        options = options_for(model, setup, candidates)
        context = Context(model, options, hidden_only=file.layout != "lean" and _skips_output_layer(model, file))
    except BaseException:
        model.close()
        raise
    return ValueModel(file, base, Engine(context, slots, candidates, rows), shares_base=False, owned=(context, model))


def _skips_output_layer(model: Model, file: ValueFile) -> bool:
    """Whether leaving out an output layer that no value needs is worth the asking, which on a GPU it is not."""
    large = model.n_vocab * model.n_embd >= LARGE_OUTPUT_LAYER
    return large and model.n_gpu_layers == 0 and file.architecture in READABLE_GRAPHS
