"""A second judge of tone: logistic regression on words and word pairs, scored in numpy.

It was trained on film reviews only (`sia-convert judge`), never on the reward that the value model was
trained on, so a lift it sees is not the reward being gamed. It judges *stories*, hence two choices: words
that do not occur in stories were never features, and the logit is centred and scaled by what unlabelled
stories of the judged length score, so that a text of 80 tokens lands in the middle of [-1, 1].
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ModelFileError
from ..files import atomic_write
from ..shipped import own_folder

DEFAULT_FILE = "polarity-judge.npz"
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[!?]")


def features(text: str) -> set[str]:
    """The distinct words and word pairs of a text, lower-cased; `!` and `?` count as words."""
    words = _WORD.findall(text.lower().replace("\u2019", "'"))
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


@dataclass(frozen=True)
class PolarityJudge:
    """Score = tanh((logit - centre) / (2 scale)), in (-1, 1); higher is more positive than the usual story.

    logit = bias + sum of the weights of the text's known features / sqrt(their number): a length of one
    for every text, as in training, so a long text is not judged more extreme for being long.
    """

    vocabulary: dict[str, int] = field(repr=False)
    weights: npt.NDArray[np.float32] = field(repr=False)
    bias: float
    centre: float
    scale: float
    accuracy: float  # held-out accuracy on sentence_polarity, sentences
    accuracy_reviews: float  # held-out accuracy on movie_reviews, whole reviews
    about: str
    name: str = "polarity"

    def logit(self, text: str) -> float:
        found = [self.vocabulary[item] for item in features(text) if item in self.vocabulary]
        if not found:
            return self.bias
        # Sorted, so that the float sum does not depend on the order of a set of strings.
        return self.bias + float(np.sum(self.weights[sorted(found)], dtype=np.float64)) / len(found) ** 0.5

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if len(prompts) != len(responses):
            raise ConfigError(
                f"reward 'polarity' was given {len(prompts)} prompts and {len(responses)} responses, "
                "expected one prompt a response"
            )
        return [float(np.tanh((self.logit(text) - self.centre) / (2 * self.scale))) for text in responses]

    def save(self, path: str | os.PathLike[str]) -> None:
        with atomic_write(path, "wb") as handle:
            np.savez_compressed(
                handle,
                vocabulary=np.frombuffer("\n".join(self.vocabulary).encode(), dtype=np.uint8),
                weights=self.weights.astype(np.float16),
                numbers=np.array(
                    [self.bias, self.centre, self.scale, self.accuracy, self.accuracy_reviews], np.float64
                ),
                about=np.frombuffer(self.about.encode(), dtype=np.uint8),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> PolarityJudge:
        """Reads the file that `save` wrote; without a path, the one shipped in `models/`."""
        source = Path(path) if path is not None else shipped_judge()
        try:
            with np.load(source, allow_pickle=False) as data:
                items = data["vocabulary"].tobytes().decode().split("\n")
                weights = data["weights"].astype(np.float32)
                bias, centre, scale, accuracy, reviews = (float(x) for x in data["numbers"])
                about = data["about"].tobytes().decode()
        except FileNotFoundError as error:
            raise ModelFileError(
                f"the judge '{source}' does not exist; check the path, or write it with "
                f"`sia-convert judge --data FOLDER -o {source}`"
            ) from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ModelFileError(
                f"'{source}' is not a judge written by `sia-convert judge` ({error}); write it anew"
            ) from error
        if len(items) != len(weights):
            raise ModelFileError(
                f"the judge '{source}' has {len(items)} features and {len(weights)} weights; write it anew"
            )
        vocabulary = {item: index for index, item in enumerate(items)}
        return cls(vocabulary, weights, bias, centre, scale, accuracy, reviews, about)


def shipped_judge() -> Path:
    return own_folder() / DEFAULT_FILE
