from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from cuts import Interrupted
from safetensors.torch import load_file, save_file
from sia_convert.cli import main
from sia_convert.data.hf_reward import chat, load_hf, render, token_rows
from sia_convert.data.preferences import Pair, read_pairs
from sia_convert.train.model import load_backbone
from sia_convert.train.preference import fit, last_states, loss, split, train_reward_model
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from sia_local.errors import ConfigError, DataError, IncompatibleError
from sia_local.rewards.load import load_reward


def _line(before: str, chosen: str, rejected: str) -> str:
    ends = ({"chosen": chosen, "rejected": rejected},)
    return json.dumps({k: f"\n\nHuman: {before}\n\nAssistant: {v}" for k, v in ends[0].items()})


def test_pairs_differ_only_in_the_last_answer(tmp_path: Path) -> None:
    two = "hello\n\nAssistant: hi\n\nHuman: more"
    lines = [
        _line("a dog", "good", "bad"),
        _line(two, "kind", "cruel"),
        _line("same", "x", "x"),
        json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}),
        json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}),
    ]
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert read_pairs(path) == [Pair((("user", "a dog"),), "good", "bad"), Pair((("user", "p"),), "c", "r")]
    longer = read_pairs(path, turns=2)[1]
    assert longer.messages == (("user", "hello"), ("assistant", "hi"), ("user", "more"))
    assert [chat[-1] for chat in longer.chats()] == [
        {"role": "assistant", "content": "kind"},
        {"role": "assistant", "content": "cruel"},
    ]


def test_pairs_of_messages(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "p"}]
    ends = [[{"role": "assistant", "content": end}] for end in "cr"]
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"prompt": "p", "chosen": asked + ends[0], "rejected": asked + ends[1]})
        + "\n"
        + json.dumps({"prompt": asked, "chosen": ends[0], "rejected": ends[1]})
    )
    assert read_pairs(path) == [Pair((("user", "p"),), "c", "r")] * 2


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "line 1: expected JSON"),
        ('{"chosen": "x"}', "line 1: expected JSON"),
        ('{"chosen": 3, "rejected": "x"}', "line 1: expected JSON .*chosen is 3"),
        ("\n", "has no pair"),
        (None, "no file"),
    ],
)
def test_bad_pairs_are_one_sentence(text: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_pairs(path)


def test_the_fit_is_the_minimum() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 5)) + np.array([1.0, 0, 0, 0, -0.5])
    weight = fit(rows, 0.1)

    def whole(w: np.ndarray) -> float:
        return loss(rows, w) + 0.05 * float(w @ w)

    for direction in np.eye(5):
        assert whole(weight) <= min(whole(weight + 1e-3 * direction), whole(weight - 1e-3 * direction))
    assert weight[0] > 0 > weight[4]


def test_equal_dialogues_are_on_one_side() -> None:
    names = [i % 10 for i in range(40)]
    which = split(names, 0.2, 3)
    assert all(which[i] == which[i % 10] for i in range(40))
    assert [int((which == group).sum()) // 4 for group in range(3)] == [2, 2, 6]
    assert (split(names, 0.2, 4) != which).any()
    with pytest.raises(DataError, match="too few"):
        split([1, 2], 0.2, 0)


def test_what_is_trained_is_read_back_as_a_reward(make_hf: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = ["cat", "bird", "river", "tree", "house", "night", "sun", "moon"]
    lines = []
    for i in range(120):
        middle = " ".join(rng.choice(words, 3))
        lines.append(_line(f"{words[i % 8]} {i}", f"{middle} good", f"{middle} bad"))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    out = tmp_path / "reward"
    asked = ["reward-model", str(make_hf()), str(tmp_path / "pairs.jsonl"), "--out", str(out)]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert "96 training pairs" in done.output and "held out 24, 100.0% right" in done.output
    good, bad = load_reward(f"hf:{out}")(["cat 3", "cat 3"], ["river sun good", "river sun bad"])
    assert good > bad


def test_a_long_dialogue_is_trained_on_as_it_is_read_later(
    make_hf: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its end, where the answer is: of two that begin alike, one is better."""
    pairs = [
        Pair((("user", f"{word} river " * 40),), "good", "bad") for word in ("cat", "bird", "tree", "sun", "moon")
    ] * 8
    found = train_reward_model(make_hf(), pairs, tmp_path / "reward", max_length=24)
    assert found["accuracy"] == found["accuracy_train"] == 1.0
    assert (
        "reward-model: 80 of 80 texts are longer than 24 tokens; what is cut is their beginning"
        in capsys.readouterr().err
    )
    reward = load_hf(str(tmp_path / "reward"), max_length=24)
    good, bad = reward([pairs[0].messages[0][1]] * 2, ["good", "bad"])
    whole, other = load_hf(str(tmp_path / "reward"))(["cat river " * 40] * 2, ["good", "bad"])
    assert good > bad and (good, bad) != (whole, other)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    rows = [tokenizer(render(tokenizer, chat)).input_ids for chat in pairs[0].chats()]
    states = last_states(model, [[row[0], *row[-23:]] for row in rows] + [[5]], 2)
    np.testing.assert_allclose(states[:2] @ model.score.weight[0].detach().numpy(), [good, bad], rtol=1e-4)


def test_a_checkpoint_that_lacks_weights_is_no_reward_and_no_backbone(
    make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_hf(), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("q_proj.weight"))
    save_file({key: x for key, x in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"lacks 1 weights of its model, such as .*q_proj.weight"):
        load_backbone(folder, None, torch.float32)
    # A language model has no score: that, too, would be random.
    shutil.copy(make_hf() / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 1}))
    with pytest.raises(IncompatibleError, match=r"such as score.weight, which would be random numbers"):
        load_hf(str(folder))


@pytest.mark.parametrize("adds", [True, False])
def test_a_dialogue_begins_with_its_first_token_once_whoever_writes_it(
    adds: bool, make_hf: Callable[..., Path]
) -> None:
    """Llama's tokenizer adds what its template spells, too; SmolLM2's leaves it to the template."""
    tokenizer = AutoTokenizer.from_pretrained(make_hf())
    tokenizer.bos_token = "<|im_start|>"
    if adds:
        single = processors.TemplateProcessing(
            "<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
        )
        tokenizer.backend_tokenizer.post_processor = single
    dialogue = chat("the sad king", "a dog")
    (row,) = token_rows(tokenizer, [render(tokenizer, dialogue)], 99, "test")
    assert row == tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=False)
    assert row[0] == tokenizer.bos_token_id != row[1]


def test_an_interrupted_reward_model_is_none_or_the_one_before(
    make_hf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights had been there without its tokenizer, or beside that of another."""
    pairs = [Pair((("user", f"cat {i}"),), "good", "bad") for i in range(20)]

    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted

    other = make_hf("qwen2", seed=9)
    train_reward_model(make_hf(), pairs, tmp_path / "before")
    before = content(tmp_path / "before")
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", stopped)
    for name in ("before", "new"):
        with pytest.raises(Interrupted):
            train_reward_model(other, pairs, tmp_path / name)
    assert content(tmp_path / "before") == before and not content(tmp_path / "new")
    with pytest.raises(ConfigError):
        load_hf(str(tmp_path / "new"))
