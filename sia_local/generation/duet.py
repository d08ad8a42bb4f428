"""Two models of different vocabularies writing one text: each reads the other's words in its own tokens.

It knows engines and tokenizers by protocol only, no llama.cpp.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..config import SiaConfig
from ..errors import IncompatibleError
from ..steering.choice import Choice, Filter, Verdict
from ..steering.tilt import draw

LONGEST_WORD = 16
# How far back a word that goes on is spelled anew, tokens.
_LONGEST_TAIL = 16
_WORD = re.compile(rb"\s*\S+(?=\s)")


class Decoder(Protocol):
    """What a voice needs of an engine; see engine.Engine."""

    def begin(self, slot: int, tokens: Sequence[int]) -> int: ...
    def logits(self, slots: Sequence[int]) -> Sequence[Any]: ...
    def accept(self, slot: int, token: int) -> None: ...


class Tokenizer(Protocol):
    def tokenize(self, text: str) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def is_eog(self, token: int) -> bool: ...


class Voice:
    """One model in the duet: the text so far as its own tokens, behind its own prompt.

    ids: without the prompt. foreseen: the token it drew to see that a word ended; what it says next, if nothing
    comes between.
    """

    def __init__(
        self,
        engine: Decoder,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        config: SiaConfig | None = None,
        filter: Filter | None = None,
        n_ctx: int = 1 << 30,
        name: str = "the model",
    ):
        self.engine, self.tokenizer, self.prompt, self.filter = engine, tokenizer, list(prompt), filter
        self.ids: list[int] = []
        self._choice = Choice(replace(config or SiaConfig(), gate="off"), filter=filter)
        self.n_ctx, self.name = n_ctx, name
        self.foreseen: int | None = None
        engine.begin(0, self.prompt)

    @property
    def room(self) -> int:
        """Tokens that still fit its context."""
        return self.n_ctx - len(self.prompt) - len(self.ids)

    def look(self) -> Verdict:
        """Its next-token distribution after the text so far; one decode of whatever it has not read yet."""
        self.verdict = self._choice.weigh(self._choice.look(self.engine.logits([0])[0]), None)
        return self.verdict

    def draw(self, rng: np.random.Generator) -> int:
        """A token of the distribution looked at last, by the sampling both models share."""
        return int(self.verdict.look.ids[draw(self.verdict.probabilities, float(rng.random()))])

    def say(self, token: int) -> None:
        """Its own token joins the text."""
        self.foreseen = None
        self.ids.append(token)
        self.engine.accept(0, token)
        self._filtered([token])

    def hear(self, text: str) -> None:
        """Text of the other model joins. A word that it continues is spelled anew, as this model would write it."""
        self.foreseen = None
        keep, data = self._word_start(text), text.encode()
        spelled = self._spell(b"".join(map(self.tokenizer.piece, self.ids[keep:])) + data)
        if spelled is None:
            keep, spelled = len(self.ids), self._spell(data)
        if spelled is None:
            raise IncompatibleError(
                f"{self.name} cannot spell {text!r} in its tokens, so it cannot read what the other model wrote; use a "
                "model whose tokenizer keeps text as it is"
            )
        before = self.ids
        self.ids = before[:keep] + spelled
        self.engine.begin(0, self.prompt + self.ids)
        self._filtered(self.ids[len(before) :])

    def take_back(self, count: int) -> None:
        """The last `count` tokens leave the text."""
        self.foreseen = None
        if count:
            del self.ids[len(self.ids) - count :]
            self.engine.begin(0, self.prompt + self.ids)

    def _word_start(self, text: str) -> int:
        """Index of the token from which `text` may change the spelling: where the last word begins."""
        keep = len(self.ids)
        if not keep or (text[0].isspace() and not self.tokenizer.piece(self.ids[-1])[-1:].isspace()):
            return keep
        earliest = max(0, keep - _LONGEST_TAIL)
        while keep > earliest:
            keep -= 1
            if self.tokenizer.piece(self.ids[keep])[:1].isspace():
                break
        return keep

    def _spell(self, data: bytes) -> list[int] | None:
        """Tokens whose pieces are exactly `data`; None if there are none or it is not UTF-8.

        Some tokenizers put a space before whatever they are given: then it is theirs, or something goes before it.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        tokenize = self.tokenizer.tokenize
        tries = [("", text), ("\n", "\n" + text), ("a", "a" + text)]
        for before, whole in [*tries, ("", text[1:])] if text[:1] == " " else tries:
            head, ids = tokenize(before), tokenize(whole)
            if ids[: len(head)] == head and b"".join(map(self.tokenizer.piece, ids[len(head) :])) == data:
                return ids[len(head) :]
        return None

    def _filtered(self, tokens: Sequence[int]) -> None:
        if self.filter is not None:
            for token in tokens:
                self.filter.accept(token)


def next_word(small: Voice, rng: np.random.Generator) -> tuple[str, bool]:
    """The next word as `small` writes it, with the white space before it, and whether it ends the text instead.

    A word ends before white space, where the model ends the text, or at LONGEST_WORD tokens, never inside a
    character. The voice keeps exactly the word: of a token that reaches beyond it only the word's part.
    """
    data, taken, word, beyond = b"", 0, b"", None
    while not word and taken < LONGEST_WORD and small.room > 1:
        if (token := small.foreseen) is None:
            small.look()
            token = small.draw(rng)
        if small.tokenizer.is_eog(token):
            if not data:
                return "", True
            word, beyond = data, token
        elif found := _WORD.match(whole := data + small.tokenizer.piece(token)):
            word, beyond = found.group(), token
        else:
            small.say(token)
            data, taken = whole, taken + 1
    text = (word or data).decode("utf-8", "ignore")
    if not text or text.encode() != data:
        # The end lies inside a token: up to it, the word is spelled by whole ones.
        small.take_back(taken)
        if text:
            small.hear(text)
    else:
        small.foreseen = beyond
    return text, False


@dataclass(frozen=True)
class Turn:
    """What one turn wrote. verdict: the base's; token: the base's last id, -1 without one; finish: None, `eog` or
    `context`; nudged: it was the small model's."""

    verdict: Verdict
    token: int = -1
    data: bytes = b""
    finish: str | None = None
    nudged: bool = False


@dataclass
class Duet:
    """A base and a small voice over one text. heard: what the base wrote that the small one has not read yet."""

    base: Voice
    small: Voice
    threshold: float
    rng: np.random.Generator
    heard: str = ""
    small_ms: float = 0.0

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def turn(self) -> Turn:
        """One token of the base, or one word of the small model where the base is unsure."""
        base, small = self.base, self.small
        verdict = base.look()
        unsure = float(np.exp(verdict.look.base_logprobs.max())) < self.threshold
        # Half a character cannot be shown to a model of another vocabulary.
        if unsure and not self._decoder.getstate()[0]:
            if small.room <= len(self.heard.encode()) + LONGEST_WORD:
                return Turn(verdict, finish="context", nudged=True)
            word, ended = self._ask()
            if ended:
                return Turn(verdict, finish="eog", nudged=True)
            if word and base.room <= len(word.encode()):
                return Turn(verdict, finish="context", nudged=True)
            if word:
                base.hear(word)
                return Turn(verdict, base.ids[-1], word.encode(), None, True)
        token = base.draw(self.rng)
        if base.tokenizer.is_eog(token):
            return Turn(verdict, token, finish="eog")
        base.say(token)
        data = base.tokenizer.piece(token)
        self.heard += self._decoder.decode(data)
        return Turn(verdict, token, data, "context" if base.room <= 0 else None)

    def _ask(self) -> tuple[str, bool]:
        """The small model's next word, after it has read what the base wrote."""
        started = time.perf_counter()
        if self.heard:
            self.small.hear(self.heard)
            self.heard = ""
        try:
            return next_word(self.small, self.rng)
        finally:
            self.small_ms += (time.perf_counter() - started) * 1e3
