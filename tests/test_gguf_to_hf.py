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

import torch
import transformers
from sia_convert.formats.export import export_base
from sia_convert.formats.gguf_io import read_gguf
from sia_convert.formats.gguf_to_hf import gguf_to_hf
from sia_convert.formats.quantize import quantize_gguf
from test_export import BASES, IDS, LLAMA3


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
    # And on to the same GGUF, vocabulary and chat template included.
    again = export_base(made, tmp_path / "again.gguf", "f32")
    fields, first = read_gguf(again)[0], read_gguf(tmp_path / "base.gguf")[0]
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"):
        assert fields[key].value == first[key].value


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
    with pytest.raises(ModelFileError, match="exists already"):
        gguf_to_hf(tiny_base, tmp_path)
    monkeypatch.setattr("sia_convert.formats.gguf_to_hf.PROBES", ("",))
    monkeypatch.setattr("sia_local.llama.model.Model.tokenize", lambda *_, **__: [1])
    with pytest.raises(IncompatibleError, match=r"splits a text otherwise than llama\.cpp, from token 0"):
        gguf_to_hf(tiny_base, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["llama3.gguf"]
