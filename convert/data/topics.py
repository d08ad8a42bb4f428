"""Varied questions and tasks for a base that answers: templates over topics, and the self-instruct seed tasks.

    python -m sia_convert.data.topics --seed-tasks seed_tasks.jsonl --train train.txt --held-out held_out.txt

One prompt a line, shuffled, so that any beginning of a file is a fair sample. Topics of the held-out file are not in
the training file. The seed tasks (self-instruct, Apache-2.0) are split by task.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from sia_local.files import atomic_write, parse_json
from sia_local.packed import lines

# Each field: things one can ask about, and what is asked of them; "{}" stands for the thing.
FIELDS: dict[str, tuple[str, str]] = {
    "daily life": (
        "a leaking tap|a messy kitchen|moving to a new flat|a noisy neighbour|a long train ride|a birthday party|"
        "a broken washing machine|packing a suitcase|a weekly shopping list|a rainy weekend|a family budget|"
        "a small balcony garden|a lost key|a bicycle that squeaks|a wet dog|a stained shirt|sharing a flat|"
        "a picnic by the lake|an old sofa|saving on the electricity bill|a power cut|a crowded wardrobe",
        "What should I do about {}?|Give me three tips for {}.|How do I plan for {} without stress?|"
        "What do people often get wrong about {}?|Write a short note to a friend about {}.|"
        "Describe {} as if for a diary.|What is the first thing to think of with {}?",
    ),
    "science": (
        "rainbows|earthquakes|photosynthesis|black holes|magnets|the water cycle|DNA|volcanoes|gravity|sound waves|"
        "the moon's phases|bacteria|atoms|evolution|ocean tides|lightning|the speed of light|fossils|ice ages|"
        "vaccines|electric current|the ozone layer|stars|friction|plate tectonics|cell division",
        "Explain {} to me.|What causes {}?|Why do {} matter?|What is the most surprising fact about {}?|"
        "How did people find out about {}?|Describe a simple experiment about {}.|"
        "What question about {} is still open?|Summarise what is known about {}.",
    ),
    "work": (
        "a job interview|a first day at work|a difficult customer|a long meeting|a late report|asking for a raise|"
        "working from home|a new colleague|a missed deadline|a team that argues|a business trip|leaving a job|"
        "an angry email|a presentation to the board|a tight schedule|learning a trade|a night shift|a mistake at work",
        "How should I handle {}?|Write a short email about {}.|What makes {} go well?|List the risks of {}.|"
        "Give advice to someone who fears {}.|What would a good manager say about {}?|Plan the day around {}.",
    ),
    "health": (
        "back pain|sleeping badly|a common cold|drinking enough water|running for beginners|too much sugar|"
        "high blood pressure|stretching|a sprained ankle|stress|eating more vegetables|headaches|sunburn|"
        "quitting smoking|healthy snacks|posture at a desk|allergies|breathing exercises|brushing teeth|walking daily",
        "What helps with {}?|Why is {} important to understand?|What does the body do in the case of {}?|"
        "Give a plan of one week for {}.|When should one see a doctor about {}?|Explain {} to a patient.|"
        "What are common myths about {}?",
    ),
    "history": (
        "the Roman Empire|the printing press|the Silk Road|the French Revolution|the invention of the wheel|"
        "ancient Egypt|the Industrial Revolution|the Vikings|the moon landing|the Great Wall of China|"
        "the fall of the Berlin Wall|the Black Death|the Renaissance|the first railways|the age of sail|"
        "the Olympic Games of antiquity|medieval castles|the Suez Canal|the Aztecs|the discovery of penicillin",
        "What was {}, and why does it matter?|How did {} change the life of ordinary people?|"
        "Tell the story of {} in a few sentences.|What led to {}?|Which person is most linked to {}?|"
        "What can we learn today from {}?|Describe a day of someone who lived through {}.",
    ),
    "computers": (
        "a password manager|cloud storage|an operating system|a computer virus|machine learning|a search engine|"
        "a spreadsheet|encryption|a slow laptop|the internet|a backup|open source software|a database|"
        "wireless networks|a video call|spam email|a web browser|robots|a printer that will not print|online privacy",
        "What is {}, and how does it work?|When do I need to care about {}?|Explain {} to my grandmother.|"
        "What are the pros and cons of {}?|How has {} changed over time?|Give five words that describe {}.|"
        "What should a beginner know about {}?|Compare {} with something from daily life.",
    ),
    "nature": (
        "honey bees|rain forests|penguins|mushrooms|a river in spring|wolves|coral reefs|oak trees|desert plants|"
        "whales|spiders|the northern lights|autumn leaves|earthworms|owls|wild flowers|salmon|glaciers|bats|elephants",
        "What is special about {}?|How do {} live?|Why should we protect {}?|Write a short text on {}.|"
        "What dangers threaten {}?|What would the world be without {}?|Describe {} to someone who never saw them.",
    ),
    "food": (
        "bread|a vegetable soup|coffee|cheese|pancakes|rice|an apple pie|olive oil|breakfast|pasta for four|"
        "spicy food|chocolate|a salad that fills|leftovers|green tea|potatoes|a dinner for guests|ice cream",
        "How is {} made?|What goes well with {}?|Give me a simple recipe for {}.|Where does {} come from?|"
        "Why do people like {}?|Describe the taste of {}.|What is the healthiest way to enjoy {}?",
    ),
    "society": (
        "voting|taxes|public libraries|good manners|friendship|advertising|city traffic|charity|money|schools|"
        "the news|sports clubs|museums|recycling|public transport|marriage|newspapers|volunteer work|the law|insurance",
        "Why do we have {}?|What would happen without {}?|Give two arguments for and two against {}.|"
        "How do {} differ between countries?|Explain the idea behind {}.|What is the future of {}?|"
        "What should children learn about {}?",
    ),
    "arts": (
        "the piano|poetry|a museum of modern art|photography|jazz|drawing faces|the theatre|film music|a novel|dance|"
        "the guitar|architecture|fairy tales|pottery|street art|opera|a comic book|singing in a choir",
        "What makes {} beautiful?|How does one begin with {}?|Describe the effect of {} on people.|"
        "What is the history of {}?|Write an invitation that has to do with {}.|Why do people spend time on {}?|"
        "What is hard about {}?",
    ),
}
ANY_FIELD = (
    "Write a very short story about {}.|Ask me three questions about {}.|Write a few lines of verse about {}.|"
    "Tell me something about {} that few people know.|Write the opening of a talk about {}.|"
    "What does {} have to do with my life?|Invent a proverb about {} and explain it.|"
    "Write a letter to a newspaper about {}.|Imagine a conversation between two people about {}."
)
HELD_OUT_SHARE = 6  # of the topics of a field, one in so many
LONGEST_INPUT = 300


def questions(held_out: bool) -> Iterator[str]:
    """Every template of a field with every topic on that side of the split."""
    for things, asked in FIELDS.values():
        for number, thing in enumerate(things.split("|")):
            if (number % HELD_OUT_SHARE == HELD_OUT_SHARE - 1) == held_out:
                for template in (*asked.split("|"), *ANY_FIELD.split("|")):
                    yield template.format(thing)


def seed_tasks(path: Path, held_out: bool) -> Iterator[str]:
    """Instructions with their input in one line; every tenth task is held out, those with a long input are left out."""
    for number, line in lines(path, "seed tasks, JSONL"):
        task = parse_json(line)
        text = " ".join(f"{task['instruction']} {task['instances'][0]['input']}".split())
        if (number % 10 == 0) == held_out and len(text) <= LONGEST_INPUT:
            yield text


def shuffled(prompts: Iterable[str], seed: int = 0, limit: int | None = None) -> list[str]:
    """Prompts without repetition in an order that `seed` fixes."""
    once = list(dict.fromkeys(prompts))
    random.Random(seed).shuffle(once)
    return once[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed-tasks", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300, help="held-out prompts, at most")
    given = parser.parse_args()
    for path, held_out, limit in ((given.train, False, None), (given.held_out, True, given.limit)):
        prompts = shuffled([*seed_tasks(given.seed_tasks, held_out), *questions(held_out)], limit=limit)
        with atomic_write(path) as out:
            out.writelines(f"{prompt}\n" for prompt in prompts)


if __name__ == "__main__":
    main()
