"""GGUF against transformers and PEFT themselves: hidden states, logits, values and token ids."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sia_local.errors import ConfigError, DataError, IncompatibleError, ModelFileError, SiaError
from sia_local.llama import keys
from sia_local.llama.gguf import GgufMetadata
from sia_local.llama.model import Model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
import transformers
from references import BASES, IDS, load, peft_values
from sia_convert.formats.arch import Hparams
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.formats.export import LAYOUTS, ExportConfig, default_layout, export_base, export_value
from sia_convert.formats.quantize import quantize_gguf, rows_hint
from sia_convert.formats.tensors import read_json
from sia_convert.proof.junctions import JunctionConfig
from sia_convert.proof.verify import table, verify
from sia_convert.proof.walk import Walk, store_spread, walk
from sia_convert.settings import Machine
from tiny import prove


@pytest.mark.parametrize("name", BASES)
def test_hidden_states_and_logits_are_those_of_transformers(
    name: str, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    arch, over = BASES[name]
    folder = make_hf(arch, **over)
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        wanted = model(torch.tensor([IDS]), output_hidden_states=True)
    with load(export_base(folder, tmp_path / "base.gguf", "f32")) as sia:
        assert sia.model.meta("general.architecture") == arch
        logits = np.concatenate([rows.copy() for rows in sia.engine.trail(0, [], IDS)])
        hidden = np.concatenate([rows.copy() for rows in sia.engine.trail(0, [], IDS, hidden=True)])
    np.testing.assert_allclose(hidden, wanted.hidden_states[-1][0], atol=2e-4)
    np.testing.assert_allclose(logits, wanted.logits[0], atol=2e-4)


def test_a_sharded_checkpoint_gives_the_same_file(make_hf: Callable[..., Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(make_hf())
    model.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    tiny.tiny_tokenizer(tmp_path / "hf")
    folders = (make_hf(), tmp_path / "hf")
    paths = [export_base(folder, tmp_path, "f16", name=f"tiny-{i}") for i, folder in enumerate(folders)]
    assert [path.name for path in paths] == ["tiny-0-F16.gguf", "tiny-1-F16.gguf"]
    first, second = (path.read_bytes() for path in paths)
    assert first.replace(b"tiny-0", b"tiny-1") == second


def test_configurations_of_transformers_4_and_5_say_the_same() -> None:
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
    scaling["original_max_position_embeddings"] = 8192
    shape = {
        "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "vocab_size": 128256, "tie_word_embeddings": True,
    }  # fmt: skip
    old = Hparams.from_hf({**shape, "rope_theta": 5e5, "rope_scaling": {**scaling, "rope_type": "llama3"}})
    new = Hparams.from_hf({**shape, "rope_parameters": {**scaling, "rope_type": "llama3", "rope_theta": 5e5}})
    assert (old.rope.theta, old.rope.kind) == (new.rope.theta, new.rope.kind) == (5e5, "llama3")
    assert old.fields() == new.fields()
    factors, same = old.rope_factors(), new.rope_factors()
    # Frequencies faster than 8192 / 4 positions a turn stay, those slower than 8192 are divided by 32.
    assert factors is not None and same is not None and np.array_equal(factors, same)
    assert factors[0] == 1.0 and factors[-1] == 32.0 and (np.diff(factors) >= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic' is not supported"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding-window attention"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported: expected 'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial rotary embeddings"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, Any], message: str, make_hf: Callable[..., Path]
) -> None:
    config = read_json(make_hf("qwen2") / "config.json")
    config.pop("rope_parameters")
    with pytest.raises(IncompatibleError, match=message):
        Hparams.from_hf({**config, **changes})


@pytest.fixture(scope="module", params=tiny.ARCHS)
def chain(request: pytest.FixtureRequest, make_hf: Callable[..., Path], tmp_path_factory: Any) -> dict[str, Any]:
    """A base with trajectories, and value models with random LoRA and head over it."""
    root, arch = tmp_path_factory.mktemp("chain"), request.param
    folder = make_hf(arch, tie_word_embeddings=arch == "qwen2")
    return {
        "root": root,
        "base": export_base(folder, root / "base.gguf", "f32"),
        "data": tiny.tiny_trajectories(root / "data.jsonl", folder),
        "lora": tiny.tiny_checkpoint(root / "lora", folder),
        "none": tiny.tiny_checkpoint(root / "none", folder, tune="none", n_hidden=24),
    }


@pytest.mark.parametrize("output_layer", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_those_of_peft_and_verify_agrees(
    layout: str, output_layer: bool, chain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the value model's output layer computed, as with a small vocabulary, and left out."""
    monkeypatch.setattr("sia_local.values.model.LARGE_OUTPUT_LAYER", 1 << 62 if output_layer else 0)
    checkpoint = chain["none" if layout == "head" else "lora"]
    path = export_value(checkpoint, chain["root"] / f"{layout}.gguf", chain["base"], ExportConfig(layout, "f32"))
    with load(chain["base"], path) as sia:
        prompt = sia.prompt("the old king")
        value: Any = sia.value
        assert value.engine.context.hidden_only == (not output_layer and layout in ("merged", "adapter"))
        read = list(value.tokens(prompt))
        values = value.trajectory(0, prompt, IDS)
    np.testing.assert_allclose(values, peft_values(checkpoint, [*read, *IDS])[len(read) :], atol=2e-4)
    row = prove(checkpoint, path, chain["base"], chain["data"], limit=4)
    assert (row.kind, row.type, row.failures, row.same_prompt) == (layout, "F32", (), True)
    assert row.junctions == 16 and row.max_abs < 1e-3 and row.spread > 0.01


def test_one_pass_serves_spread_and_verify_and_rewrites_nothing(
    chain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = shutil.ignore_patterns("junctions.npz")
    folder = shutil.copytree(chain["lora"].folder, chain["root"] / "walked", ignore=without)
    checkpoint = ValueCheckpoint.open(folder)
    before = {path.name: path.read_bytes() for path in checkpoint.folder.iterdir() if path.is_file()}
    config, machine = JunctionConfig(threshold=0.0, limit=3, per_trajectory=4, n_ctx=256), Machine(threads=1)
    seen = walk(checkpoint, chain["base"], [chain["data"]], config, machine)
    spread = store_spread(checkpoint, seen)

    class WalkedAgain(Exception): ...

    def find_cases(*_: Any) -> None:
        raise WalkedAgain

    monkeypatch.setattr("sia_convert.proof.walk.find_cases", find_cases)
    again = walk(checkpoint, chain["base"], [chain["data"]], config, machine)
    for a, b in zip(seen.cases, again.cases, strict=True):
        assert (a.trajectory, a.prompt_ids, a.positions) == (b.trajectory, b.prompt_ids, b.positions)
        assert np.array_equal(a.candidates, b.candidates)
    assert all(np.array_equal(a, b) for a, b in zip(seen.values, again.values, strict=True))
    path = export_value(checkpoint, chain["root"] / "walked.gguf", chain["base"], ExportConfig("merged", "f32"))
    with GgufMetadata(path) as meta:
        assert meta.get(keys.VALUE_SPREAD) == np.float32(spread)
    assert all((checkpoint.folder / name).read_bytes() == data for name, data in before.items())
    # Of another model, other junctions or a damaged file nothing is taken.
    other = replace(checkpoint, head=replace(checkpoint.head, bias=checkpoint.head.bias + 1.0))
    assert other.spread() is None
    for model, how in ((other, config), (checkpoint, replace(config, k=5))):
        with pytest.raises(WalkedAgain):
            walk(model, chain["base"], [chain["data"]], how, machine)
    kept = checkpoint.folder / "junctions.npz"
    kept.write_bytes(kept.read_bytes()[:-40])
    with pytest.raises(WalkedAgain):
        walk(checkpoint, chain["base"], [chain["data"]], config, machine)


@pytest.mark.parametrize("layout", ["adapter", "head"])
def test_what_lies_over_the_base_needs_only_its_gguf(layout: str, chain: dict[str, Any]) -> None:
    checkpoint, root = chain["none" if layout == "head" else "lora"], chain["root"]
    away = ValueCheckpoint.open(checkpoint.folder, root / "moved-away")
    with_folder, without = (
        export_value(c, root / f"{layout}-{i}.gguf", chain["base"], ExportConfig(layout, "f32", name="x"))
        for i, c in enumerate((checkpoint, away))
    )
    assert with_folder.read_bytes() == without.read_bytes()
    with pytest.raises(ModelFileError, match=r"no model at .*moved-away"):
        export_value(away, root / "merged-away.gguf", chain["base"], ExportConfig("merged"))


def test_the_layout_follows_the_placement(chain: dict[str, Any]) -> None:
    found = chain["lora"]
    n = len(found.head.weight)
    wide = replace(found.head, hidden_weight=np.eye(n, dtype=np.float32), hidden_bias=np.zeros(n, np.float32))
    for placement, head, layout in (
        ("separate", found.head, "lean"),
        ("separate", wide, "merged"),
        ("adapter", found.head, "adapter"),
        ("head", wide, "head"),
    ):
        assert default_layout(replace(found, meta=replace(found.meta, placement=placement), head=head)) == layout
    path = export_value(found, chain["root"] / "default.gguf", chain["base"], ExportConfig(dtype="f32"))
    with GgufMetadata(path) as meta:
        assert meta.get(keys.LAYOUT) == "lean"


def test_a_backbone_without_a_tokenizer_takes_the_bases(
    make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).write_bytes((make_hf() / name).read_bytes())
    paths: list[Path] = []
    for folder in (make_hf(), tmp_path / "hf"):
        checkpoint = tiny.tiny_checkpoint(tmp_path / f"value-{len(paths)}", folder)
        target = tmp_path / f"{len(paths)}.gguf"
        paths.append(export_value(checkpoint, target, tiny_base, ExportConfig("merged", "f32", name="x")))
    with Model(paths[0], vocab_only=True) as a, Model(paths[1], vocab_only=True) as b:
        assert a.tokenize("the old king", parse_special=True) == b.tokenize("the old king", parse_special=True)
    with GgufMetadata(paths[0]) as a, GgufMetadata(paths[1]) as b:
        assert a.vocab_sha256() == b.vocab_sha256() == a.get(keys.VOCAB_SHA256)
    with pytest.raises(IncompatibleError, match="has no tokenizer: add it, or give the base GGUF with --base"):
        export_value(checkpoint, tmp_path / "c.gguf", None, ExportConfig("merged"))


def test_verify_notices_a_head_that_is_not_the_checkpoints(chain: dict[str, Any]) -> None:
    other = tiny.tiny_checkpoint(chain["root"] / "other", Path(chain["lora"].meta.backbone))
    other.head.weight[0] += 0.01
    path = export_value(other, chain["root"] / "other.gguf", chain["base"], ExportConfig("merged", "f32"))
    row = prove(chain["lora"], path, chain["base"], chain["data"], limit=2)
    assert row.failures[0].startswith("max |dV|")


def test_a_text_whose_prompt_does_not_fit_is_left_out(
    make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", make_hf(), prompts=3, samples=1)
    first, *rest = map(json.loads, data.read_text().splitlines())
    long = {**first, "prompt": "the king " * 60, "rendered": "the king " * 60}
    data.write_text("".join(json.dumps(row) + "\n" for row in (long, *rest)))
    checkpoint = tiny.tiny_checkpoint(tmp_path / "value", make_hf())
    found = walk(checkpoint, tiny_base, [data], JunctionConfig(threshold=0.0, n_ctx=64), Machine(threads=1))
    assert len(found.cases) == 2 and "left out 1 texts: their prompts do not fit 64 tokens" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no prompt of these trajectories fits 8 tokens: raise --ctx"):
        walk(checkpoint, tiny_base, [data], JunctionConfig(threshold=0.0, n_ctx=8), Machine(threads=1))


def test_verify_reads_what_was_read_when_the_texts_were_written(
    make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    """Texts of another chat template than the base has: the base reads what was rendered, a value model its own."""
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", make_hf(), prompts=2, samples=1)
    other = data.read_text().replace("<|im_start|>user", "<|im_start|>king")
    assert other != data.read_text()
    data.write_text(other)
    for tune, layout in (("none", "head"), ("lora", "lean")):
        checkpoint = tiny.tiny_checkpoint(tmp_path / tune, make_hf(), tune)
        path = export_value(checkpoint, tmp_path / f"{tune}.gguf", tiny_base, ExportConfig(layout, "f32"))
        row = prove(checkpoint, path, tiny_base, data)
        assert (row.failures, row.same_prompt) == ((), True) and row.max_abs < 1e-3


@pytest.mark.parametrize(
    ("tune", "layers", "layout"), [("full", None, "lean"), ("lora", 1, "merged"), ("none", 1, "lean")]
)
def test_changed_or_shortened_backbones_verify(
    tune: str, layers: int | None, layout: str, make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    checkpoint = tiny.tiny_checkpoint(tmp_path / "value", make_hf(), tune, layers)
    path = export_value(checkpoint, tmp_path / "value.gguf", tiny_base, ExportConfig(layout, "f32"))
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", make_hf(), prompts=2, samples=1)
    row = prove(checkpoint, path, tiny_base, data)
    assert row.failures == () and row.max_abs < 1e-3
    with GgufMetadata(path) as meta:
        assert meta.get("qwen3.block_count") == (layers or 2)


def test_quantizing_leaves_the_head_and_a_lean_files_rows(chain: dict[str, Any]) -> None:
    source = export_value(chain["lora"], chain["root"] / "full.gguf", chain["base"], ExportConfig("lean", "f32"))
    path = quantize_gguf(source, chain["root"] / "small.gguf", "Q8_0", n_threads=1)
    with GgufMetadata(source) as a, GgufMetadata(path) as b:
        for key in (keys.HEAD_WEIGHT, keys.HEAD_BIAS, keys.REWARD_MEAN, keys.VOCAB_SHA256):
            assert np.array_equal(a.get(key), b.get(key))
        assert np.array_equal(a.get(keys.HEAD_WEIGHT), chain["lora"].head.weight * np.float32(1.5))
    tail = 400 * 64 * 4 + keys.TRAILER_FOOTER.size
    assert source.read_bytes()[-tail:] == path.read_bytes()[-tail:]
    assert "are embedding rows in float32; in f16 they are half that" in str(rows_hint(path))
    halved = quantize_gguf(source, chain["root"] / "halved.gguf", "Q8_0", "f16", n_threads=1)
    assert rows_hint(halved) is None and halved.stat().st_size == path.stat().st_size - 400 * 64 * 2
    row = prove(chain["lora"], path, chain["base"], chain["data"], limit=6)
    assert row.type == "Q8_0" and row.failures == () and 0 < row.mean_in_spreads < 0.1
    # Only what has a limit is said to keep it.
    _, limited, free = table([row, replace(row, type="Q2_K")]).splitlines()
    assert limited.endswith(" ok") and free.endswith(" no limit")


def test_a_quantization_that_cannot_be_is_refused_before_anything_is_compared(chain: dict[str, Any]) -> None:
    nothing = Walk(JunctionConfig(), [], [])
    for layout, kind, message in (("lean", "Q9", "unknown quantization 'Q9'"), ("adapter", "Q8_0", "is an adapter or")):
        path = export_value(chain["lora"], chain["root"] / f"{layout}.gguf", chain["base"], ExportConfig(layout, "f32"))
        with pytest.raises(SiaError, match=message):
            verify(nothing, [path], chain["base"], [kind])


TEXTS = (
    "the old king saw a cat",
    "don't  stop\n\nIT'S 2024, 12345!\t…",
    "naïve 東京 🙂",
    "",
    " ",
    "a\r\n b  \n",
    "<|im_end|>x",
)


@pytest.mark.parametrize("style", ["qwen2", "llama-bpe", "gpt-2", "smollm", "spm-json", "spm-model"])
def test_tokenizers_agree_with_hugging_face(style: str, make_hf: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    tiny.retokenized(make_hf("llama"), folder, style)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with Model(export_base(folder, tmp_path / "base.gguf", "f32"), vocab_only=True) as model:
        assert model.meta("tokenizer.ggml.pre") == ("default" if style.startswith("spm") else style)
        for text in TEXTS:
            wanted = tokenizer(text).input_ids
            assert model.tokenize(text, add_special=True, parse_special=True) == wanted, text
        assert model.chat_template == tiny.CHAT_TEMPLATE and model.eos == tokenizer.eos_token_id


def _spec(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


def _merge_less(spec: dict[str, Any]) -> None:
    """Words that are known, but that no merges lead to."""
    spec["model"]["merges"] = spec["model"]["merges"][: len(spec["model"]["merges"]) // 2]


@pytest.mark.parametrize(("style", "whole"), [("qwen2", True), ("gpt-2", True), ("llama-bpe", False)])
def test_known_words_are_taken_whole_where_hugging_face_takes_them(
    style: str, whole: bool, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny.retokenized(make_hf("llama"), tmp_path / "hf", style)
    _spec(folder, _merge_less)
    _spec(folder, lambda spec: spec["model"].update(ignore_merges=whole))
    if whole:
        with pytest.raises(IncompatibleError, match="splits text in a way that is not known here"):
            export_base(folder, tmp_path / "base.gguf", "f32")
        return
    wanted = transformers.AutoTokenizer.from_pretrained(folder)("the king queen upon", add_special_tokens=False)
    with Model(export_base(folder, tmp_path / "base.gguf", "f32"), vocab_only=True) as model:
        assert model.tokenize("the king queen upon") == wanted.input_ids


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["pre_tokenizer"]["pretokenizers"].insert(
            0, {"type": "Split", "pattern": {"Regex": "e"}, "behavior": "Isolated", "invert": False}
        ),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"].__setitem__(
            0, {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
        ),
        lambda spec: spec.update(normalizer={"type": "Lowercase"}),
    ],
)
def test_a_split_that_llama_cpp_does_not_make_is_refused(
    change: Callable[[dict[str, Any]], object], make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny.retokenized(make_hf("llama"), tmp_path / "hf", "qwen2")
    _spec(folder, change)
    with pytest.raises(IncompatibleError, match=r"known: gpt-2, llama-bpe, qwen2, smaug-bpe, smollm"):
        export_base(folder, tmp_path / "base.gguf", "f32")


@pytest.mark.parametrize(("style", "said"), [("gpt-2", True), ("llama-bpe", False), ("spm-json", False)])
def test_a_text_begins_as_transformers_begins_it(
    style: str, said: bool, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    """Its settings say the opposite of what it does."""
    folder = tiny.retokenized(make_hf("llama"), tmp_path / "hf", style)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": said}))
    wanted = transformers.AutoTokenizer.from_pretrained(folder)("the king").input_ids
    with Model(export_base(folder, tmp_path / "base.gguf", "f32"), vocab_only=True) as model:
        assert model.tokenize("the king", add_special=True) == wanted


def test_an_added_token_of_spaces_is_found(make_hf: Callable[..., Path], tmp_path: Path) -> None:
    from tokenizers import AddedToken

    folder = tiny.retokenized(make_hf("llama"), tmp_path / "hf", "spm-json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("  ", normalized=False)])
    tokenizer.save_pretrained(folder)
    with Model(export_base(folder, tmp_path / "base.gguf", "f32"), vocab_only=True) as model:
        assert model.tokenize("a  b") == tokenizer("a  b", add_special_tokens=False).input_ids


def test_a_tokenizer_of_another_base_is_refused(make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    tiny.retokenized(make_hf(), tmp_path / "hf", "gpt-2", words="un deux trois quatre cinq six sept huit neuf dix")
    checkpoint = tiny.tiny_checkpoint(tmp_path / "value", tmp_path / "hf")
    with pytest.raises(IncompatibleError, match=r"the tokenizer in .* does not match that of base-F32.gguf"):
        export_value(checkpoint, tmp_path / "value.gguf", tiny_base, ExportConfig("merged"))
    assert not (tmp_path / "value.gguf").exists()


def test_what_does_not_fit_is_refused(make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    wide = export_base(make_hf("qwen3", hidden_size=32, seed=4), tmp_path / "narrow.gguf", "f32")
    lora = tiny.tiny_checkpoint(tmp_path / "lora", make_hf())
    with pytest.raises(IncompatibleError, match="qwen3 with 2 blocks of width 32, the value model was trained on"):
        export_value(lora, tmp_path / "a.gguf", wide, ExportConfig("adapter"))
    with pytest.raises(IncompatibleError, match="train one with `sia-convert train --placement head`"):
        export_value(lora, tmp_path / "a.gguf", tiny_base, ExportConfig("head"))
    moved = ValueCheckpoint.open(tmp_path / "lora", make_hf("qwen3", hidden_size=32, seed=4))
    with pytest.raises(IncompatibleError, match=r"fits a weight|the head reads 64 values"):
        export_value(moved, tmp_path / "a.gguf", tiny_base, ExportConfig("merged"))
    (tmp_path / "lora/head.safetensors").unlink()
    with pytest.raises(ModelFileError, match="no head at"):
        ValueCheckpoint.open(tmp_path / "lora")
    assert not (tmp_path / "a.gguf").exists()
    shutil.copytree(make_hf(), tmp_path / "cut")
    cut = read_json(tmp_path / "cut/config.json")
    (tmp_path / "cut/config.json").write_text(json.dumps({**cut, "rms_norm_eps": None}))
    with pytest.raises(IncompatibleError, match=r"config.json of a qwen3 has no rms_norm_eps"):
        export_base(tmp_path / "cut", tmp_path / "a.gguf")
    for spread in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match=f"spread is {spread}; expected more than 0"):
            ExportConfig(spread=spread)
