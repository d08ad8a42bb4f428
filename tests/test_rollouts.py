from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, ContextFullError, DataError, NumericError
from sia_local.prompts import read_prompts
from sia_local.rewards.judge import shipped_judge

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
from sia_convert.cli import main
from sia_convert.data.outputs import Appender
from sia_convert.data.pairs import take_pairs, take_texts
from sia_convert.data.rollouts import RolloutConfig, sample
from sia_convert.data.score import score_files
from sia_convert.data.trajectories import Shard, Trajectory, read_trajectories
from sia_convert.settings import Machine

PROMPTS = [f"the {word} king" for word in ("sad", "old", "bad", "kind", "big")]


CONFIG = RolloutConfig(samples=2, max_tokens=8, slots=3, n_ctx=64)
MACHINE = Machine(threads=1)


@pytest.fixture(scope="module")
def sampled(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted, unsharded run."""
    out = tmp_path_factory.mktemp("rollouts") / "whole.jsonl"
    sample(PROMPTS, out, tiny_base, CONFIG, MACHINE)
    return out


def by_id(path: Path) -> dict[str, Trajectory]:
    found = list(read_trajectories([path]))
    assert len({t.id for t in found}) == len(found)
    return {t.id: t for t in found}


def test_a_trajectory_holds_what_was_read_and_written(
    sampled: Path, tiny_base: Path, make_hf: Callable[..., Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_hf())
    found = by_id(sampled)
    assert set(found) == {f"{p}-{j}" for p in range(5) for j in range(2)}
    for t in found.values():
        chat = [{"role": "user", "content": PROMPTS[t.prompt_id]}]
        assert t.rendered == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert t.response == tokenizer.decode(t.tokens)
        assert (t.finish == "length" and len(t.tokens) == 8) or (t.stop == tokenizer.eos_token_id and len(t.tokens) < 8)
    assert found["0-0"].tokens != found["0-1"].tokens
    made = json.loads(sampled.with_name("whole.jsonl.made.json").read_text())
    assert {"llama-cpp-python", "sia-local"} <= set(made["versions"]) and made["command"]


def test_a_template_of_ones_own_and_what_it_is_told_reach_base_and_value_model(
    tiny_base: Path, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    from sia_convert.data.examples import Reader
    from transformers import AutoTokenizer

    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}{{ ' so' if wide else ' the' }}")
    config = dataclasses.replace(CONFIG, samples=1, chat_template=str(own), template_arg=("wide=true",))
    sample(PROMPTS[:1], tmp_path / "out.jsonl", tiny_base, config, MACHINE)
    (found,) = by_id(tmp_path / "out.jsonl").values()
    assert found.rendered == f"{PROMPTS[0]} so" and found.told == {"wide": True}
    tokenizer = AutoTokenizer.from_pretrained(make_hf())
    reader = Reader(tokenizer, own.read_text(), stop_token=tokenizer.eos_token)
    ids = list(reader.prompt_ids(found))
    assert tokenizer.decode(ids) == f"{PROMPTS[0]} so"
    assert tokenizer.decode(reader.prompt_ids(dataclasses.replace(found, told=None))) == f"{PROMPTS[0]} the"
    # Pairs, too.
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "taken.jsonl"
    pairs.write_text('{"prompt": "the old", "response": "king"}')
    words = ["rollouts", str(pairs), str(out), "--base", str(tiny_base), "--pairs", "--chat-template", str(own)]
    result = CliRunner().invoke(main, [*words, "--template-arg", "wide=true"])
    assert result.exit_code == 0, result.output
    (taken,) = by_id(out).values()
    assert (taken.rendered, taken.told, taken.raw) == ("the old so", {"wide": True}, False)
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2 and "made with template_arg ['wide=true'], not []" in again.output
    for more in (["--value", "v.gguf"], ["--url", "http://localhost:1"]):
        refused = CliRunner().invoke(main, [*words, *more])
        assert refused.exit_code == 2 and f"answers that are there, {more[0]} samples new ones" in refused.output
    # A file is what it holds, wherever it lies.
    (tmp_path / "moved").mkdir()
    moved = dataclasses.replace(config, chat_template=str(own.rename(tmp_path / "moved" / own.name)))
    assert sample(PROMPTS[:1], tmp_path / "out.jsonl", tiny_base, moved, MACHINE) == 0
    own.write_text("{{ messages[0].content }}")
    with pytest.raises(DataError, match=r"made with chat_template own.jinja \w{12}, not own.jinja \w{12}: name"):
        sample(PROMPTS[:1], tmp_path / "out.jsonl", tiny_base, config, MACHINE)


def test_shards_together_are_the_whole(sampled: Path, tiny_base: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for index, part in enumerate(parts, 1):
        sample(PROMPTS, part, tiny_base, CONFIG, MACHINE, Shard(index, 2))
    assert [{t.prompt_id for t in by_id(part).values()} for part in parts] == [{0, 2, 4}, {1, 3}]
    assert by_id(parts[0]) | by_id(parts[1]) == by_id(sampled)


@pytest.mark.parametrize("torn", [b"", b'{"id": "4-1", "tok'])
def test_an_interrupted_run_loses_no_finished_line(
    torn: bytes, sampled: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    write = Appender.__call__

    def stop_at_the_fourth(self: Appender, line: str) -> None:
        write(self, line)
        if len(out.read_bytes().splitlines()) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Appender, "__call__", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        sample(PROMPTS, out, tiny_base, CONFIG, MACHINE)
    monkeypatch.setattr(Appender, "__call__", write)
    before = out.read_bytes()
    out.write_bytes(before + torn)
    assert sample(PROMPTS, out, tiny_base, CONFIG, MACHINE) == 6
    assert out.read_bytes().startswith(before) and by_id(out) == by_id(sampled)
    assert sample(PROMPTS, out, tiny_base, CONFIG, MACHINE) == 0


def test_a_line_that_cannot_be_written_whole_is_taken_back(tmp_path: Path) -> None:
    """A file that may grow by five more bytes takes half of the line."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out.jsonl"
    with Appender(out) as append:
        append('{"id": 1}')
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + 5, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                append('{"id": 2}')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_text() == '{"id": 1}\n'


def test_a_prompt_that_does_not_fit_is_left_out(tiny_base: Path, sampled: Path, tmp_path: Path) -> None:
    assert sample([PROMPTS[0], "king " * 64], tmp_path / "out.jsonl", tiny_base, CONFIG, MACHINE) == 2
    assert by_id(tmp_path / "out.jsonl") == {name: t for name, t in by_id(sampled).items() if t.prompt_id == 0}
    with pytest.raises(ContextFullError, match="the context holds 64; shorten the prompt"):
        sample(["king " * 64], tmp_path / "none.jsonl", tiny_base, CONFIG, MACHINE)
    # Nor is it what a shard fails of that holds no other.
    assert sample([PROMPTS[0], "king " * 64], tmp_path / "2.jsonl", tiny_base, CONFIG, MACHINE, Shard(2, 2)) == 0


def test_a_prompt_that_the_value_models_template_makes_too_long_is_left_out(
    base_gguf: Path, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    """It fits the base, and had ended the whole run: of rollouts, and of the last step of a plan."""
    from sia_convert.data.calibrate import _fitting

    from sia_local import SIA
    from sia_local.prompts import PromptItem

    wordy, prompts = make_gguf("merged", seed=1, template="{{ messages[0].content * 16 }}"), ["a", "a dog " * 4, "cat"]
    out, config = tmp_path / "out.jsonl", dataclasses.replace(CONFIG, n_ctx=72, k=4)
    assert sample(prompts, out, base_gguf, config, MACHINE, value=wordy) == 4
    assert {t.prompt_id for t in by_id(out).values()} == {0, 2}
    with SIA.load(base_gguf, wordy, n_ctx=72, max_candidates=4, n_threads=1) as sia:
        assert [i.id for i in _fitting(sia, [PromptItem(p, p) for p in prompts], False)] == ["a", "cat"]


def test_pairs_become_trajectories(tiny_base: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    rows = [{"instruction": "a", "output": "the king", "score": 1.5}, {"prompt": "b", "response": "x"},
            {"prompt": "a", "response": "y"}]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_pairs(source, tmp_path / "out.jsonl", str(tiny_base)) == 3
    found = list(read_trajectories([tmp_path / "out.jsonl"]))
    assert [(t.prompt_id, t.reward) for t in found] == [(0, 1.5), (1, None), (0, None)]
    assert {t.finish for t in found} == {"stop"}
    assert found[0].rendered == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert take_pairs(source, tmp_path / "out.jsonl", str(tiny_base)) == 0
    # Rewards that were mended are not passed over.
    source.write_text(source.read_text().replace("1.5", "2.5"))
    with pytest.raises(DataError, match=r"holds the text 0-1 with the reward 1.5, now it is 2.5; name another output"):
        take_pairs(source, tmp_path / "out.jsonl", str(tiny_base))
    source.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"line 1: expected a prompt .* and a response .*, found prompt"):
        take_pairs(source, tmp_path / "out.jsonl", str(tiny_base))


def test_rows_that_share_an_id_get_one_each_that_a_second_run_finds(tiny_base: Path, tmp_path: Path) -> None:
    source, whole = tmp_path / "pairs.jsonl", tmp_path / "whole.jsonl"
    rows = [
        {"id": id, "prompt": p, "response": f"r{i}"} for i, (id, p) in enumerate(zip("aabca", "ppqqp", strict=True))
    ]
    rows[3]["id"] = "a-2"  # which is what the second row would be called
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_pairs(source, whole, tiny_base) == 5
    assert [(t.id, t.response) for t in read_trajectories([whole])] == [
        ("a", "r0"), ("a-2", "r1"), ("b", "r2"), ("a-2-4", "r3"), ("a-5", "r4"),
    ]  # fmt: skip
    lines = whole.read_bytes().splitlines(keepends=True)
    whole.write_bytes(lines[0] + lines[3])
    assert take_pairs(source, whole, tiny_base) == 3 and take_pairs(source, whole, tiny_base) == 0
    assert sorted(whole.read_bytes().splitlines(keepends=True)) == sorted(lines)
    shards = [tmp_path / f"{i}.jsonl" for i in (1, 2)]
    assert [take_pairs(source, out, tiny_base, Shard(i, 2)) for i, out in enumerate(shards, 1)] == [3, 2]
    assert take_pairs(source, tmp_path / "empty.jsonl", tiny_base, Shard(9, 9)) == 0
    assert sorted(b"".join(out.read_bytes() for out in shards).splitlines(keepends=True)) == sorted(lines)


def test_alpacas_input_is_part_of_the_prompt_and_what_is_left_out_is_said(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": "Translate.", "input": "the king", "output": "x"},
        {"instruction": "Translate.", "input": "", "output": "y"},
        {"instruction": "Who?", "context": "A cat sat.", "response": "z", "system": "Be kind.", "history": []},
        {"question": "Who?", "context": "A dog sat.", "answer": "z"},
        {"prompt": "Go on.", "input": "no part of it", "completion": "z"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    take_pairs(source, tmp_path / "out.jsonl", tiny_base)
    found = list(read_trajectories([tmp_path / "out.jsonl"]))
    assert [t.prompt for t in found] == ["Translate.\n\nthe king", "Translate.", "Who?\n\nA cat sat.", "Who?", "Go on."]
    assert read_prompts(source) == [t.prompt for t in found]
    assert "Translate.\n\nthe king<|im_end|>" in found[0].rendered and [t.prompt_id for t in found] == list(range(5))
    assert capsys.readouterr().err == "".join(
        f"{source}: the field {name} of 1 rows is not used\n" for name in ("system", "context", "input")
    )


def test_texts_that_were_sampled_before_are_taken_over(sampled: Path, tiny_base: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "texts.jsonl.xz", tmp_path / "out.jsonl"
    packed.write_bytes(lzma.compress(sampled.read_bytes()))
    assert take_texts(packed, out, tiny_base, CONFIG) == 10 and out.read_bytes() == sampled.read_bytes()
    assert take_texts(packed, out, tiny_base, CONFIG) == 0
    assert list(read_trajectories([packed])) == list(read_trajectories([sampled]))

    other = dataclasses.replace(CONFIG, raw=True)
    with pytest.raises(
        DataError, match=r"texts\.jsonl\.xz, text .*: the base read '<\|im_start\|>user.*; this base reads 'the"
    ):
        take_texts(packed, tmp_path / "raw.jsonl", tiny_base, other)
    beyond = tmp_path / "beyond.jsonl"
    beyond.write_text(dataclasses.replace(by_id(sampled)["0-0"], tokens=[10**6]).to_json() + "\n")
    with pytest.raises(DataError, match=r"text 0-0: token 1000000 is beyond this base's \d+"):
        take_texts(beyond, tmp_path / "beyond-out.jsonl", tiny_base, CONFIG)
    for name, data in (("cut.jsonl.xz", packed.read_bytes()[:-40]), ("cut.jsonl.gz", gzip.compress(b"{}" * 999)[:-9])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name} cannot be unpacked .*: it is cut short or damaged"):
            list(read_trajectories([tmp_path / name]))


def test_other_prompts_or_settings_are_refused_on_an_output_that_is_there(
    sampled: Path, tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole.jsonl"
    for name in ("whole.jsonl", "whole.jsonl.made.json"):
        (tmp_path / name).write_bytes(sampled.with_name(name).read_bytes())
    for changes, message in (
        ({"max_tokens": 4}, "made with max_tokens 8, not 4"),
        ({"seed": 1, "temperature": 0.5}, "made with seed 0, not 1; temperature 1.0, not 0.5"),
        ({"raw": True}, "made with raw False, not True"),
    ):
        with pytest.raises(DataError, match=message):
            sample(PROMPTS, out, tiny_base, dataclasses.replace(CONFIG, **changes), MACHINE)
    # Nor do texts that a value model steers go behind those of the base alone, which the reward would not tell apart.
    with pytest.raises(DataError, match=r"made with value None, not \d+-\w+: name"):
        sample(PROMPTS, out, tiny_base, dataclasses.replace(CONFIG, samples=3), MACHINE, value=tiny_base)
    with pytest.raises(DataError, match=r"another text under the id 1-0 .prompt 'the old king', now 'the young king'"):
        sample([PROMPTS[0], "the young king", *PROMPTS[2:]], out, tiny_base, CONFIG, MACHINE)
    assert out.read_bytes() == sampled.read_bytes()
    # More of the same is a continuation.
    wider = dataclasses.replace(CONFIG, samples=3, slots=2)
    assert sample([*PROMPTS, "the lost king"], out, tiny_base, wider, MACHINE) == 5 + 3


def rewards(path: Path) -> list[float]:
    return [float(t.reward) for t in read_trajectories([path]) if t.reward is not None]


def count_of_e(prompts: list[str], responses: list[str]) -> list[float]:
    calls.append(len(responses))
    return [response.count("e") + prompts[i].count("s") / 8 for i, response in enumerate(responses)]


calls: list[int] = []


def test_a_function_scores_in_batches_and_continues(sampled: Path, tmp_path: Path) -> None:
    out, calls[:] = tmp_path / "scored.jsonl", []
    spec = f"{__name__}:count_of_e"
    wanted = [t.response.count("e") + t.prompt.count("s") / 8 for t in read_trajectories([sampled])]
    assert score_files([sampled], out, spec, batch=4) == 10
    assert sys.modules[__name__].calls == [4, 4, 2] and rewards(out) == wanted
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:7]) + lines[7][:9])
    assert score_files([sampled], out, spec, batch=4) == 3
    assert calls == [4, 4, 2, 3] and out.read_bytes() == b"".join(lines)


def test_an_edited_function_or_model_does_not_go_on_with_what_it_scored_before(
    sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, out = tmp_path / "my_reward.py", tmp_path / "out.jsonl"
    module.write_text("def long(prompts, responses): return [float(len(r)) for r in responses]")
    assert (score_files([sampled], out, "my_reward:long"), score_files([sampled], out, "my_reward:long")) == (10, 0)
    module.write_text("def long(prompts, responses): return [-float(len(r)) for r in responses]")
    with pytest.raises(DataError, match="made with reward_files"):
        score_files([sampled], out, "my_reward:long")
    # What lies about is no part of a reward without a file, not even what is written beside the output.
    for _ in range(2):
        score_files([sampled], "judged.jsonl", "polarity")
    with pytest.raises(ConfigError, match=r"judged.jsonl is read and written: name another output"):
        score_files([sampled, "judged.jsonl"], tmp_path / "judged.jsonl", "polarity")
    # What a folder holds decides, not where it lies.
    judge = shutil.copy(shipped_judge(), tmp_path / "judge.npz")
    scored = tmp_path / "by-file.jsonl"
    score_files([sampled], scored, f"polarity:{judge}")
    (tmp_path / "moved").mkdir()
    assert score_files([sampled], scored, f"polarity:{shutil.move(judge, tmp_path / 'moved')}") == 0


def test_a_reward_model_reads_its_chat_template(sampled: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny.tiny_reward(tmp_path / "reward")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    result = CliRunner().invoke(main, ["score", str(sampled), str(tmp_path / "out.jsonl"), "--reward", f"hf:{folder}"])
    assert result.exit_code == 0, result.output
    wanted = []
    for t in read_trajectories([sampled]):
        chat = [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.response}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        with torch.no_grad():
            wanted.append(float(model(torch.tensor([tokenizer(text).input_ids])).logits[0, 0]))
    assert rewards(tmp_path / "out.jsonl") == pytest.approx(wanted, abs=1e-5)
    # Another one under the same name does not go on with what this one has scored.
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(DataError, match="made with reward_files"):
        score_files([sampled], tmp_path / "out.jsonl", f"hf:{folder}")


def test_a_reward_model_is_read_at_the_last_token_in_any_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its padding is its end token, with which its template ends: as many checkpoints are."""
    import torch
    from sia_convert.data.hf_reward import load_hf
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny.tiny_reward(tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)

    def unpadded(ids: list[int]) -> float:
        with torch.no_grad():
            return float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])[0])

    prompts, responses = ["the king"] * 5, ["a", "", "a cat sat here", "a dog ran to the old tree", "b"]
    rows = [tokenizer(f"{p}<|im_end|>{r}<|im_end|>").input_ids for p, r in zip(prompts, responses, strict=True)]
    assert all(row[-1] == tokenizer.pad_token_id for row in rows)
    wanted = [unpadded(row) for row in rows]
    for batch in (1, 2, 5):
        assert load_hf(str(folder), batch)(prompts, responses) == pytest.approx(wanted, abs=1e-5)
    assert capsys.readouterr().err == ""
    cut = load_hf(str(folder), 5, max_length=8)(prompts, responses)
    assert cut == pytest.approx([unpadded(r if len(r) <= 8 else [r[0], *r[-7:]]) for r in rows], abs=1e-5)
    longer = sum(len(row) > 8 for row in rows)
    assert 0 < longer < 5 and f"{longer} of 5 texts are longer than 8 tokens; what is cut" in capsys.readouterr().err


def test_sentiment_and_rewards_in_the_data(tmp_path: Path) -> None:
    pytest.importorskip("vaderSentiment")
    good = Trajectory("0-0", 0, "p", "p", [3], "What a happy, wonderful day!", reward=0.25)
    bad = dataclasses.replace(good, id="0-1", response="He was cruel and she cried.", reward=0.5)
    (tmp_path / "in.jsonl").write_text(good.to_json() + "\n" + bad.to_json() + "\n")
    score_files([tmp_path / "in.jsonl"], tmp_path / "vader.jsonl", "vader")
    high, low = rewards(tmp_path / "vader.jsonl")
    assert high > 0.5 and low < -0.5
    score_files([tmp_path / "in.jsonl"], tmp_path / "data.jsonl", "data")
    assert rewards(tmp_path / "data.jsonl") == [0.25, 0.5]


def nan(prompts: list[str], responses: list[str]) -> list[float]:
    return [float("nan")] * len(responses)


def same(prompts: list[str], responses: list[str]) -> list[float]:
    return [1.0] * len(responses)


def test_bad_rewards_and_bad_input_are_one_sentence(sampled: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(NumericError, match="returned nan for response 0"):
        score_files([sampled], out, f"{__name__}:nan")
    assert out.read_bytes() == b""
    with pytest.raises(DataError, match=r"all 10 rewards are 1.0: a constant reward teaches nothing"):
        score_files([sampled], out, f"{__name__}:same")
    with pytest.raises(DataError, match="needs one in every line"):
        score_files([sampled], tmp_path / "data.jsonl", "data")
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="the trajectory files are empty"):
        score_files([tmp_path / "empty"], out, "data")
    with pytest.raises(DataError, match="the prompt file is empty"):
        sample([], tmp_path / "none.jsonl", tiny_base, CONFIG, MACHINE)
    for text in ("0/4", "5/4", "x"):
        with pytest.raises(ConfigError, match="expected I/N with 1 <= I <= N"):
            Shard.parse(text)
    with pytest.raises(DataError, match=r"empty, line 2: no 'tokens' in the trajectory"):
        (tmp_path / "empty").write_text('\n{"id": 1, "prompt_id": 0, "prompt": "a", "response": "b"}\n')
        score_files([tmp_path / "empty"], out, "data")
