"""Cleaning of the three story collections: case restoration for TinyStories, markdown removal for the fables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence


def words(text: str) -> list[str]:
    """Space-separated words as a list: keeps word lists readable."""
    return text.split()


_MOJIBAKE = (
    ("â€œ", '"'), ("â€\x9d", '"'), ("â€™", "'"), ("â€˜", "'"), ("â€”", " - "), ("â€“", " - "), ("â€¦", "..."),
    ("â€", '"'), ("“", '"'), ("”", '"'), ("’", "'"), ("‘", "'"), ("…", "..."), ("—", " - "), ("–", "-"),
)  # fmt: skip
_NAMED = re.compile(r"\b(?:named|called|name was|name is|am) ([a-z]{3,10})\b(?! of)")
_WORD = re.compile(r"[a-z']+")
GIRLS = words(
    "lily sara sarah mia anna emma lucy amy molly sally jane sue mary ella sophie kate julie maya zoe "
    "ellie kim lisa tina bella jenny jill katie nora ruby chloe clara alice luna emily abby karen betty "
    "rosie polly"
)
BOYS = words(
    "ben tom tim max sam jack timmy john bob leo mike billy joe tommy peter fred danny bobby johnny jake "
    "charlie toby steve henry ted dan george pete adam sammy jim david andy james oscar felix"
)
_NOT_NAMES = frozenset(
    words(
        "the his her their its and that this him she they there sorry sad happy not very too happy glad "
        "scared afraid lost hungry cold your you mom dad for out after him hot tired going just mine lonely "
        "bored sure safe still here strong big small fast brave special proud ready stuck angry over from "
        "back back's them all lucky sick was with it in to on by right home who able grateful fine okay hurt "
        "sleepy busy little thirsty curious excited only"
    )
)
_DETERMINERS = frozenset(
    words("a an the his her my your our their its this that some any no every each two three one many")
)
_ALWAYS_CAPITAL = frozenset(
    words("monday tuesday wednesday thursday friday saturday sunday christmas halloween easter english god")
)
_RELATIVES = frozenset(words("mom dad mommy daddy mama papa grandma grandpa mum"))
_SPEECH = frozenset(
    words(
        "said asked cried shouted replied yelled called answered whispered laughed exclaimed thought added "
        "smiled agreed says told explained begged screamed sang barked meowed repeated sighed warned"
    )
)


def plain_quotes(text: str) -> str:
    """Typographic marks and their mis-decoded forms become ASCII."""
    for bad, good in _MOJIBAKE:
        text = text.replace(bad, good)
    return re.sub(r"[ \t]+", " ", text).strip()


def split_tinystories(text: str) -> list[str]:
    """Stories start after a single line break; paragraphs within one are set apart by a blank line."""
    joined = text.replace("\r", "").replace("\n\n", "\x00")
    return [plain_quotes(s.replace("\x00", "\n\n")) for s in joined.split("\n") if s.strip("\x00 ")]


def find_names(stories: Iterable[str]) -> frozenset[str]:
    """Words that are introduced as names at least twice and rarely follow an article or possessive."""
    introduced: Counter[str] = Counter()
    total: Counter[str] = Counter()
    determined: Counter[str] = Counter()
    for story in stories:
        introduced.update(w for w in _NAMED.findall(story) if w not in _NOT_NAMES)
        previous = ""
        for word in _WORD.findall(story):
            word = word.removesuffix("'s")
            total[word] += 1
            determined[word] += previous in _DETERMINERS
            previous = word
    return frozenset(
        w for w, n in introduced.items() if n >= 2 and determined[w] <= 0.03 * total[w] and n >= 0.02 * total[w]
    ) | frozenset(GIRLS + BOYS)


def names_in(story: str, known: frozenset[str]) -> list[str]:
    """Names of a lower-case story: those it introduces itself first, then the commonly known ones."""
    own = [w for w in _NAMED.findall(story) if w not in _NOT_NAMES]
    words = {w.removesuffix("'s") for w in _WORD.findall(story)}
    determined = Counter(re.findall(r"\b(?:a|an|the|his|her|my) ([a-z]+)", story))
    own = [w for w in own if determined[w] == 0 or w in known]
    return list(dict.fromkeys([*own, *sorted(words & known)]))


def _upper_first(text: str) -> str:
    return re.sub(r"[a-z]", lambda m: m.group().upper(), text, count=1) if text[:4].strip() else text


def _recase_paragraph(paragraph: str) -> str:
    out: list[str] = []
    start, inside, resumed = True, False, False
    for number, part in enumerate(paragraph.split('"')):
        inside = bool(number % 2)
        body = re.sub(r"([.!?]['’)]?\s+)([a-z])", lambda m: m.group(1) + m.group(2).upper(), part)
        if inside:
            body = body if resumed else _upper_first(body)
        elif start:
            body = _upper_first(body)
        out.append(body)
        tail = part.rstrip()
        if inside:
            following = paragraph.split('"')[number + 1] if number + 1 < len(paragraph.split('"')) else ""
            near = set(re.findall(r"[a-z]+", following)[:3])
            start = tail.endswith(".") or (tail[-1:] in "!?" and not near & _SPEECH)
            resumed = tail.endswith(",")
        else:
            start = tail[-1:] in (".", "!", "?") or (start and not tail)
            resumed = resumed and tail.endswith(",")
    return '"'.join(out)


def recase(story: str, names: Sequence[str]) -> str:
    """Capitals for sentence starts, "I", names, days, and relatives used as names."""
    text = "\n\n".join(_recase_paragraph(p) for p in story.split("\n\n"))
    text = re.sub(r"\bi(?=\b(?!\.e))", "I", text)
    capital = _ALWAYS_CAPITAL | set(names)

    def fix(match: re.Match[str]) -> str:
        word = match.group()
        if word in _RELATIVES:
            before = text[: match.start()].rstrip().rsplit(" ", 1)[-1].lower().strip('",.!?')
            return word if before in _DETERMINERS or before.endswith("'s") else word.capitalize()
        return word.capitalize() if word in capital else word

    text = re.sub(r"\b[a-z]+\b", fix, text)
    return re.sub(r"\b(mr|mrs|ms|dr)\b", lambda m: m.group().capitalize(), text)


def clean_fable(text: str) -> tuple[str, str]:
    """(title, body) without markdown; the title is empty when the text has none."""
    text = plain_quotes(re.sub(r"\r", "", text))
    title = ""
    lines = [line.strip() for line in text.split("\n")]
    first = lines[0] if lines else ""
    if match := re.fullmatch(r"(?:#+\s*)?(?:\*\*)?(?:Title:)?\s*(.{3,70}?)(?:\*\*)?:?", first):
        is_title = first.startswith(("#", "**", "Title")) or (len(first) < 60 and first[-1:] not in '.!?"')
        if is_title:
            title = match.group(1).strip('*"# ')
            lines = lines[1:]
    body = "\n".join(lines)
    body = re.sub(r"^(?:\*\*)?(?:The )?(?:Moral|Lesson|Teaching)[^\n]{0,30}:(?:\*\*)?", "Moral:", body, flags=re.M)
    body = re.sub(r"[*_#`]+", "", body)
    return title, re.sub(r"\n\s*\n?", "\n\n", body.strip())


def good_fable(body: str) -> bool:
    """False for lists, cut-off texts, other alphabets, and talk about the task instead of a story."""
    if not 300 < len(body) < 4000 or not body.isascii() or body[-1] not in '.!?"':
        return False
    if re.search(r"^\s*(?:[-•]|\d+\.|[A-Z][a-z ]{2,20}:\s*$)", body, flags=re.M):
        return False
    return not re.search(r"\b(?:age group|as an AI|Main Character|word count|keep the story|Note:)", body, re.I)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, ending with a sentence and, where one is near, with a paragraph."""
    if len(text) <= limit:
        return text
    head = text[:limit]
    paragraph = head.rfind("\n\n")
    if paragraph > 0.65 * limit and head[paragraph - 1] in '.!?"':
        return head[:paragraph]
    ends = [m.end() for m in re.finditer(r"[.!?][\"']?(?=\s)", head)]
    return head[: ends[-1]] if ends else ""
