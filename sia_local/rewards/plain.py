"""Plain English: how easy a text is to read (`plain`), and an independent judge of it (`common`).

`plain` is the reading ease of Flesch (1948, "A new readability yardstick", Journal of Applied Psychology 32)
over 100, so that 1 is "very easy" and 0.3 is "difficult":

    ease = 2.06835 - 0.01015 * words a sentence - 0.846 * syllables a word,    cut to 0 ... 1

`common` is the mean Zipf frequency (log10 of occurrences in a thousand million words, 0 to about 7.7) of the
distinct words of a text, from the package wordfreq: it knows nothing of syllables and sentences.

Flesch trusts that a text is English prose. Here a model is steered by the number, so what would raise it without
being plain is taken away; an ordinary answer of some forty words loses nothing to any of this:

- *Fragments.* A full stop ends a sentence only after six words, a blank line or a new list item only after twelve;
  what is shorter is read together with what follows. A single line break ends nothing.
- *A text cut at its token limit.* The words after the last full stop count for the syllables. They count as a
  sentence only where they are already longer than the average one: of the others nobody knows how long they
  would have become. A text without any full stop is one sentence, of twelve words at least.
- *Nearly empty texts.* Both numbers are multiplied by words / 20 below 20 words.
- *Repetition.* They are multiplied by (distinct word triples / triples) / 0.9 and by (distinct words / words, the
  mean over windows of 50 words) / 0.55, where those are below 1.
- *Garbage.* They are multiplied by (words that wordfreq finds once in a million or more / words) / 0.9 and by
  (letters / characters but spaces) / 0.8, where those are below 1. Without letters both are 0.

What they do not see: grammar, truth, and whether the question was answered. Perplexity under the base does.
Syllables are the greater of two counts that both miss some: hyphenation points of pyphen (never before or after
a single letter: "about" has none) and groups of vowels ("being" has one). Both packages carry their data.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..errors import ConfigError

FULL_STOP, BREAK = 6, 12  # words after which a full stop, or a blank line or list item, ends a sentence
ENOUGH = 20  # words
WINDOW = 50  # words
TRIPLES, DISTINCT, KNOWN, LETTERS = 0.9, 0.55, 0.9, 0.8
RARE = 1e-6  # a share of all words; the list goes down to 1e-8, where any three letters are a word of somebody

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
# A word, an end of sentence (not the point of "1." before a list item or of an initial), a blank line, a list item.
_PIECE = re.compile(
    rf"(?P<word>{_WORD.pattern})|(?P<stop>(?<!^\d)(?<!^\d\d)(?<!\b[A-Z])[.!?\u2026]+(?=[\"'\u201d)\]*_]*(?:\s|$)))"
    r"|(?P<line>\n\s*\n|\n\s*(?=(?:[-*\u2022#]|\d+[.)])\s?))",
    re.MULTILINE,
)
_TITLES = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "vs", "jr", "sr"])
_VOWELS = re.compile(r"[aeiouy]+")


def load_plain() -> PlainEnglish:
    """The reward `plain`; ConfigError names the extra when a package is missing."""
    pyphen = _package("pyphen", "plain")
    return PlainEnglish(_frequencies("plain"), pyphen.Pyphen(lang="en_US"))


def load_common() -> CommonWords:
    """The judge `common`; ConfigError names the extra when a package is missing."""
    return CommonWords(_frequencies("common"))


def _package(name: str, reward: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"reward '{reward}' needs the package {name}, which is not installed: pip install 'sia-local[rewards]'"
        ) from error


def _frequencies(reward: str) -> dict[str, float]:
    table: dict[str, float] = _package("wordfreq", reward).get_frequency_dict("en", "best")
    return table


@dataclass(frozen=True)
class Counts:
    """What is counted in a text: its words in lower case, and the words of its sentences."""

    words: list[str]
    sentences: list[int]  # words of each finished sentence
    rest: int  # words after the last of them
    letters: float  # share of the characters but spaces

    @property
    def sentence_length(self) -> float:
        """Words a sentence, an unfinished one counted only where it is longer than the finished ones."""
        if not self.sentences:
            return float(max(self.rest, BREAK))
        average = sum(self.sentences) / len(self.sentences)
        if self.rest <= average:
            return average
        return (sum(self.sentences) + self.rest) / (len(self.sentences) + 1)


def count(text: str) -> Counts:
    """Words and sentences of a text, as the formula reads them."""
    text = re.sub(r"^[ \t]+", "", text.replace("\u2019", "'"), flags=re.MULTILINE)
    words: list[str] = []
    sentences: list[int] = []
    length = 0
    for piece in _PIECE.finditer(text):
        if piece["word"]:
            words.append(piece["word"].lower())
            length += 1
            continue
        if piece["stop"] and piece["stop"] == "." and words and words[-1] in _TITLES:
            continue
        if length >= (FULL_STOP if piece["stop"] else BREAK):
            sentences.append(length)
            length = 0
    solid = sum(not character.isspace() for character in text)
    # Apostrophes within words are part of them.
    letters = sum(map(len, words)) / solid if solid else 0.0
    return Counts(words, sentences, length, letters)


@dataclass(frozen=True)
class _Guarded:
    frequencies: dict[str, float] = field(repr=False)

    def frequency(self, word: str) -> float:
        """The word's share of all words, 0 where it is not listed; a possessive is as common as what possesses."""
        return self.frequencies.get(word.removesuffix("'s"), 0.0) or self.frequencies.get(word, 0.0)

    def honest(self, counts: Counts) -> float:
        """1 for an ordinary text; less for one that is nearly empty, repeats itself, or is no English."""
        words = counts.words
        if not words:
            return 0.0
        triples = list(zip(words, words[1:], words[2:], strict=False))
        windows = [words[i : i + WINDOW] for i in range(0, max(1, len(words) - WINDOW + 1))]
        distinct = sum(len(set(part)) / len(part) for part in windows) / len(windows)
        parts = (
            len(words) / ENOUGH,
            len(set(triples)) / len(triples) / TRIPLES if triples else 1.0,
            distinct / DISTINCT,
            sum(self.frequency(word) >= RARE for word in words) / len(words) / KNOWN,
            counts.letters / LETTERS,
        )
        return math.prod(min(1.0, part) for part in parts)


@dataclass(frozen=True)
class PlainEnglish(_Guarded):
    """Flesch reading ease over 100, between 0 and 1; the guards are in the module's docstring."""

    hyphenator: Any = field(repr=False)
    name: str = "plain"
    syllables: Callable[[str], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "syllables", lru_cache(100_000)(self._syllables))

    def _syllables(self, word: str) -> int:
        """Syllables of a word in lower case, one at least."""
        groups = len(_VOWELS.findall(word))
        silent = word.endswith("e") and not word.endswith(("le", "ee", "ie"))
        silent |= word.endswith("ed") and not word.endswith(("ted", "ded", "eed"))
        silent |= word.endswith("es") and not word.endswith(("ses", "zes", "ches", "shes", "xes", "ces", "ges", "les"))
        return max(1, groups - (silent and groups > 1), len(self.hyphenator.positions(word)) + 1)

    def ease(self, text: str) -> float:
        counts = count(text)
        honest = self.honest(counts)
        if not honest:
            return 0.0
        syllables = sum(map(self.syllables, counts.words)) / len(counts.words)
        ease = 2.06835 - 0.01015 * counts.sentence_length - 0.846 * syllables
        return min(1.0, max(0.0, ease)) * honest

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        _check(self.name, prompts, responses)
        return [self.ease(text) for text in responses]


@dataclass(frozen=True)
class CommonWords(_Guarded):
    """Mean Zipf frequency of the distinct words of a text, 0 to about 7.7; higher is commoner words."""

    name: str = "common"

    def commonness(self, text: str) -> float:
        counts = count(text)
        honest = self.honest(counts)
        if not honest:
            return 0.0
        distinct = sorted(set(counts.words))
        found = [self.frequency(word) for word in distinct]
        return honest * sum(max(0.0, math.log10(f) + 9.0) for f in found if f > 0) / len(distinct)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        _check(self.name, prompts, responses)
        return [self.commonness(text) for text in responses]


def _check(name: str, prompts: Sequence[str], responses: Sequence[str]) -> None:
    if len(prompts) != len(responses):
        raise ConfigError(
            f"reward '{name}' was given {len(prompts)} prompts and {len(responses)} responses, "
            "expected one prompt a response"
        )
