"""Documents for pretraining: stories, fables and old children's prose, most of them in chat form.

The request of a chat document is made from its story (character, name, object, place, mood) by templates,
so that the model learns to write about what it is asked for.
"""

from __future__ import annotations

import lzma
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sia_local.errors import DataError
from sia_local.files import parse_json

from .textclean import (
    BOYS,
    GIRLS,
    clean_fable,
    cut,
    find_names,
    good_fable,
    names_in,
    plain_quotes,
    recase,
    split_tinystories,
    words,
)

COLLECTIONS = ("tinystories_sample.txt.xz", "fables.jsonl.xz", "classics.txt.xz")
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM_PROMPTS = (
    "You are a friendly storyteller.", "You write short stories for children.", "You are a helpful assistant.",
    "You tell short, simple stories.", "You are a storyteller. Answer with one short story.",
)  # fmt: skip
ASK = (
    "Tell me a {m}story about {s}.", "Tell me a {m}story about {s}.", "Write a {m}story about {s}.",
    "Can you tell me a {m}story about {s}?", "Please write a short {m}story about {s}.", "I want a {m}story about {s}.",
    "Write a {m}tale about {s}.", "Tell a short {m}story about {s}, please.", "Story about {s}.",
    "Please tell me a {m}story about {s}.", "Write me a {m}bedtime story about {s}.",
)  # fmt: skip
ASK_FABLE = (
    "Write a fable about {s}.", "Tell me a fable about {s}.", "Write a short fable about {s}.",
    "Tell me a story about {s}.", "Please write a fable about {s}.", "Write a story about {s}.",
)  # fmt: skip
ASK_MORE = ("Tell me another one.", "Another story, please.", "One more!", "Now tell me one about {s}.")
CLASSICS = frozenset((
    "Abbie Farwell Brown", "Aesop", "Anna Sewell", "Beatrix Potter", "Carlo Collodi", "Edith Nesbit",
    "Gertrude Chandler Warner", "Hans Christian Andersen", "Hugh Lofting", "J. M. Barrie", "Kenneth Grahame",
    "L. Frank Baum", "Lewis Carroll", "The Brothers Grimm", "Johanna Spyri", "George MacDonald", "Howard Pyle",
))  # fmt: skip
_SAD = frozenset(
    words(
        "sad cried crying tears lonely lost scared afraid angry mad hurt broke broken mean gloomy sorry "
        "worried upset alone sick dark died dead never bad fell"
    )
)
_GLAD = frozenset(
    words(
        "happy happily smiled laughed fun loved love hug hugged glad joy excited proud friends friend played "
        "kind thanked wonderful nice"
    )
)
_STATE = re.compile(
    r"\b(?:was|felt|were|feeling|became|got) (?:very |so |all )?"
    r"(sad|scared|lonely|lost|angry|hungry|tired|worried|upset|afraid|sick|bored|jealous|hurt|cold|alone|excited|happy)\b"
)
_CREATURE = words(
    "girl boy dog cat bird bear fish rabbit bunny mouse frog fox lion duck pig cow horse elephant monkey "
    "turtle squirrel puppy kitten butterfly bee ant spider owl tree flower car truck train boat robot "
    "fairy princess prince king queen dragon man woman lady farmer child wolf goat sheep chicken hen "
    "snail worm whale dolphin shark tiger zebra giraffe crab snake lizard bug ladybug doll teddy toy star "
    "cloud bus plane ball balloon leaf baby mole deer hedgehog"
)
_INTRODUCED = re.compile(
    r"\b([Aa]n?) ((?:[a-z]+,? ){0,2})(" + "|".join(_CREATURE) + r")\b(?:,? (?:named|called) ([A-Z][a-z]+))?"
)
_THING = re.compile(
    r"\b(?:the|a|an|his|her|some|their) ([a-z]{3,12})"
    r"(?=[.,!?\"]| (?:was|were|is|and|in|on|to|with|that|for|from|at|but|so)\b)"
)
_NOT_THINGS = frozenset(
    words(
        "day time end way one other little lot little girl boy mom dad friend friends same very new first "
        "next big best bit rest moment idea kids other others mother father mommy daddy fun side top middle "
        "thing things place people not how feel small wet burn squeeze attention requests request water "
        "family answer heart arm mouth eye childhood secret favorite accident game journey morning night "
        "while story world name face hand hands head eyes voice ground floor back children man woman"
    )
)


@dataclass(frozen=True)
class Story:
    """A cleaned story and what its request can mention."""

    text: str
    kind: str
    subject: str = ""
    names: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    state: str = ""
    place: str = ""
    teaching: str = ""
    mood: str = ""
    title: str = ""


@dataclass(frozen=True)
class Sources:
    """The three collections after cleaning; `classics` holds passages of plain text."""

    stories: list[Story] = field(default_factory=list)
    fables: list[Story] = field(default_factory=list)
    classics: list[str] = field(default_factory=list)


def with_article(noun: str) -> str:
    """ "a needle", "an apple", "some shoes"."""
    if noun.endswith("s") and not noun.endswith("ss"):
        return "some " + noun
    return ("an " if noun[:1] in "aeiou" else "a ") + noun


def mood_of(text: str) -> str:
    """ "sad", "happy" or "" by counts of plain words; the ending counts twice."""
    said = re.findall(r"[a-z]+", text.lower())
    both = said + said[-len(said) // 3 :]
    low, high = sum(w in _SAD for w in both), sum(w in _GLAD for w in both)
    if low >= 4 and low > 1.5 * high:
        return "sad"
    return "happy" if high >= 5 and high > 3 * low else ""


def _tiny_story(text: str, names: list[str], rarity: Counter[str]) -> Story:
    subject, state = "", ""
    opening = text[:350]
    match = next((m for m in _INTRODUCED.finditer(opening) if m.group(2) or m.group(4)), None)
    match = match or _INTRODUCED.search(opening)
    proper = [n.capitalize() for n in names]
    if match:
        subject = f"{match.group(1).lower()} {match.group(2)}{match.group(3)}".replace(",", "")
        if match.group(4):
            subject += f" named {match.group(4)}"
        elif len(proper) == 1 and match.group(3) in ("girl", "boy", "dog", "cat", "bird", "bear", "rabbit"):
            subject += f" named {proper[0]}"
    elif proper:
        present = [n for n in proper if n in text[:250]][:2]
        subject = " and ".join(present)
    if found := _STATE.findall(text[: 2 * len(text) // 3]):
        state = found[0]
    counted = Counter(t for t in _THING.findall(text) if t not in _NOT_THINGS and t not in subject)
    ranked = sorted(counted, key=lambda t: -counted[t] / (30 + rarity[t]))
    return Story(
        text, "story", subject, tuple(proper), tuple(t for t in ranked[:4] if counted[t] > 1 or rarity[t] < 400),
        state, mood=mood_of(text),
    )  # fmt: skip


def _fable(record: dict[str, str | None]) -> Story | None:
    title, body = clean_fable(record["text"] or "")
    if not good_fable(body):
        return None
    given = dict(re.findall(r"- (Main Character|Setting|Teaching): (.+)", record.get("prompt") or ""))
    subject, place = (
        given.get("Main Character", ""),
        given.get("Setting", "").replace(" where our story unfolds", ""),
    )
    subject = re.sub(r"^a (?=[aeiou])", "an ", subject.strip().lower())
    place = re.sub(r"^a (?=[aeiou])", "an ", place.strip().lower())
    if not subject and (match := _INTRODUCED.search(body[:500])):
        subject = f"{match.group(1).lower()} {match.group(2)}{match.group(3)}".replace(",", "")
    teaching = given.get("Teaching", "").strip().lower().rstrip(".")
    return Story(body, "fable", subject, (), (), "", place, teaching, mood_of(body), title)


def check_sources(folder: Path) -> None:
    """DataError when a collection is missing."""
    for name in COLLECTIONS:
        if not (folder / name).is_file():
            raise DataError(f"no {name} in {folder}: give the folder of the training data with --data")


def load_sources(folder: Path, limit: int | None = None) -> Sources:
    """Reads and cleans the collections under `folder` (`limit` keeps that many of each; for tests).

    Raises DataError when a file is missing.
    """
    check_sources(folder)
    names = COLLECTIONS
    with lzma.open(folder / names[0], "rt", encoding="utf-8") as handle:
        raw = split_tinystories(handle.read())[:limit]
    raw = [s for s in dict.fromkeys(raw) if len(s) > 200 and s.isascii() and s[-1] in '.!?"']
    known = find_names(raw)
    rarity = Counter(w for s in raw for w in set(_THING.findall(s)))
    stories = []
    for text in raw:
        own = names_in(text, known)
        stories.append(_tiny_story(recase(text, own), own, rarity))
    with lzma.open(folder / names[1], "rt", encoding="utf-8") as handle:
        fables = [f for line in list(handle)[:limit] if (f := _fable(parse_json(line)))]
    with lzma.open(folder / names[2], "rt", encoding="utf-8") as handle:
        books = handle.read(1_000_000 if limit else 15_000_000).split("<|document|> ")
    classics = [p for b in books if b.split(" — ")[0].strip() in CLASSICS for p in _passages(b)]
    return Sources(stories, fables, classics[:limit])


def _passages(book: str) -> Iterator[str]:
    """Pieces of about 1,200 characters, whole paragraphs; short lines (headings, contents) are left out."""
    piece = ""
    for line in book.split("\n")[1:]:
        line = plain_quotes(line)
        if len(line) < 40 and line[-1:] not in '.!?"':
            continue
        piece = f"{piece}\n\n{line}" if piece else line
        if len(piece) > 1200:
            if piece.isascii() and len(piece) < 4000:
                yield piece
            piece = ""


def _rename(story: Story, rng: random.Random) -> Story:
    """The same story with other common names: cheap variety against learning texts by heart."""
    text, subject, names = story.text, story.subject, list(story.names)
    for i, name in enumerate(names):
        for pool in (GIRLS, BOYS):
            if name.lower() in pool and rng.random() < 0.6:
                new = rng.choice(pool).capitalize()
                if new not in text:
                    text, subject = (re.sub(rf"\b{name}\b", new, t) for t in (text, subject))
                    names[i] = new
    return Story(text, story.kind, subject, tuple(names), story.things, story.state, mood=story.mood)


def _shorten(story: Story, rng: random.Random) -> str:
    text = story.text
    if story.kind == "fable":
        if len(text) > 1100 and rng.random() < 0.75:
            text = cut(text, rng.randint(750, 1100))
            animal = story.subject.split()[-1] if story.subject else ""
            if animal and story.teaching and rng.random() < 0.8:
                opening = rng.choice(("And so", "In the end,", "That day"))
                text += f"\n\n{opening} the {animal} learned that {story.teaching}."
        return text
    return cut(text, rng.randint(800, 1000)) if len(text) > 1100 and rng.random() < 0.5 else text


def subject_phrase(story: Story, rng: random.Random) -> str:
    """What the request asks about, from the facts of the story."""
    subject, things = story.subject, list(story.things)
    rng.shuffle(things)
    roll = rng.random()
    if story.kind == "fable":
        phrase = subject or story.title
        if story.place and roll < 0.4:
            phrase += f" in {story.place}"
        elif story.teaching and roll < 0.55:
            phrase += f" who learns that {story.teaching}"
        return phrase
    if not subject:
        return " and ".join(with_article(t) for t in things[:2])
    if story.state and roll < 0.35:
        return f"{subject} who {'were' if ' and ' in subject else 'was'} {story.state}"
    if things and roll < 0.8:
        return f"{subject} and {with_article(things[0])}"
    return with_article(things[0]) if things and roll < 0.86 else subject


def request(story: Story, rng: random.Random) -> str:
    """A user turn that asks for this story."""
    phrase = subject_phrase(story, rng)
    if not phrase:
        return rng.choice(("Tell me a story.", "Tell me a short story.", "Write a story for children."))
    mood = ""
    if story.mood and rng.random() < 0.3:
        mood = rng.choice(("sad ",) if story.mood == "sad" else ("happy ", "cheerful ", "nice "))
    asked = rng.choice(ASK_FABLE if story.kind == "fable" else ASK).format(s=phrase, m=mood)
    return asked.replace("a happy bedtime", "a bedtime")


def turn(role: str, text: str) -> str:
    """One ChatML turn, closing line break included."""
    return f"{IM_START}{role}\n{text}{IM_END}\n"


def document(sources: Sources, share_classics: float, rng: random.Random, story: Story | None = None) -> str:
    """One training document without the end-of-text mark; `story` is taken unless old prose is drawn."""
    if sources.classics and (story is None or rng.random() < share_classics):
        return rng.choice(sources.classics)
    if story is None:
        raise DataError("the corpus holds no stories: check the folder given with --data")
    story = _rename(story, rng) if story.kind == "story" else story
    body = _shorten(story, rng)
    roll = rng.random()
    if roll < 0.08:
        return body
    if roll < 0.12 and (first := re.match(r"[^.!?]+[.!?]", body)) and len(body) > first.end() + 100:
        return turn("user", "Continue this story: " + first.group()) + turn("assistant", body[first.end() :].strip())
    chat = turn("system", rng.choice(SYSTEM_PROMPTS)) if roll < 0.22 else ""
    chat += turn("user", request(story, rng)) + turn("assistant", body)
    if roll > 0.94 and sources.stories and len(body) < 900:
        other = _rename(rng.choice(sources.stories), rng)
        ask = rng.choice(ASK_MORE).format(s=subject_phrase(other, rng) or "a friend")
        chat += turn("user", ask) + turn("assistant", cut(other.text, 900))
    return chat


def epoch(sources: Sources, share_classics: float, seed: int) -> Iterator[str]:
    """Every story and fable once, in random order, with freshly drawn requests, names and old prose between."""
    rng = random.Random(seed)
    items = [*sources.stories, *sources.fables]
    rng.shuffle(items)
    for story in items:
        if rng.random() < share_classics / max(1e-9, 1.0 - share_classics) and sources.classics:
            yield document(sources, 1.0, rng, story)
        yield document(sources, 0.0, rng, story)
