"""Values read off the base's own hidden state: a Q-head at work. No row, no second model, no second KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, IncompatibleError
from ..llama.embeddings import EmbeddingRows
from ..llama.engine import Engine
from ..llama.library import FloatArray
from ..llama.model import Model
from ..llama.vocabulary import Vocabulary, check_vocabulary
from ..records import Float64, Prompt
from .qhead import Float32, QHead
from .qhead_file import QHeadFile


class HiddenValues:
    """A Q-head file at work; protocol of `records.Values`. It reads the hidden state behind the row of logits that the
    base's engine gave last, and so must be asked before that slot goes on."""

    shares_base = True
    absolute = False
    max_candidates = 255

    def __init__(self, file: QHeadFile, engine: Engine, rows: EmbeddingRows):
        self.file, self.engine = file, engine
        self.name = file.path.stem
        self.spread = file.qhead.spread
        self._tokens = _Tokens(file.qhead, rows)

    @property
    def rates_texts(self) -> bool:
        return self.file.qhead.level_weight is not None

    @property
    def engines(self) -> list[Engine]:
        """What reads along beside the base's own engine: nothing."""
        return []

    def close(self) -> None:
        """Nothing is loaded but the file."""

    def begin(self, slot: int, prompt: Prompt) -> None:
        """The base reads for it."""

    def accept(self, slot: int, token: int) -> None:
        """The base reads for it."""

    def room(self, slot: int) -> int:
        return self.engine.room(slot)

    def score(self, requests: Sequence[tuple[int, Any]], also: Sequence[int] = ()) -> list[Float64]:
        """Q of each candidate, float64 [k] a request, reward units up to a constant of the prefix."""
        return [self.file.qhead.of(self.engine.hidden(slot), self._tokens[ids]) for slot, ids in requests]

    def levels(self, hidden: FloatArray) -> Float64 | None:
        """V of prefixes by the hidden states behind them, float64 [n], if the file holds a level."""
        return self.file.qhead.level(hidden)

    def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> Float64:
        """V after every token of a finished text, float64 [n], if the file holds a level; the slot is overwritten."""
        if not self.rates_texts:
            raise ConfigError(
                f"{self.file.path.name} knows differences among candidates, not what a text is worth; choose texts by "
                "likelihood or by a reward, or give a value model"
            )
        rows = self.engine.trail(slot, prompt.tokens, tokens, hidden=True)
        return np.concatenate([level for row in rows if (level := self.file.qhead.level(row)) is not None])


class _Tokens:
    """What `QHead.project` gives of tokens, float32 [k, width] by ids, kept for as many as fit into KEPT bytes: the
    same few thousand tokens come again and again, and projecting them is dearer than the rest of a junction."""

    KEPT = 4 << 20

    def __init__(self, qhead: QHead, rows: EmbeddingRows):
        self._qhead, self._rows = qhead, rows
        most = max(HiddenValues.max_candidates, self.KEPT // (4 * qhead.width))
        self._table, self._places = np.empty((most, qhead.width), np.float32), dict[int, int]()

    def __getitem__(self, ids: Any) -> Float32:
        places = self._places
        if len(places) + len(ids) > len(self._table):
            places.clear()
        for token in ids.tolist():
            if token not in places:
                with np.errstate(all="ignore"):
                    self._table[len(places)] = self._qhead.project(self._rows[[token]])[0]
                places[token] = len(places)
        return np.asarray(self._table[[places[token] for token in ids.tolist()]])


def open_qhead(
    file: QHeadFile, base: Model, engine: Engine | None, vocabulary: Vocabulary | None, renamed: bool = False
) -> HiddenValues:
    """A Q-head beside its base, whose engine keeps hidden states. Raises IncompatibleError where it belongs to another
    base, or its own decodes elsewhere."""
    file.check_fits(base.n_embd, base.path.name)
    instead = "use a Q-head distilled on this base"
    check_vocabulary(vocabulary, file.path, file.meta.vocab_sha256, renamed=renamed, instead=instead)
    if engine is None:
        raise IncompatibleError(
            f"{file.path.name} is a value-qhead: it reads the hidden states of the base's own decode, which belongs to "
            "another program here; use a value model of its own (kind value) or a value-adapter"
        )
    rows = EmbeddingRows.output_of(base.path, base.tables)
    if rows.n_embd != file.qhead.n_embd or rows.n_rows < base.n_vocab:
        raise IncompatibleError(
            f"{base.path.name} has an output layer of {rows.n_rows} x {rows.n_embd}, expected at least "
            f"{base.n_vocab} x {file.qhead.n_embd}; a Q-head does not work on this base"
        )
    return HiddenValues(file, engine, rows)
