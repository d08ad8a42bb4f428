from __future__ import annotations

import json
import lzma
import random
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sia_local.errors import ConfigError, DataError

pytest.importorskip("torch")
pytest.importorskip("transformers")

from cuts import Interrupted
from sia_convert.demo.corpus import Sources, Story, document, epoch, load_sources, mood_of, with_article
from sia_convert.demo.pretrain import Progress, learning_rate, pack, pretrain, train_tokenizer
from sia_convert.demo.prompts import make_prompts
from sia_convert.demo.recipe import PretrainConfig, begin
from sia_convert.demo.textclean import clean_fable, cut, recase
from sia_convert.registry import Maker

NAMES = ("lily", "tom", "ben", "mia", "sam", "anna")
THINGS = ("needle", "ball", "boat", "kite", "apple", "drum", "box", "lamp")
CHAT = re.compile(r"(?:<\|im_start\|>system\n[^<]+<\|im_end\|>\n)?(?:<\|im_start\|>user\n[^<]+<\|im_end\|>\n"
                  r"<\|im_start\|>assistant\n[^<]+<\|im_end\|>\n)+")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three collections in miniature."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    stories = []
    for i in range(60):
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        stories.append(
            f"once upon a time, there was a little girl named {name}. {name} found a {thing} in the garden number {i}."
            f'\n\n"look, mom, i found a {thing}!" said {name}. the {thing} was old and {name} was very happy. '
            f"her mom smiled and they played with the {thing} all day. the end came and they went home to eat."
        )
    with lzma.open(folder / "tinystories_sample.txt.xz", "wt", encoding="utf-8") as handle:
        handle.write("\n".join(stories))
    body = "**The Wolf**\n\n" + "A proud wolf lived in a dark forest and he was alone. " * 12
    record = {"text": body, "writer": "x", "prompt": "- Main Character: a proud wolf\n- Setting: a forest"}
    with lzma.open(folder / "fables.jsonl.xz", "wt", encoding="utf-8") as handle:
        handle.write("".join(json.dumps(record) + "\n" for _ in range(8)))
    prose = "It was a fine day in the old house, and nobody thought of going out at all.\n" * 60
    with lzma.open(folder / "classics.txt.xz", "wt", encoding="utf-8") as handle:
        handle.write("<|document|> Aesop — Fables\n" + prose)
    return folder


def test_recase_restores_sentences_names_and_speech() -> None:
    story = '"mom, i am lost!" said lily. her mom came.\n\n"yes," said mom, "we go."'
    assert recase(story, ["lily"]) == '"Mom, I am lost!" said Lily. Her mom came.\n\n"Yes," said Mom, "we go."'


def test_fable_markdown_is_removed() -> None:
    assert clean_fable("**The Sly Fox**\n\nA *fox* ran.\n**Moral:** Be kind.") == (
        "The Sly Fox",
        "A fox ran.\n\nMoral: Be kind.",
    )


@pytest.mark.parametrize(("noun", "expected"), [("ball", "a ball"), ("apple", "an apple"), ("shoes", "some shoes")])
def test_article(noun: str, expected: str) -> None:
    assert with_article(noun) == expected


def test_mood_counts_words_and_weighs_the_ending() -> None:
    assert mood_of("He ate. He was lost and sad. He cried and was alone.") == "sad"
    assert mood_of("They were happy. They laughed, played and smiled. What fun, they loved it.") == "happy"
    assert mood_of("He ate bread.") == ""


@given(st.text(alphabet="ab .!?\n", max_size=200), st.integers(5, 100))
def test_cut_keeps_a_prefix_within_the_limit(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert text.startswith(short) and (len(short) <= limit or short == text)
    # Of what is cut, a sentence that ends within the limit is kept, and nothing is left half.
    whole = [m.end() for m in re.finditer(r"[.!?](?=\s)", text[:limit])]
    if len(text) > limit:
        assert bool(short) >= bool(whole) and (not short or short[-1] in ".!?")


def test_documents_are_chats_or_plain_text(data: Path) -> None:
    sources = load_sources(data)
    assert len(sources.stories) == 60 and len(sources.fables) == 8 and sources.classics
    documents = list(epoch(sources, 0.1, seed=3))
    chats = [d for d in documents if "<|im_start|>" in d]
    assert len(chats) > 40
    assert all(CHAT.fullmatch(d) for d in chats)
    assert documents == list(epoch(sources, 0.1, seed=3)) != list(epoch(sources, 0.1, seed=4))
    assert any("a proud wolf" in d for d in chats) and any("named" in d.split("assistant")[0] for d in chats)


def test_request_names_what_the_story_tells() -> None:
    story = Story("Lily was sad.", "story", "a little girl named Lily", ("Lily",), ("needle",))
    chats = [document(Sources(), 0.0, random.Random(seed), story) for seed in range(40)]
    named = [(name[1], chat) for chat in chats if (name := re.search(r"named (\w+)", chat))]
    assert len({name for name, _ in named}) > 1 and all(f"{name} was sad." in chat for name, chat in named)


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        load_sources(tmp_path)
    with pytest.raises(ConfigError, match="--minutes"):
        PretrainConfig(minutes=0)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_tokenizer_round_trip(text: str) -> None:
    tokenizer = _tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if "<|" not in text:
        assert tokenizer.decode(ids) == text and not set(ids) & {0, 1, 2}


@cache
def _tokenizer() -> Any:
    return train_tokenizer(["the cat sat on the mat and the dog ran"] * 5, 300)


def test_tokenizer_loads_with_its_chat_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 3 and ids.count(2) == 2 and loaded.eos_token_id == 2 and loaded.pad_token_id == 0
    assert loaded.decode(ids) == text


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(0, 9))
def test_packing_loses_no_token(lengths: list[int], seed: int) -> None:
    documents = [[i] * n for i, n in enumerate(lengths)]
    rows = pack(documents, 16, seed)
    kept = sorted(int(x) for x in rows.flatten() if x >= 0)
    assert kept == sorted(x for d in documents for x in d)


def test_schedule_warms_up_holds_and_ends_at_zero() -> None:
    config = PretrainConfig(minutes=10, tokens=1000, lr=1.0, warmup_tokens=100, decay=0.5)
    rates = [learning_rate(config, Progress(tokens=t)) for t in (49, 99, 500, 750, 1000)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    assert learning_rate(config, Progress(tokens=500, seconds=600.0)) == 0.0


TINY: dict[str, Any] = {
    "minutes": 1e6, "tokens": 10**9, "vocab_size": 300, "hidden_size": 64, "heads": 2, "kv_heads": 1, "layers": 1,
    "intermediate_size": 64, "context": 32, "batch": 2, "held_out": 4, "threads": 1, "compiled": False, "bf16": False,
    "eval_steps": 1000, "warmup_tokens": 100,
}  # fmt: skip


def test_resumed_training_equals_training_in_one_go(data: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    def config(name: str, steps: int) -> PretrainConfig:
        return PretrainConfig(data=data, work=tmp_path / name, out=tmp_path / f"{name}-hf", max_steps=steps, **TINY)

    pretrain(config("once", 4))
    pretrain(config("twice", 2))
    progress = pretrain(replace(config("twice", 4)))
    assert progress.step == 4 and progress.row == 8
    once, twice = (load_file(tmp_path / f"{n}-hf" / "model.safetensors") for n in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.allclose(once[k], twice[k], atol=1e-6) for k in once)
    last = json.loads((tmp_path / "twice" / "log.jsonl").read_text().splitlines()[-1])
    assert last["finished"] and last["step"] == 4
    # More rows a step than are held out: the figure is that of the same weights nevertheless.
    pretrain(replace(config("once", 4), out=tmp_path / "again", work=tmp_path / "wide", batch=10**6, max_steps=1))
    wide = json.loads((tmp_path / "wide" / "log.jsonl").read_text().splitlines()[-1])
    assert 4 < wide["held_out_loss"] < 7
    assert not list(tmp_path.glob("**/*.tmp"))


def test_a_run_of_other_settings_or_data_is_not_taken_up(data: Path, tmp_path: Path) -> None:
    def config(name: str, **changes: Any) -> PretrainConfig:
        where = {"data": data, "work": tmp_path / name, "out": tmp_path / f"{name}-hf"}
        return PretrainConfig(**{**TINY, **where, "max_steps": 1, **changes})

    def weights(name: str) -> bytes:
        return (tmp_path / f"{name}-hf" / "model.safetensors").read_bytes()

    other = tmp_path / "data"
    shutil.copytree(data, other)
    with lzma.open(other / "classics.txt.xz", "at", encoding="utf-8") as handle:
        handle.write("more\n")
    pretrain(config("one"))
    first = weights("one")
    for said, changes in (
        (r"\(lr 0.002, not 0.0002; seed 1, not 7\)", {"lr": 2e-4, "seed": 7}),
        (r"\(layers 1, not 2\)", {"layers": 2}),
        (r"\(classics.txt.xz\)", {"data": other}),
    ):
        with pytest.raises(ConfigError, match=rf"one holds a run with other settings or data {said}: give the same"):
            pretrain(config("one", **changes))
    assert pretrain(config("one", minutes=9, threads=2)).step == 1 and weights("one") == first
    # As a step of `make` it begins anew.
    maker = Maker("pretrain", config("one", seed=7), pretrain)
    assert maker.inputs == tuple(sorted(data.iterdir(), key=maker.inputs.index))
    maker.run()
    pretrain(config("fresh", seed=7))
    assert weights("one") == weights("fresh") != first
    for name in ("tokenizer/tokenizer.json", "run.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert len((tmp_path / "one/log.jsonl").read_text().splitlines()) == 1
    (tmp_path / "one/run.json").unlink()
    with pytest.raises(ConfigError, match=r"\(of another version\): give the same ones, name another --work"):
        pretrain(config("one", seed=7))


def test_a_tokenizer_of_other_settings_is_removed_whole_or_not_at_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of the run before stay until the end: half its tokenizer would be taken up by a run of those."""
    config = PretrainConfig(**{**TINY, "data": data, "work": tmp_path})
    begin(config, anew=False)
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tokenizer" / name).touch()

    def stopped(folder: Path, **_: object) -> None:
        next(path for path in Path(folder).rglob("*") if path.is_file()).unlink()
        raise Interrupted

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(Interrupted):
        begin(replace(config, seed=config.seed + 1), anew=True)
    assert not (tmp_path / "tokenizer").exists()
    begin(config, anew=False)


def test_prompts_are_distinct_and_disjoint() -> None:
    measured = make_prompts(240, seed=2024)
    rollouts = make_prompts(1500, seed=7, exclude=frozenset(measured))
    subjects = [{p.split(" about ")[1].rstrip(".?") for p in group} for group in (measured, rollouts)]
    assert len(subjects[0]) == 240 and len(subjects[1]) == 1500 and not subjects[0] & subjects[1]
    root = Path(__file__).parent.parent
    assert (root / "examples/prompts.txt").read_text().splitlines() == measured
    assert (root / "models/prompts-train.txt").read_text().splitlines() == rollouts
