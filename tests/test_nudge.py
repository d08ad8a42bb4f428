"""Nudging: words across vocabularies against tables, and two tiny GGUFs of different vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from loading import EXACT

from sia_local import SIA, SiaConfig
from sia_local.cli import main
from sia_local.config import SamplingConfig
from sia_local.errors import ConfigError, IncompatibleError
from sia_local.generation.duet import LONGEST_WORD, Duet, Voice, next_word
from sia_local.generation.nudge import Nudged

Make = Callable[..., Path]
GREEDY = SiaConfig(sampling=SamplingConfig(temperature=0.0))
END = "<end>"
Says = Callable[[str], tuple[str | bytes, float]]


class Table:
    """A model over named tokens that says `script` in order (by position in its own text), as sure as it is told.

    Its tokenizer takes the longest token first; with `space` it puts a space before whatever it is given, as
    sentencepiece does.
    """

    def __init__(self, tokens: Sequence[str | bytes], script: Says, space: bool = False):
        self.pieces = [t if isinstance(t, bytes) else b"" if t == END else t.encode() for t in [*tokens, END]]
        self.names = [*tokens, END]
        self.script, self.space = script, space
        self.held: list[int] = []
        self.read = 0

    def begin(self, slot: int, tokens: Sequence[int]) -> int:
        self.held = list(tokens)
        return 0

    def accept(self, slot: int, token: int) -> None:
        self.held.append(token)

    def logits(self, slots: Sequence[int]) -> list[np.ndarray]:
        self.read += 1
        said, p = self.script(b"".join(self.pieces[t] for t in self.held[1:]).decode("utf-8", "replace"))
        row = np.full(len(self.pieces), np.log((1 - p) / (len(self.pieces) - 1)), np.float32)
        row[self.names.index(said)] = np.log(p)
        return [row]

    def tokenize(self, text: str) -> list[int]:
        data, out = text.encode(), []
        if self.space and data:
            data = b" " + data
        while data:
            piece = max((p for p in self.pieces if p and data.startswith(p)), key=len)
            out.append(self.pieces.index(piece))
            data = data[len(piece) :]
        return out

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def is_eog(self, token: int) -> bool:
        return token == len(self.pieces) - 1


LETTERS = [*"abcdefghijklmnopqrstuvwxyz .\n", *(bytes([b]) for b in range(128, 256))]


def voice(table: Table) -> Voice:
    return Voice(table, table, [0], GREEDY)


def duet(base: Table, small: Table, threshold: float = 0.4) -> Duet:
    return Duet(voice(base), voice(small), threshold, np.random.default_rng(0))


def always(said: str | bytes, p: float = 0.9) -> Says:
    return lambda text: (said, p)


def reads(answers: dict[str, str], p: float = 0.9) -> Says:
    return lambda text: (answers[text], p)


def test_the_small_model_writes_one_word_and_the_base_goes_on() -> None:
    base = Table([*LETTERS, " sun", "ny"], lambda text: ("ny", 0.9) if text.endswith("sun") else (".", 0.2))
    says = {"": "the", "the": " s", "the s": "un", "the sun": " is"}
    small = Table([*LETTERS, "the", " s", "un", " is"], reads(says))
    both = duet(base, small)
    turns = [both.turn() for _ in range(3)]
    assert [(t.data, t.nudged) for t in turns] == [(b"the", True), (b" sun", True), (b"ny", False)]
    # The base spells the word in its own tokens; the small model keeps the ones it wrote.
    assert [base.names[i] for i in both.base.ids] == ["t", "h", "e", " sun", "ny"]
    assert [small.names[i] for i in both.small.ids] == ["the", " s", "un"]
    assert both.heard == "ny"
    # " s" was drawn to see that "the" ends, " is" to see that "sun" does: no look is made twice.
    assert small.read == 4


def test_a_continued_word_is_spelled_anew_from_its_beginning() -> None:
    base = Table([*LETTERS, " h", "ap", " happy"], lambda text: (".", 0.2))
    both = duet(base, Table(LETTERS, always(".")))
    for token in (".", " h", "ap"):
        both.base.say(base.names.index(token))
    both.base.hear("py")
    assert [base.names[i] for i in both.base.ids] == [".", " happy"] and base.held[1:] == both.base.ids
    both.base.hear(" and")
    assert [base.names[i] for i in both.base.ids] == [".", " happy", " ", "a", "n", "d"]


def test_a_word_that_ends_inside_a_token_is_cut_there() -> None:
    small = Table([*LETTERS, " cat sat"], always(" cat sat"))
    writes = voice(small)
    assert next_word(writes, np.random.default_rng(0)) == (" cat", False)
    assert [small.names[i] for i in writes.ids] == [" ", "c", "a", "t"] == [small.names[i] for i in small.held[1:]]


def test_a_space_that_the_tokenizer_adds_is_not_written() -> None:
    table = Table([*LETTERS, " cat", "cat"], always("."), space=True)
    reader = voice(table)
    reader.hear(" cat")
    assert [table.names[i] for i in reader.ids] == [" cat"]
    reader.hear("s")
    reader.hear("\ncat")
    assert b"".join(table.pieces[i] for i in reader.ids) == b" cats\ncat"


def test_nobody_interrupts_a_character() -> None:
    """é is two tokens of the base, both unsure: the first is the base's in any case, then it finishes the character."""
    e = "é".encode()
    halves: dict[str, str | bytes] = {"": e[:1], "\ufffd": e[1:]}
    names = [*LETTERS[:29], e[:1], e[1:]]
    base = Table(names, lambda text: (halves.get(text, "."), 0.35))
    small = Table(LETTERS, always(END))
    both = duet(base, small, threshold=0.0)
    first = both.turn()
    both.threshold = 0.4
    second, third = both.turn(), both.turn()
    assert (first.data, second.data, second.nudged) == (e[:1], e[1:], False)
    assert both.heard == "" and third.finish == "eog" and b"".join(map(small.piece, both.small.ids)) == e


def test_a_word_never_ends_inside_a_character_and_is_of_limited_length() -> None:
    writes = voice(Table(LETTERS, always("é".encode()[:1])))
    assert next_word(writes, np.random.default_rng(0)) == ("", False) and writes.ids == []
    long = voice(Table(LETTERS, always("x")))
    assert next_word(long, np.random.default_rng(0)) == ("x" * LONGEST_WORD, False)


def test_an_empty_answer_leaves_the_word_to_the_base_and_the_end_ends_the_text() -> None:
    base, mute = Table(LETTERS, always("a", 0.2)), Table([*LETTERS, b""], always(b""))
    assert duet(base, mute).turn().data == b"a"
    last = duet(base, Table(LETTERS, always(END))).turn()
    assert (last.finish, last.data, last.nudged) == ("eog", b"", True)


def test_a_tokenizer_that_cannot_spell_is_named() -> None:
    class Mumbling(Table):
        def tokenize(self, text: str) -> list[int]:
            return [0] * len(text)

    with pytest.raises(IncompatibleError, match="cannot spell 'b' in its tokens"):
        voice(Mumbling([*"ab ", *"\nx"], always("a"))).hear("b")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_threshold_zero_is_the_base_and_one_is_the_small_model(make_gguf: Make, temperature: float) -> None:
    base, small = make_gguf("base"), make_gguf("base", seed=3, n_vocab=330, ascii=True)
    config = SiaConfig(sampling=SamplingConfig(temperature=temperature))
    # Raw text is the base's matter; an instruct model gets the request as one.
    for threshold, alone, raw in ((0.0, base, True), (1.0, small, False)):
        with SIA.load(alone, setup=EXACT) as sia:
            expected = "".join(s.text for s in sia.generate("hello there", config, max_tokens=24, seed=4, raw=raw))
        with Nudged.load(base, small, threshold, setup=EXACT) as nudged:
            made = nudged.generate("hello there", config, max_tokens=40, seed=4, raw=True)
            steps = list(made)
            text = "".join(s.text for s in steps)
            assert made.stats.junctions == sum(s.steered for s in steps) == len(steps) * threshold
        both = min(len(text), len(expected))
        assert both > 15 and text[:both] == expected[:both]


def test_both_models_read_the_whole_text_and_decode_only_what_is_new(make_gguf: Make) -> None:
    base, small = make_gguf("base", ascii=True), make_gguf("base", seed=3, n_vocab=330, ascii=True)
    with Nudged.load(base, small, 0.15, setup=EXACT) as nudged:
        prompt = "a prompt of some length for both of them"
        written = nudged.generate(prompt, GREEDY, max_tokens=40, seed=1)
        steps = list(written)
        text = "".join(s.text for s in steps)
        assert {True, False} == {s.steered for s in steps}
        assert b"".join(map(nudged.model.piece, written.tokens)).decode("utf-8", "replace") == text
        made = nudged.prompt(prompt)
        voices = (nudged.sia.engine, made.tokens), (nudged._engine, nudged.small_tokens(made))
        for engine, read in voices:
            assert engine.slots[0].tokens[: len(read)] == list(read)
            # The prompt once, then what is new and the tail that a word may respell; not the whole at every word.
            assert engine.decoded_tokens < len(read) + len(written.tokens) + 16 * written.stats.junctions


def test_refusals(make_gguf: Make, base_gguf: Path) -> None:
    with pytest.raises(ConfigError, match=r"nudge threshold is 1\.5; expected a probability"):
        Nudged.load(base_gguf, base_gguf, 1.5)
    bare = make_gguf("base", template=None, seed=3)
    with Nudged.load(base_gguf, bare, setup=EXACT) as nudged:
        with pytest.raises(IncompatibleError, match="nudge with an instruct model"):
            list(nudged.generate("hello", max_tokens=3))
        with pytest.raises(ConfigError, match="nudging and a grammar"):
            list(nudged.generate("hello", GREEDY.with_sampling(grammar="root ::= [a-z]+"), raw=True))
        with pytest.raises(ConfigError, match="control tokens in the text"):
            nudged.generate("hello", GREEDY, raw=True, special=True)


def generate(*args: object) -> Result:
    few = ["generate", "-n", "12", "--seed", "7", "--threads", "1", "--ctx", "128", "-p", "hello"]
    return CliRunner().invoke(main, [*few, *map(str, args)])


def test_on_the_command_line(base_gguf: Path, make_gguf: Make, tmp_path: Path) -> None:
    small = make_gguf("base", seed=3, n_vocab=330)
    trace, page = tmp_path / "t.jsonl", tmp_path / "r.html"
    result = generate(
        "-m", base_gguf, "--nudge", small, "--nudge-threshold", 0.3, "--json", "--trace", trace, "--report", page
    )
    assert result.exit_code == 0, result.stderr
    whole = json.loads(result.stdout)
    assert whole["nudge"]["model"] == small.name and whole["nudge"]["words"] > 0 and -1 not in whole["tokens"]
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert "".join(r["text"] for r in records) == whole["text"]
    assert sum(r["steered"] for r in records) == whole["nudge"]["words"] and "</html>" in page.read_text()
    assert f"words by {small.name}" in result.stderr and "no value model" not in result.stderr


def test_what_does_not_go_with_nudging(base_gguf: Path, value_gguf: Path) -> None:
    for options, part in (
        (["--nudge", base_gguf, "-v", value_gguf], "--nudge and --value were given"),
        (["--nudge", base_gguf, "--guide-plus", base_gguf], "--nudge and --guide-plus were given"),
        (["--nudge", base_gguf, "--best-of", 2], "--nudge and --best-of were given"),
        (["--nudge", base_gguf, "--beta", 2], "--nudge and --beta were given"),
        (["--nudge-threshold", 0.2], "without --nudge"),
        (["--nudge", base_gguf, "--nudge-threshold", 4], "nudge threshold is 4.0"),
        (["--nudge", "none.gguf"], "no such file"),
    ):
        refused = generate("-m", base_gguf, *options)
        assert refused.exit_code == 2 and part in refused.stderr and refused.stdout == ""


@pytest.fixture(scope="module")
def sentencepiece_gguf(make_hf: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer as Llama 2's: byte fallback, and a space of its own in front."""
    pytest.importorskip("torch")
    from sia_convert.formats.export import export_base
    from tiny import retokenized

    root = tmp_path_factory.mktemp("spm")
    return export_base(retokenized(make_hf("llama"), root / "hf", "spm-model"), root / "spm.gguf", "f32")


def test_a_sentencepiece_model_writes_and_reads_the_same_text(make_gguf: Make, sentencepiece_gguf: Path) -> None:
    with SIA.load(sentencepiece_gguf, setup=EXACT) as sia:
        reader = Voice(sia.engine, sia.model, sia.model.tokenize("the cat", add_special=True), GREEDY)
        said = ("", " ran", " and", "s", "\n\n", "happy", " dogs, é", "tude", " ", "x", "…")
        for text in said[1:]:
            reader.hear(text)
        assert b"".join(map(sia.model.piece, reader.ids)).decode() == "".join(said)
        # A word continued in two steps is spelled as in one.
        whole = sia.model.tokenize("the cat ran and happy", add_special=True)
        twice = Voice(sia.engine, sia.model, whole[:1], GREEDY)
        for text in (" the", " cat", " ran", " and", " ha", "ppy"):
            twice.hear(text)
        assert twice.prompt + twice.ids == whole
    for base, small in ((make_gguf("base", ascii=True), sentencepiece_gguf), (sentencepiece_gguf, make_gguf("base"))):
        with Nudged.load(base, small, 0.12, setup=EXACT) as nudged:
            for seed in range(3):
                written = nudged.generate("the cat", max_tokens=30, seed=seed, raw=True)
                steps = list(written)
                text = "".join(s.text for s in steps)
                assert b"".join(map(nudged.model.piece, written.tokens)).decode("utf-8", "replace") == text
