"""`sia-convert judge`: trains the second judge of tone that `eval` uses."""

from __future__ import annotations

from pathlib import Path

import click

from ..demo.judge import FEATURES

DATA = "../shared/data"


@click.command("judge")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path(DATA),
    show_default=True,
    help="Folder with sentence_polarity.zip and movie_reviews.zip.",
)
@click.option(
    "--stories",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Unlabelled texts like the ones to be judged (.txt, .jsonl, also .xz); "
    "they choose the features and the scale, never the direction. Default: the stories in --data.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("models/polarity-judge.npz"),
    show_default=True,
    help="The file to write.",
)
@click.option("--features", "size", default=FEATURES, show_default=True, help="At most so many words and word pairs.")
def judge(data: Path, stories: tuple[Path, ...], output: Path, size: int) -> None:
    """Train the judge of tone (words and word pairs, logistic regression) on film reviews, for stories."""
    from ..demo.judge import read_reviews, read_sentences, read_stories, train_judge

    names = ("fables.jsonl.xz", "tinystories_sample.txt.xz", "classics.txt.xz")
    texts = stories or tuple(data / name for name in names)
    trained, figures = train_judge(
        read_sentences(data / "sentence_polarity.zip"),
        read_reviews(data / "movie_reviews.zip"),
        read_stories(texts),
        size=size,
    )
    trained.save(output)
    click.echo(
        f"{output}: {figures['features']} features from {figures['train_texts']} texts; held-out accuracy "
        f"{figures['accuracy_sentences']:.3f} on {figures['test_sentences']} sentences, "
        f"{figures['accuracy_reviews']:.3f} on {figures['test_reviews']} whole reviews."
    )
