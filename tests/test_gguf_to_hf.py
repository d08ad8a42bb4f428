"""A GGUF back as a Hugging Face folder: the very weights and token ids, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sia_local import SIA
from sia_local.errors import IncompatibleError, ModelFileError

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
import transformers
from references import BASES, IDS, LLAMA3
from sia_convert.formats.export import export_base
from sia_convert.formats.gguf_io import read_gguf, stored_tensors, text, write_gguf
from sia_convert.formats.gguf_to_hf import gguf_to_hf
from sia_convert.formats.quantize import quantize_gguf
from sia_convert.formats.vocab import Vocab


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([IDS])).logits


META = {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192}, "head_dim": 16}


@pytest.mark.parametrize(
    ("arch", "over"), [pair for name, pair in BASES.items() if name != "llama-llama3"] + [("llama", META)]
)
def test_the_folder_computes_what_the_original_did(
    arch: str, over: dict[str, Any], make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    original = make_hf(arch, **over)
    made = gguf_to_hf(export_base(original, tmp_path / "base.gguf", "f32"), tmp_path / "back")
    assert torch.equal(logits(made), logits(original))
    config, tokenizer = (kind.from_pretrained(made) for kind in (transformers.AutoConfig, transformers.AutoTokenizer))
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(config, name) for name in ids] == [getattr(tokenizer, name) for name in ids] == [None, 2, 0]
    # And on to the same GGUF, vocabulary and chat template included.
    again = export_base(made, tmp_path / "again.gguf", "f32")
    fields, first = read_gguf(again)[0], read_gguf(tmp_path / "base.gguf")[0]
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"):
        assert fields[key].value == first[key].value


@pytest.mark.parametrize("style", ["gpt-2", "smollm", "llama-bpe"])
def test_a_tokenizer_has_no_more_tokens_than_the_model(
    style: str, make_hf: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers gives one without `<|endoftext|>`, as Llama 3's, that as a further token."""
    base = export_base(tiny.retokenized(make_hf("llama"), tmp_path / "hf", style), tmp_path / "base.gguf", "f32")
    made = gguf_to_hf(base, tmp_path / "back")
    assert len(transformers.AutoTokenizer.from_pretrained(made)) == 400
    again = export_base(made, tmp_path / "again.gguf", "f32")
    assert Vocab.from_gguf(again).tokens == Vocab.from_gguf(base).tokens


def test_a_quantized_file_gives_the_weights_that_llama_cpp_has(make_hf: Callable[..., Path], tmp_path: Path) -> None:
    full = export_base(make_hf("llama"), tmp_path / "base-F32.gguf", "f32")
    quantize_gguf(full, tmp_path / "base.gguf", "Q8_0")
    made = gguf_to_hf(tmp_path / "base.gguf", tmp_path / "back")
    prompt = tuple(IDS[:40])
    with SIA.load(tmp_path / "base.gguf", n_ctx=64, n_threads=1) as sia:
        sia.engine.begin(0, prompt)
        row = sia.engine.logits([0])[0].copy()
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(made)(torch.tensor([prompt])).logits[0, -1].numpy()
    # llama.cpp rounds activations to 8 bits, too; a row in the wrong place would not correlate at all.
    assert np.corrcoef(row[: len(theirs)], theirs)[0, 1] > 0.999


def test_what_cannot_come_back_is_refused_and_leaves_nothing(
    make_hf: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = export_base(make_hf("llama", rope_parameters=LLAMA3), tmp_path / "llama3.gguf", "f32")
    with pytest.raises(IncompatibleError, match="factors that no Llama 3 has"):
        gguf_to_hf(scaled, tmp_path / "back")
    fields = {key: field for key, field in read_gguf(tiny_base)[0].items() if key != "general.architecture"}
    for kind in ("none", "longrope"):
        kept = {**fields, "qwen3.rope.scaling.type": text(kind)}
        write_gguf(tmp_path / f"{kind}.gguf", "qwen3", kept, stored_tensors(tiny_base))
    assert torch.isfinite(logits(gguf_to_hf(tmp_path / "none.gguf", tmp_path / "none"))).all()
    with pytest.raises(IncompatibleError, match="RoPE scaling 'longrope' is not taken back"):
        gguf_to_hf(tmp_path / "longrope.gguf", tmp_path / "back")
    with pytest.raises(ModelFileError, match="exists already"):
        gguf_to_hf(tiny_base, tmp_path)
    monkeypatch.setattr("sia_convert.formats.gguf_to_hf.PROBES", ("",))
    monkeypatch.setattr("sia_local.llama.model.Model.tokenize", lambda *_, **__: [1])
    with pytest.raises(IncompatibleError, match=r"splits a text otherwise than llama\.cpp, from token 0"):
        gguf_to_hf(tiny_base, tmp_path / "back")
    assert not (tmp_path / "back").exists() and not list(tmp_path.glob(".back*"))
