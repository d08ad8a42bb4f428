"""Texts as a value model reads them: where one ends, which are held out, what scales their rewards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from sia_convert.data.examples import Reader, load_split
from sia_convert.data.trajectories import Trajectory
from sia_convert.formats.hf import load_tokenizer
from sia_convert.train import loop
from sia_convert.train.config import TrainConfig
from sia_convert.train.loop import Trainer
from sia_convert.train.model import build
from training import two_epochs


@pytest.fixture
def config(make_hf: Callable[..., Path], scored: Path, tmp_path: Path) -> TrainConfig:
    return two_epochs(make_hf(), scored, tmp_path / "value")


def test_an_example_is_prompt_response_and_the_stop_token(make_hf: Callable[..., Path]) -> None:
    reader = Reader(load_tokenizer(make_hf()))
    stop = reader.tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = "<|im_start|>user\nthe king<|im_end|>\n<|im_start|>assistant\n"
    prompt = reader.tokenizer(chat).input_ids
    trajectory = Trajectory("0-0", 0, "the king", chat, [40, 41], "x", "stop", 0.5)
    example = reader.example(trajectory)
    assert example.ids == (*prompt, 40, 41, stop) and example.start == len(prompt)
    assert reader.example(dataclasses.replace(trajectory, finish="length")).ids == (*prompt, 40, 41)


def turns(end: str) -> str:
    return "{% for m in messages %}<|user|>{{ m.content }}" + end + "{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (turns("<end_of_turn>\n"), "<end_of_turn>"),  # Gemma 3
        (turns("{{ '<|return|>' if loop.last else '<|end|>' }}"), "<|return|>"),  # gpt-oss
        (turns("<|end|>\n") + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", "<|end|>"),  # Phi 3.5
        (turns("<|stop|><eos>"), "<eos>"),  # Command R7B
        (turns("\n<|stop|>\n"), "<|stop|>"),  # Nemotron Nano v2
        (turns(" {{ eos_token }}"), "<eos>"),  # Mistral
        (turns("{{ '<eos>' if m.role == 'user' else '<|end|>' }}"), "<|end|>"),
        (turns(""), "<eos>"),  # GLM: the next turn ends it
        ("<|user|>{{ messages[0].content }}<|end|>", "<|end|>"),
        ("{{ none + 1 }}<|end|><eos>", "<eos>"),
        ("raw", "<eos>"),
    ],
)
def test_a_response_ends_as_the_template_ends_an_answer(template: str, end: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    marks = ["<|user|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|stop|>"]
    whole = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    whole.add_special_tokens([*marks, "<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>")
    assert tokenizer.convert_ids_to_tokens(Reader(tokenizer, template).stop_token) == end
    assert tokenizer.convert_ids_to_tokens(Reader(tokenizer, template, "<|user|>").stop_token) == "<|user|>"


def test_no_prompt_is_on_both_sides_and_training_rewards_set_the_scale(
    make_hf: Callable[..., Path], scored: Path
) -> None:
    reader = Reader(load_tokenizer(make_hf()))
    split = load_split([scored], reader, 400, held_out=0.3, max_length=512, seed=1)
    train_prompts, held_out = ({e.prompt_id for e in part} for part in (split.train, split.held_out))
    assert not train_prompts & held_out and len(held_out) == 3 and len(train_prompts) == 7
    rewards = np.array([e.reward for e in split.train])
    assert (split.mean, split.std) == (rewards.mean(), rewards.std())
    assert load_split([scored], reader, 400, held_out=0.3, max_length=512, seed=2).held_out != split.held_out


def test_a_prompt_is_what_is_read_whatever_number_a_file_gives_it(
    make_hf: Callable[..., Path], scored: Path, tmp_path: Path
) -> None:
    entries = [json.loads(line) for line in scored.read_text().splitlines()]
    again = [{**e, "id": f"b{e['id']}", "prompt_id": e["prompt_id"] + 50} for e in entries]
    others = [{**e, "id": f"c{e['id']}", "prompt": f"Ask {e['prompt']}"} for e in entries]
    for name, rows in (("again", again), ("others", others)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = Reader(load_tokenizer(make_hf()))
    split = load_split([scored, tmp_path / "again", tmp_path / "others"], reader, 400, 0.3, 512, seed=1)
    read = [{e.ids[: e.start] for e in part} for part in (split.train, split.held_out)]
    assert (len(read[0]), len(read[1])) == (14, 6) and not read[0] & read[1]
    pairs = {(e.prompt_id, e.ids[: e.start]) for e in split.held_out}
    assert len(pairs) == len({number for number, _ in pairs}) == 6


def test_a_backbone_without_positions_sets_no_longest_text(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*told: Any) -> Any:
        model = build(*told)
        model.backbone.config = SimpleNamespace(hidden_size=model.backbone.config.hidden_size)
        return model

    monkeypatch.setattr(loop, "build", without)
    kept = Trainer(replace(config, tune="none")).split
    assert kept.dropped == 0 and kept.train and kept.held_out
