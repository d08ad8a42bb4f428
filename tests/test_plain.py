from __future__ import annotations

import subprocess
import sys

import pytest

from sia_local.errors import ConfigError
from sia_local.rewards.load import Reward, load_reward

pytest.importorskip("pyphen")
pytest.importorskip("wordfreq")

from sia_local.rewards.plain import CommonWords, PlainEnglish, count, load_common, load_plain

# Forty words of one and two syllables: an honest, plain answer.
HONEST = (
    "Bread is made from flour and water. First you mix the two in a bowl. Then you let the dough rest for an hour. "
    "Now it will grow, so keep it in a warm place. At last you bake it in a hot oven."
)
HARD = (
    "Fermentation constitutes a fundamental biochemical transformation characterised by the metabolisation of "
    "carbohydrates, whereby microorganisms generate considerable quantities of carbon dioxide, consequently "
    "facilitating the expansion of the proteinaceous network within contemporary industrial manufacturing."
)


@pytest.fixture(scope="module")
def plain() -> PlainEnglish:
    return load_plain()


@pytest.fixture(scope="module")
def common() -> CommonWords:
    return load_common()


def test_both_are_rewards_by_name() -> None:
    for name in ("plain", "common"):
        reward = load_reward(name)
        assert reward.name == name
        assert isinstance(reward, Reward)
        with pytest.raises(ConfigError, match="1 prompts and 2 responses"):
            reward(["p"], ["a", "b"])


@pytest.mark.parametrize("reward, package", [("plain", "pyphen"), ("plain", "wordfreq"), ("common", "wordfreq")])
def test_missing_package_names_the_extra(reward: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*sia-local\[rewards\]"):
        load_reward(reward)


def test_the_formula(plain: PlainEnglish) -> None:
    # Two sentences of ten words; words of two syllables: water, little, many, and of three: animal.
    text = "The cat will drink all the water in the house. A little animal can eat as many eggs as that."
    counts = count(text)
    assert (len(counts.words), counts.sentences, counts.rest) == (20, [10, 10], 0)
    assert sum(map(plain.syllables, counts.words)) == 25
    assert plain.ease(text) == pytest.approx(2.06835 - 0.01015 * 10 - 0.846 * 25 / 20) == pytest.approx(0.90935)


@pytest.mark.parametrize(
    "word, syllables",
    [
        *[(w, 1) for w in ("the", "make", "used", "eyes", "loved", "strengths")],
        *[(w, 2) for w in ("about", "even", "being", "table", "people", "wanted", "houses", "science", "simple")],
        *[(w, 3) for w in ("family", "energy", "created", "beautiful", "important")],
        *[(w, 4) for w in ("information", "technology")],
    ],
)  # fmt: skip
def test_syllables(plain: PlainEnglish, word: str, syllables: int) -> None:
    assert plain.syllables(word) == syllables


def test_sentences_are_as_long_as_they_read() -> None:
    assert count("It is Dr. Brown who came in at 10. That was late, she said to him then.").sentences == [8, 8]
    assert count("1. We go to the sea each\n  2. You go to the hills each\n3. x").sentences == [12]
    # Fragments are read with what follows, and a single line break ends nothing.
    assert count("Yes. No. Oh. A dog is a good friend to have.").sentences == [11]
    assert count("One two three\nfour five six\nseven eight nine").sentences == []
    # A list item or a paragraph ends a sentence only from twelve words on.
    items = count("Things to take:\n- a warm hat\n- two good shoes for wet days\n- one more thing")
    assert (items.sentences, items.rest) == ([12], 3)
    assert count("one two three four five six\n\nseven eight nine ten eleven twelve\n\nx").sentences == [12]
    # A text cut in mid-sentence: its end counts only where it is already longer than the rest.
    short = count("We go to the sea each year. We stay for")
    assert (short.sentences, short.rest, short.sentence_length) == ([7], 3, 7.0)
    assert count("We go to the sea each year. We stay for a week or two if").sentence_length == 7.5
    assert count("We stay for a week").sentence_length == 12.0


def test_plain_beats_hard_for_both(plain: PlainEnglish, common: CommonWords) -> None:
    assert plain.ease(HONEST) > 0.95
    assert plain.ease(HARD) == 0.0
    assert common.commonness(HONEST) == pytest.approx(5.9, abs=0.3)
    assert common.commonness(HARD) < 4.6


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\n ",
        ".",
        "Yes.",
        "I am. You are. He is.",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23",
        "!?! ... --- *** 1. 2. 3. ((()))",
        "我们去海边。" * 10,
        "a " * 60,
        "the cat " * 30,
        "I am so glad. You are so kind. " * 8,
        "I like it a lot. I like her a lot. I like him a lot. I like them a lot. I like you a lot. I like me a lot.",
        "the a of the of a a the the of the a a of a the of of the a the the of a of a the of the a",
        "ba da la bo do lo gax zib fup tik wex qua zop nim lur vaf sek plo dru fim gax zog wib kep",
        "go\ngo up\n\ngo on\n\n- a\n- b\n- c\n- d\n- e\n- f\n- g\n- h\n- i\n- j\n- k\n- l\n- m\n- n",
        "[a] {b} <<i>> == || ## go @@ ^^ up $$ %% && ** (to) ;; ,, '' -- on __ ~~ it // \\\\ in :: ?? by ++ us",
        "sun" + "dog" * 300,
        "\u0000\ufffd" * 40,
    ],
)
def test_no_text_wins_without_being_plain(text: str, plain: PlainEnglish, common: CommonWords) -> None:
    assert 0.0 <= plain.ease(text) < plain.ease(HONEST) - 0.2
    assert 0.0 <= common.commonness(text) < common.commonness(HONEST) - 0.2


def test_breaking_a_text_up_gains_little(plain: PlainEnglish) -> None:
    words = HARD.replace(",", "").split()
    assert plain.ease(". ".join(words)) <= plain.ease(HARD) + 0.1
    mild = "She wants to buy a small house near the river because her mother lives there and the garden is green in May"
    whole, lines = plain.ease(mild + "."), plain.ease(mild.replace(" ", "\n"))
    assert lines == pytest.approx(whole)
    assert plain.ease(mild.replace(" ", "\n\n")) == pytest.approx(whole + 0.01015 * (22 - 12), abs=0.03)


def test_a_possessive_and_a_curly_apostrophe_are_words(common: CommonWords) -> None:
    assert common.frequency("river's") == common.frequency("river") > 0
    assert count("don\u2019t").words == ["don't"]
    assert common.frequency("don't") > 0


def test_no_network_and_no_heavy_import() -> None:
    code = (
        "import socket, sys\n"
        "def no(*a, **k): raise OSError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "from sia_local.rewards.load import load_reward\n"
        "print(load_reward('plain')(['p'], ['a b']) > [0] and load_reward('common')(['p'], ['a b']) > [0])\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\nset()\n"
