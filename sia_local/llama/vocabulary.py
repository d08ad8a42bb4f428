"""Whether token ids mean the same in two models, padding of their embedding rows aside."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path

from ..errors import IncompatibleError
from .gguf import GgufMetadata
from .keys import fingerprinted
from .texts import Texts

PADDING = re.compile(rb"\[PAD\d*\]|<pad\d*>|<unused\d+>", re.IGNORECASE)
# Models of one family pad to multiples of 64 to 1024 rows; their fingerprints cover what they padded with.
MOST_PADDING = 4096
SHOWN = 3
_CONTROL = 3  # tokenizer.ggml.token_type


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file, in order; texts: the same as they lie in it; control: ids of control tokens."""

    path: Path
    texts: Texts = field(repr=False)
    control: frozenset[int] = frozenset()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Vocabulary | None:
        """None for a file without one."""
        with GgufMetadata(path) as meta:
            return cls.of(meta)

    @classmethod
    def of(cls, meta: GgufMetadata) -> Vocabulary | None:
        """None for a file without one."""
        found = meta.texts("tokenizer.ggml.tokens")
        if not found:
            return None
        types = meta.get("tokenizer.ggml.token_type")
        control = frozenset() if types is None else frozenset((types == _CONTROL).nonzero()[0].tolist())
        return cls(meta.path, found, control)

    @cached_property
    def tokens(self) -> Sequence[bytes]:
        return self.texts.entries()

    @property
    def unpadded(self) -> int:
        """Tokens without the padding at the end."""
        end = len(self.tokens)
        while end and PADDING.fullmatch(self.tokens[end - 1]):
            end -= 1
        return end

    def has_fingerprint(self, sha256: str) -> bool:
        """Whether `sha256` (keys.vocab_sha256) is that of these tokens, with any padding behind them."""
        if hashlib.sha256(self.texts.stored).hexdigest() == sha256:
            return True
        start = self.unpadded
        padded = len(fingerprinted(self.tokens[start:]))
        digest = hashlib.sha256(self.texts.stored[: len(self.texts.stored) - padded])
        for i in range(start, max(start + MOST_PADDING, len(self.tokens))):
            if digest.hexdigest() == sha256:
                return True
            digest.update(fingerprinted([self.tokens[i] if i < len(self.tokens) else b"[PAD%d]" % i]))
        return digest.hexdigest() == sha256

    def check_same(self, other: Vocabulary, *, renamed: bool = False, instead: str) -> None:
        """Raises IncompatibleError unless every id that both use means the same token. renamed: control tokens may have
        other names. instead: what to do, for the sentence."""
        ours, theirs = self.unpadded, other.unpadded
        different = [
            i
            for i, a, b in zip(count(), self.tokens[: max(ours, theirs)], other.tokens, strict=False)
            if a != b and not PADDING.fullmatch(a) and not PADDING.fullmatch(b)
        ]
        longer, end = (self, ours) if ours > theirs else (other, theirs)
        beyond = range(min(len(self.tokens), len(other.tokens)), end)
        different += [i for i in beyond if not PADDING.fullmatch(longer.tokens[i])]
        if not different:
            return
        names = f"{other.path.name} ({len(other.tokens)} tokens) and {self.path.name} ({len(self.tokens)} tokens)"
        if not all(i in self.control and i in other.control for i in different):
            raise IncompatibleError(
                f"{names} have different vocabularies ({len(different)} tokens differ), so their token ids do not mean "
                f"the same; {instead}"
            )
        if not renamed:
            shown = ", ".join(
                f"{i} {_text(other.tokens[i])} for {_text(self.tokens[i])}" for i in different[:SHOWN]
            ) + (", …" if len(different) > SHOWN else "")
            raise IncompatibleError(
                f"{names} name {len(different)} control tokens differently ({shown}) and are the same otherwise; if "
                f"those are reserved ones that neither was trained with, go on with same_vocabulary (--same-vocabulary "
                f"of sia-local), or {instead}"
            )


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def check_vocabulary(
    base: Vocabulary | None, path: Path, sha256: str | None, *, renamed: bool = False, instead: str
) -> None:
    """Raises IncompatibleError unless the value file at `path`, which stores `sha256`, has the vocabulary of its base.

    Padding aside; nothing is known, and allowed, without a fingerprint. renamed: its control tokens may have other
    names. A file without the tokens of its fingerprint cannot show which differ; then `renamed` allows any.
    """
    if base is None or sha256 is None or base.has_fingerprint(sha256):
        return
    own = Vocabulary.read(path)
    if own is not None and own.has_fingerprint(sha256):
        base.check_same(own, renamed=renamed, instead=instead)
    elif not renamed:
        raise IncompatibleError(
            f"{path.name} and {base.path.name} have different vocabularies, so their token ids do not mean the same; "
            f"{instead}, or, if only reserved control tokens have other names, go on with same_vocabulary "
            "(--same-vocabulary of sia-local)"
        )
