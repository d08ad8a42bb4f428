"""What llama.cpp's converter makes, and what is made of it here, against transformers and PEFT themselves."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sia_local.errors import ConfigError, IncompatibleError, ModelFileError
from sia_local.llama.model import Model

pytest.importorskip("torch")
pytest.importorskip("transformers")

import hybrids
import tiny
import torch
import transformers
from references import BASES, IDS, load, peft_values
from safetensors.torch import load_file, save_file
from sia_convert.cli import main
from sia_convert.formats import llamacpp
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.formats.export import ExportConfig, export_base, export_value
from sia_convert.formats.gguf_io import read_gguf, stored_tensors
from sia_convert.formats.gguf_to_hf import gguf_to_hf
from sia_convert.formats.llamacpp import Job
from sia_convert.formats.vocab import CONTROL
from sia_convert.train.config import LoraSettings
from sia_convert.train.model import build
from tiny import prove

RUN = llamacpp.run  # in a process a call, where `kept` has one for all
# What a value model is trained on beside attention: what stands in its place, and the feed forward layers.
TARGETS = {
    "gemma3": ("attention",),
    "qwen35": ("all-linear",),
    "lfm2": ("all-linear",),
    "granitehybrid": ("attention",),
    "qwen3moe": ("q_proj", "o_proj"),
    "gpt-oss": ("attention",),
}


@pytest.fixture(scope="module")
def kept() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, hybrids.KeptConverter() as converter:
        patch.setattr(llamacpp, "run", converter)
        yield


@pytest.fixture(scope="module", params=hybrids.CONFIGS)
def chain(request: pytest.FixtureRequest, kept: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base with trajectories, and a value model with random LoRA and head over it."""
    arch, root = request.param, tmp_path_factory.mktemp(request.param)
    folder = hybrids.hybrid_hf(arch, root / "hf")
    return {
        "arch": arch,
        "root": root,
        "folder": folder,
        "base": export_base(folder, root / "base.gguf", "f32", pre="qwen2"),
        "data": tiny.tiny_trajectories(root / "data.jsonl", folder, prompts=2, samples=1),
        "lora": tiny.tiny_checkpoint(root / "lora", folder, targets=TARGETS[arch]),
    }


def test_hidden_states_and_logits_are_those_of_transformers(chain: dict[str, Any]) -> None:
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(chain["folder"])
        wanted = model(torch.tensor([IDS]), output_hidden_states=True)
    with load(chain["base"]) as sia:
        assert sia.model.meta("general.architecture") == chain["arch"]
        logits = np.concatenate([rows.copy() for rows in sia.engine.trail(0, [], IDS)])
        hidden = np.concatenate([rows.copy() for rows in sia.engine.trail(0, [], IDS, hidden=True)])
    np.testing.assert_allclose(hidden, wanted.hidden_states[-1][0], atol=1e-3)
    # llama.cpp looks the GELU of gemma3 up in a table of halves.
    np.testing.assert_allclose(logits, wanted.logits[0], atol=5e-3 if chain["arch"] == "gemma3" else 1e-3)


@pytest.mark.parametrize("name", ["llama-llama3", "qwen2-tied", "qwen3"])
def test_what_is_converted_here_is_what_llama_cpp_converts(
    name: str, kept: None, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    """The same weights, byte for byte, and the same vocabulary and hyperparameters."""
    arch, over = BASES[name]
    folder, theirs = make_hf(arch, **over), tmp_path / "theirs.gguf"
    ours = export_base(folder, tmp_path / "ours.gguf", "f32")
    llamacpp.run(Job("model", str(folder), str(theirs), "f32", pre="qwen2"))
    weights, wanted = ({t.name: t.load() for t in stored_tensors(path)} for path in (ours, theirs))
    assert weights.keys() == wanted.keys()
    for key, tensor in weights.items():
        if key == "rope_freqs.weight":  # computed, in another order
            np.testing.assert_allclose(tensor.view(np.float32), wanted[key].view(np.float32), rtol=1e-6)
        else:
            assert np.array_equal(tensor, wanted[key]), key
    fields, known = read_gguf(ours)[0], read_gguf(theirs)[0]
    shared = [key for key in fields.keys() & known.keys() if not key.startswith("general.")]
    assert {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", f"{arch}.context_length"} <= set(shared)
    assert {key: fields[key] for key in shared} == {key: known[key] for key in shared}


@pytest.mark.parametrize(("tune", "layout"), [("none", "head"), ("full", "lean")])
def test_what_training_leaves_alone_or_changes_whole(tune: str, layout: str, chain: dict[str, Any]) -> None:
    """A head over a frozen base, and a value model of which every weight but the embeddings was trained."""
    root, base = chain["root"], chain["base"]
    checkpoint = tiny.tiny_checkpoint(root / tune, chain["folder"], tune=tune)
    path = export_value(checkpoint, root / f"{tune}.gguf", base, ExportConfig(layout, "f32"))
    row = prove(checkpoint, path, base, chain["data"], limit=2, per_trajectory=2)
    assert (row.kind, row.failures) == (layout, ()) and row.max_abs < 1e-3
    if layout == "lean":
        return
    # The head lies over the base, whose folder is not asked for.
    away = ValueCheckpoint.open(root / tune, root / "moved-away")
    again = export_value(away, root / "again.gguf", base, ExportConfig("head", "f32", name="hf-value"))
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(IncompatibleError, match=r"a head over a \w+ is written for its base"):
        export_value(checkpoint, root / "x.gguf", None, ExportConfig("head"))


def test_a_model_that_sees_is_trained_and_exported_as_the_language_model_in_it(kept: None, tmp_path: Path) -> None:
    folder, out = hybrids.seeing_hf(tmp_path / "hf"), tmp_path / "value"
    base = export_base(folder, tmp_path / "base.gguf", "f32", pre="qwen2")
    data = tiny.tiny_trajectories(tmp_path / "data.jsonl", folder, prompts=4, samples=2)
    words = ["train", str(folder), str(data), "--out", str(out), "--epochs", "1", "--held-out", "0.5", "--lr", "0.01"]
    result = CliRunner().invoke(main, [*words, "--placement", "adapter", "--lora-r", "4"])
    assert result.exit_code == 0, result.output
    checkpoint = ValueCheckpoint.open(out)
    path = export_value(checkpoint, tmp_path / "value.gguf", base, ExportConfig(dtype="f32"))
    assert {"blk.0.attn_qkv.weight.lora_a", "blk.0.ssm_out.weight.lora_b"} <= {t.name for t in read_gguf(path)[1]}
    row = prove(checkpoint, path, base, data, limit=2, per_trajectory=2)
    assert (row.kind, row.failures) == ("adapter", ()) and row.max_abs < 1e-3
    # What the converter leaves out, as the part that sees, is no place for a LoRA, and does not go in silence.
    weights = out / "lora_weights/adapter_model.safetensors"
    seen = "base_model.model.visual.blocks.0.attn.qkv.lora_"
    extra = {f"{seen}A.weight": torch.ones(4, 32), f"{seen}B.weight": torch.ones(96, 4)}
    save_file({**load_file(weights), **extra}, weights)
    for layout, message in (("lean", r"has no weight visual\.blocks\.0"), ("adapter", r"kept \d+ of \d+ pairs")):
        with pytest.raises(IncompatibleError, match=message):
            export_value(ValueCheckpoint.open(out), tmp_path / "x.gguf", base, ExportConfig(layout))


def test_a_coarser_adapter_is_written_as_such(kept: None, tmp_path: Path) -> None:
    folder = hybrids.hybrid_hf("granitehybrid", tmp_path / "hf")
    base = export_base(folder, tmp_path / "base.gguf", "f32", pre="qwen2")
    checkpoint = tiny.tiny_checkpoint(tmp_path / "value", folder)
    path = export_value(checkpoint, tmp_path / "value.gguf", base, ExportConfig("adapter", "f16"))
    assert {tensor.type for tensor in read_gguf(path)[1]} == {1}
    away = ValueCheckpoint.open(tmp_path / "value", tmp_path / "moved-away")
    with pytest.raises(IncompatibleError, match="converted with the configuration of its Hugging Face folder"):
        export_value(away, tmp_path / "x.gguf", base, ExportConfig("adapter"))
    with pytest.raises(ConfigError, match="a granitemoehybrid is converted whole; only llama, qwen2, qwen3 can be"):
        tiny.tiny_checkpoint(tmp_path / "short", folder, layers=1)


@pytest.mark.parametrize("kind", ["GPTNeoXConfig", "MambaConfig"])
def test_what_could_not_be_exported_is_not_trained(kind: str, tmp_path: Path) -> None:
    shape = {name: hybrids.SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    config = getattr(transformers, kind)(**shape, num_attention_heads=4, intermediate_size=96)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
    said = "hf has no embed_tokens.weight: expected a language model's checkpoint whose embeddings have that name"
    with pytest.raises(IncompatibleError, match=said):
        build(tmp_path / "hf", "lora", LoraSettings(targets=("all-linear",)))


GEMMA3_OTHERWISE = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 3,
    "sliding_window": 24,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    },
    "final_logit_softcapping": 20.0,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize("over", [{}, GEMMA3_OTHERWISE])
def test_a_gemma3_comes_back_from_its_gguf(over: dict[str, Any], kept: None, tmp_path: Path) -> None:
    """Its weights, its configuration and its tokenizer; and on to the same file again."""
    source = hybrids.hybrid_hf("gemma3", tmp_path / "hf", **over)
    original = tiny.retokenized(source, tmp_path / "original", "spm-model")
    first = export_base(original, tmp_path / "first.gguf", "f32")
    back = gguf_to_hf(first, tmp_path / "back")
    config, wanted = (transformers.AutoConfig.from_pretrained(path).to_dict() for path in (back, original))
    said_by_the_file = {"_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert {key for key in wanted if config[key] != wanted[key]} <= said_by_the_file
    weights, expected = (load_file(path / "model.safetensors") for path in (back, original))
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-7 if "norm" in name else 0)
    text = "<|im_start|>the old  king ran\n\tø"
    with Model(first, vocab_only=True) as model:
        read = model.tokenize(text, parse_special=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert tokenizer(text, add_special_tokens=False).input_ids == read
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *read]
    again = export_base(back, tmp_path / "again.gguf", "f32")
    fields, known = read_gguf(again)[0], read_gguf(first)[0]
    differing = {key for key in known.keys() | fields.keys() if fields.get(key) != known.get(key)}
    scores, implied = "tokenizer.ggml.scores", "tokenizer.ggml.add_sep_token"
    assert {key for key in differing if not key.startswith("general.")} <= {scores, implied}
    kinds = known["tokenizer.ggml.token_type"].value
    moved = [
        i for i, pair in enumerate(zip(fields[scores].value, known[scores].value, strict=True)) if len({*pair}) > 1
    ]
    assert {kinds[i] for i in moved} <= {CONTROL}
    stored, there = ({t.name: t.load() for t in stored_tensors(path)} for path in (again, first))
    assert all(np.allclose(stored[n].view(np.float32), t.view(np.float32), atol=3e-7) for n, t in there.items())


def test_one_process_says_what_it_does_not_take(tmp_path: Path) -> None:
    folder = hybrids.hybrid_hf("lfm2", tmp_path / "hf")
    jobs = [
        Job("model", str(folder), str(tmp_path / f"{i}.gguf"), "f32", pre=pre) for i, pre in enumerate((None, "qwen2"))
    ]
    with pytest.raises(IncompatibleError, match=r"does not take hf: BPE pre-tokenizer .*; name .* with --pre"):
        RUN(*jobs)
    assert read_gguf(tmp_path / "1.gguf")[0]["lfm2.block_count"].value == 2


def test_only_the_pinned_archive_is_unpacked_and_only_the_converter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = tmp_path / "x.tar.gz"
    names = ("convert_hf_to_gguf.py", "conversion/base.py", "conversion/../../out.py", "src/llama.cpp")
    with tarfile.open(archive, "w:gz") as made:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python/vendor/llama.cpp/{name}")
            member.size = 1
            made.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ModelFileError, match=r"x.tar.gz is another file than expected \(sha256"):
        llamacpp.unpack(archive, tmp_path / "taken")
    monkeypatch.setattr(llamacpp, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    llamacpp.unpack(archive, tmp_path / "taken")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert found == {"taken/convert_hf_to_gguf.py", "taken/conversion/base.py"}


def test_the_converter_is_that_of_the_pinned_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert f'"{llamacpp.REQUIREMENT}"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    monkeypatch.setenv("SIA_CONVERTER", str(tmp_path))
    result = CliRunner().invoke(main, ["fetch-converter"])
    assert result.exit_code == 2 and "which holds no convert_hf_to_gguf.py beside a folder conversion" in result.output
    (tmp_path / "conversion").mkdir()
    (tmp_path / "convert_hf_to_gguf.py").touch()
    result = CliRunner().invoke(main, ["fetch-converter"])
    assert (result.exit_code, result.output) == (0, f"{tmp_path}\n")


@pytest.mark.parametrize("layout", ["merged", "lean", "adapter"])
def test_values_are_those_of_peft_and_verify_agrees(layout: str, chain: dict[str, Any]) -> None:
    checkpoint, config = chain["lora"], ExportConfig(layout, "f32", pre="qwen2" if layout == "merged" else None)
    path = export_value(checkpoint, chain["root"] / f"{layout}.gguf", chain["base"], config)
    with load(chain["base"], path) as sia:
        prompt = sia.prompt("the old king")
        value: Any = sia.value
        read = list(value.tokens(prompt))
        values = value.trajectory(0, prompt, IDS)
    np.testing.assert_allclose(values, peft_values(checkpoint, [*read, *IDS])[len(read) :], atol=1e-3)
    row = prove(checkpoint, path, chain["base"], chain["data"], limit=2, per_trajectory=2)
    assert (row.kind, row.type, row.failures, row.same_prompt) == (layout, "F32", (), True)
    assert row.junctions == 4 and row.max_abs < 1e-3 and row.spread > 0.01
