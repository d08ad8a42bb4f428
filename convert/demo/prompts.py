"""Story requests from a small grammar: prompts for measuring and, disjoint from them, for value-model rollouts.

`python -m sia_convert.demo.prompts` rewrites examples/prompts.txt and models/prompts-train.txt.
"""

from __future__ import annotations

import random
from pathlib import Path

from sia_local.files import atomic_write

from .corpus import with_article
from .textclean import words

ASK = (
    "Tell me a story about {s}.", "Write a story about {s}.", "Can you tell me a story about {s}?",
    "Write a short story about {s}.", "Please tell me a story about {s}.", "Tell a short story about {s}.",
)  # fmt: skip
ASK_FABLE = ("Write a fable about {s}.", "Tell me a fable about {s}.", "Write a short fable about {s}.")
CHILDREN = ("girl", "boy")
NAMES = {
    "girl": words("Lily Sara Mia Anna Emma Lucy Amy Molly Sally Jane Sue Ella Rosie Nora Ruby"),
    "boy": words("Ben Tom Tim Max Sam Jack Timmy Leo Mike Billy Joe Peter Fred Toby Oscar"),
}
ANIMALS = words(
    "dog cat bird bear fish rabbit mouse frog fox lion duck pig cow horse monkey turtle squirrel puppy "
    "kitten butterfly bee owl wolf goat sheep hen snail dolphin tiger zebra giraffe crab snake lizard "
    "mole deer hedgehog donkey"
)
OTHERS = (
    "tree",
    "car",
    "train",
    "boat",
    "robot",
    "fairy",
    "prince",
    "princess",
    "dragon",
    "farmer",
    "cloud",
    "star",
)
NEUTRAL = (
    "little",
    "big",
    "old",
    "young",
    "small",
    "quiet",
    "curious",
    "busy",
    "tall",
    "kind",
    "brave",
    "wise",
)
NEGATIVE = (
    "sad", "lonely", "angry", "scared", "grumpy", "lost", "hungry", "tired", "jealous", "greedy", "selfish", "mean",
    "lazy", "proud", "cruel", "gloomy", "bitter", "weak", "clumsy", "stubborn",
)  # fmt: skip
THINGS = (
    "ball", "tree", "boat", "key", "box", "kite", "cake", "hat", "garden", "river", "lake", "bell", "book", "flower",
    "drum", "lamp", "bridge", "apple", "stone", "blanket", "swing", "bike", "pond", "toy", "nest", "egg", "mirror",
)  # fmt: skip
PLACES = (
    "in a dark forest", "in a cold valley", "near a river", "on a mountain", "in a garden", "on a farm", "by the sea",
    "in a small town", "in a swamp", "in a desert", "in a big city", "in a cave", "on an island",
)  # fmt: skip
SORROWS = (
    "who was sad", "who was lost", "who was scared of the dark", "who was very angry", "who had no friends",
    "who lost {p} way", "who was hurt", "who broke {p} leg", "who was sick", "who was afraid of the storm",
    "who was all alone", "who cried all day", "who lost {p} home", "who was very hungry", "who fell into a hole",
)  # fmt: skip
TRAITS = (
    "who learns to share", "who learns to wait", "who wants to fly", "who finds a map", "who likes to sing",
    "who goes on a trip", "who meets a stranger", "who tells the truth", "who helps a stranger", "who learns to listen",
)  # fmt: skip


def subject(rng: random.Random, negative: bool) -> str:
    """One subject: an animal, child or thing with an object, a place, a trait or a sorrow; never a bare noun."""
    kind = rng.random()
    child = kind < 0.3
    noun = rng.choice(CHILDREN) if child else rng.choice(ANIMALS if kind < 0.88 else OTHERS)
    adjective = rng.choice(NEGATIVE if negative and rng.random() < 0.6 else NEUTRAL)
    phrase = with_article(f"{adjective} {noun}")
    if child and rng.random() < 0.75:
        phrase += " named " + rng.choice(NAMES[noun])
    whose = {"girl": "her", "boy": "his", "princess": "her", "prince": "his", "fairy": "her", "hen": "her"}
    roll = rng.random()
    if negative and (adjective in NEUTRAL or roll < 0.3):
        return f"{phrase} {rng.choice(SORROWS).format(p=whose.get(noun, 'its'))}"
    if roll < 0.45:
        return f"{phrase} and {with_article(rng.choice(THINGS))}"
    if roll < 0.65 and not child:
        return f"{phrase} {rng.choice(PLACES)}"
    return f"{phrase} {rng.choice(TRAITS)}"


def make_prompts(count: int, seed: int, exclude: frozenset[str] = frozenset(), negative: float = 0.5) -> list[str]:
    """`count` distinct requests about distinct subjects; none whose subject is in a prompt of `exclude`."""
    rng = random.Random(seed)
    taken = {p.split(" about ", 1)[1].rstrip(".?") for p in exclude if " about " in p}
    prompts: list[str] = []
    while len(prompts) < count:
        about = subject(rng, rng.random() < negative)
        if about in taken:
            continue
        taken.add(about)
        fable = "named" not in about and rng.random() < 0.25
        prompts.append(rng.choice(ASK_FABLE if fable else ASK).format(s=about))
    return prompts


def main() -> None:
    """Writes both files; the same files every time."""
    root = Path(__file__).parents[2]
    measured = make_prompts(240, seed=2024)
    rollouts = make_prompts(1500, seed=7, exclude=frozenset(measured))
    for path, lines in (
        (root / "examples/prompts.txt", measured),
        (root / "models/prompts-train.txt", rollouts),
    ):
        with atomic_write(path) as handle:
            handle.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
