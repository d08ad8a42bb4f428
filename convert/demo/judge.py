"""Trains the second judge of tone on film reviews (Pang and Lee 2004, 2005), for stories.

Sentences and pieces of reviews about as long as a judged story are the training texts. The split is by
content: a text's hash decides, so copies of a sentence fall on one side. Stories are read without any label,
for two things only: a feature must occur in them (otherwise names of actors and `cinematography` would
carry the decision), and their logits give the centre and scale of the score.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import ConfigError, DataError
from sia_local.rewards.judge import PolarityJudge, features

from ..data.trajectories import read_jsonl

STORY_CHARACTERS = 15_000_000  # of each file; in the shared classics, the children's books
PIECE_WORDS = 60  # about 80 tokens of a small byte-level BPE
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
FEATURES = 60_000  # at most


@dataclass(frozen=True)
class Labelled:
    text: str
    label: int
    split: str  # "train", "dev" or "test"


def split_of(text: str) -> str:
    """80 / 10 / 10 by the hash of the normalised text."""
    bucket = int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:8], 16) % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def read_sentences(path: Path) -> list[Labelled]:
    rows = []
    with _archive(path) as archive:
        for name, label in (("rt-polarity.pos", 1), ("rt-polarity.neg", 0)):
            try:
                text = archive.read(f"sentence_polarity/{name}").decode("latin-1")
            except KeyError as error:
                raise DataError(f"'{path}' holds no sentence_polarity/{name}; expected the data set's zip") from error
            lines = (line.strip() for line in text.splitlines())
            rows += [Labelled(line, label, split_of(line)) for line in lines if line]
    return rows


def read_reviews(path: Path) -> list[Labelled]:
    rows = []
    with _archive(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                text = archive.read(name).decode("latin-1")
                rows.append(Labelled(text, int("/pos/" in name), split_of(text)))
    return rows


def read_stories(paths: Iterable[Path]) -> list[str]:
    """Unlabelled stories: JSONL with `text`, or plain text with a blank line between paragraphs."""
    stories: list[str] = []
    for path in paths:
        if ".jsonl" in path.name:
            for number, entry in read_jsonl(path):
                if not isinstance(entry.get("text"), str):
                    raise DataError(f"{path}, line {number}: expected an object with a story as `text`")
                stories.append(entry["text"])
            continue
        try:
            text = _read_text(path)[:STORY_CHARACTERS]
        except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise DataError(f"the stories '{path}' cannot be read ({error}); give .txt or .jsonl, also .xz") from error
        stories += [part for part in text.split("\n\n") if part.strip()]
    return [piece for story in stories for piece in pieces(story)]


def _read_text(path: Path) -> str:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes()).decode()
    return path.read_text(encoding="utf-8")


def pieces(text: str, words: int = PIECE_WORDS) -> Iterator[str]:
    """Consecutive pieces of `words` words; a remainder under half of that is dropped unless it is all."""
    parts = text.split()
    for start in range(0, len(parts), words):
        part = parts[start : start + words]
        if len(part) >= words // 2 or start == 0:
            yield " ".join(part)


def train_judge(
    sentences: list[Labelled],
    reviews: list[Labelled],
    stories: list[str],
    *,
    size: int = FEATURES,
    seed: int = 0,
) -> tuple[PolarityJudge, dict[str, Any]]:
    """The judge and the figures about it; the regularisation is chosen on dev, test is read once."""
    from sklearn.linear_model import LogisticRegression

    if not sentences or not reviews or not stories:
        raise ConfigError("the judge needs sentences, reviews and stories, and one of them is empty")
    chunks = [Labelled(p, r.label, r.split) for r in reviews for p in pieces(r.text)]
    train = [row for row in sentences + chunks if row.split == "train"]
    vocabulary = _choose_features((row.text for row in train), stories, size)
    x_train, y_train = _matrix([row.text for row in train], vocabulary), np.array([r.label for r in train])
    # A review gives a dozen pieces with one (noisy) label: together they weigh a fifth of the sentences.
    weight = np.where(np.arange(len(train)) < sum(r.split == "train" for r in sentences), 1.0, 0.15)

    best: tuple[float, Any] | None = None
    dev = [row for row in sentences if row.split == "dev"]
    x_dev, y_dev = _matrix([row.text for row in dev], vocabulary), np.array([r.label for r in dev])
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=2000, random_state=seed)
        model.fit(x_train, y_train, sample_weight=weight)
        score = float(model.score(x_dev, y_dev))
        if best is None or score > best[0]:
            best = (score, model)
    assert best is not None
    weights = best[1].coef_[0].astype(np.float16).astype(np.float32)  # as it will be stored
    raw = PolarityJudge(vocabulary, weights, float(best[1].intercept_[0]), 0.0, 1.0, 0.0, 0.0, "")
    on_stories = np.array([raw.logit(text) for text in stories])
    figures = {
        "accuracy_sentences": _accuracy(raw, [r for r in sentences if r.split == "test"]),
        "accuracy_reviews": _review_accuracy(raw, [r for r in reviews if r.split == "test"]),
        "accuracy_dev": best[0],
        "strength": best[1].C,
        "features": len(vocabulary),
        "train_texts": len(train),
        "test_sentences": sum(r.split == "test" for r in sentences),
        "test_reviews": sum(r.split == "test" for r in reviews),
        "stories": len(stories),
        "centre": float(np.median(on_stories)),
        "scale": float(np.std(on_stories)),
    }
    about = json.dumps({"data": "sentence_polarity, movie_reviews (CC BY 4.0)", **figures})
    judge = PolarityJudge(
        vocabulary,
        weights,
        raw.bias,
        figures["centre"],
        figures["scale"],
        figures["accuracy_sentences"],
        figures["accuracy_reviews"],
        about,
    )
    return judge, figures


def _choose_features(texts: Iterable[str], stories: Iterable[str], size: int) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(features(text))
    in_stories: Counter[str] = Counter()
    for story in stories:
        in_stories.update(features(story))
    usable = [(item, n) for item, n in counts.items() if n >= 3 and in_stories[item] >= 3]
    usable.sort(key=lambda pair: (-pair[1], pair[0]))
    return {item: index for index, item in enumerate(sorted(item for item, _ in usable[:size]))}


def _matrix(texts: list[str], vocabulary: dict[str, int]) -> Any:
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    indptr, indices, data = [0], [], []
    for text in texts:
        found = sorted(vocabulary[item] for item in features(text) if item in vocabulary)
        indices += found
        data += [max(len(found), 1) ** -0.5] * len(found)
        indptr.append(len(indices))
    return csr_matrix((data, indices, indptr), shape=(len(texts), len(vocabulary)))


def _accuracy(judge: PolarityJudge, rows: list[Labelled]) -> float:
    return float(np.mean([(judge.logit(row.text) > 0) == bool(row.label) for row in rows]))


def _review_accuracy(judge: PolarityJudge, rows: list[Labelled]) -> float:
    """A review is the mean logit of its pieces, so that it is judged at the length the judge is made for."""
    means = [np.mean([judge.logit(piece) for piece in pieces(row.text)]) for row in rows]
    return float(np.mean([(mean > 0) == bool(row.label) for mean, row in zip(means, rows, strict=True)]))


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' cannot be read as a zip archive ({error}); expected the data set's zip") from error
