"""A GGUF model as a Hugging Face folder, for whoever has no other copy of the backbone that is to be trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sia_local.errors import IncompatibleError, ModelFileError
from sia_local.files import put, scratch

from . import hf
from .arch import Hparams, Rope, hf_name, restore_rows
from .gemma3 import Gemma3Form
from .gguf_io import KV, files_of, read_gguf
from .pieces import is_sentencepiece, write_pieces
from .tensors import read_json

ROPE_FACTORS = "rope_freqs.weight"
IDS = {name: f"tokenizer.ggml.{key}_token_id" for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Where tokenizers differ: contractions, digits, runs of spaces and lines, letters beyond ASCII, punctuation.
PROBES = (
    "Once upon a time, there was a little dog. It's 3 o'clock; they'll be back at 12:45!\n\nThe end.",
    "  two  spaces\tand a tab,\r\na line\n\n\n   and IT'S LATE (really?) … “quoted”",
    "def f(x_1): return x_1**2 + 1234567.89  # äöü ß naïve 你好 Привет 🙂",
)


def gguf_to_hf(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Writes the model in `path` (llama, qwen2, qwen3 or gemma3, of any quantization) to `folder`, in float32, and its
    tokenizer.

    What quantization took is not given back. The folder appears whole or not at all. Raises ModelFileError for a file
    that cannot be read or a folder that exists, IncompatibleError for what transformers would compute otherwise than
    llama.cpp: another architecture, unknown tensors, a tokenizer that it does not rebuild alike.
    """
    source, target = Path(path), Path(folder)
    fields, tensors = read_gguf(source)
    # Said even where there is none: transformers' own defaults are the ids of Llama 2.
    ids = {f"{ours}_token_id": fields[key].value if key in fields else None for ours, key in IDS.items()}
    form = _form(source, fields)
    for tensor in tensors:
        if form.name(tensor.name) is None:
            raise IncompatibleError(
                f"{source.name} holds {tensor.name}, which has no place in a Hugging Face {form.arch} checkpoint; "
                "train from the original folder instead"
            )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelFileError(f"{target} exists already; name a new folder, or remove it")
    with scratch(target) as room:
        made = room / "new"
        made.mkdir()
        load_tokenizer(source).save_pretrained(made)
        _keep_tokens(made / "tokenizer.json", len(fields["tokenizer.ggml.tokens"].value))
        if is_sentencepiece(fields):
            write_pieces(fields, made)
        _write_weights(source, form, made, ids)
        check_tokenizer(source, made)
        if target.exists():
            target.rmdir()
        put(made, target)
    return target


def _keep_tokens(path: Path, count: int) -> None:
    """Takes out what transformers adds beyond the model's `count` tokens: an `<|endoftext|>` where there is none."""
    spec = read_json(path)
    spec["added_tokens"] = [token for token in spec.get("added_tokens", ()) if token["id"] < count]
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


class Form(Protocol):
    """What a GGUF of one architecture is in a Hugging Face folder."""

    @property
    def arch(self) -> str: ...

    def name(self, gguf: str) -> str | None:
        """The checkpoint's name of a tensor; None for one that has no place there."""

    def restore(self, gguf: str, rows: np.ndarray) -> np.ndarray:
        """A float32 tensor as the checkpoint has it."""

    def checkpoint(self, weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """config.json, and the weights it goes with, from those of the file, named and restored."""


@dataclass(frozen=True)
class NativeForm:
    """llama, qwen2 and qwen3."""

    hparams: Hparams
    source: Path

    @property
    def arch(self) -> str:
        return self.hparams.arch

    def name(self, gguf: str) -> str | None:
        return ROPE_FACTORS if gguf == ROPE_FACTORS else hf_name(gguf)

    def restore(self, gguf: str, rows: np.ndarray) -> np.ndarray:
        return restore_rows(self.hparams, gguf, rows)

    def checkpoint(self, weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        found, hparams = dict(weights), self.hparams
        factors = found.pop(ROPE_FACTORS, None)
        if factors is not None:
            hparams = _with_llama3_rope(self.source, hparams, factors)
        biased = "model.layers.0.self_attn.q_proj.bias" in found
        if biased and hparams.arch != "qwen2":  # transformers wants them on all four, llama.cpp takes what there is
            for i in range(hparams.n_layer):
                found.setdefault(f"model.layers.{i}.self_attn.o_proj.bias", np.zeros(hparams.n_embd, np.float32))
        config = hparams.hf_config(tied="lm_head.weight" not in found, attention_bias=biased)
        return {**config, "vocab_size": len(found["model.embed_tokens.weight"])}, found


def _form(source: Path, fields: Mapping[str, KV]) -> Form:
    if fields["general.architecture"].value == "gemma3":
        return Gemma3Form.from_gguf(fields)
    return NativeForm(Hparams.from_gguf(fields), source)


def _write_weights(source: Path, form: Form, made: Path, ids: Mapping[str, int | None]) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    weights = {}
    for tensor in [tensor for file in files_of(source) for tensor in GGUFReader(file).tensors]:
        rows = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        weights[str(form.name(tensor.name))] = form.restore(tensor.name, rows)
    config, weights = form.checkpoint(weights)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    (made / "config.json").write_text(json.dumps({**config, **ids}, indent=1), encoding="utf-8")


def _with_llama3_rope(source: Path, hparams: Hparams, factors: np.ndarray) -> Hparams:
    """llama3 scaling as Meta's models have it, if that is what made the factors; their settings are not in a GGUF."""
    settings = {"factor": float(factors.max()), **LLAMA3_ROPE}
    made = replace(hparams, rope=Rope(hparams.rope.theta, "llama3", settings))
    expected = made.rope_factors()
    if expected is None or expected.shape != factors.shape or not np.allclose(expected, factors, rtol=1e-5):
        raise IncompatibleError(
            f"{source.name} scales its rotary embedding by factors that no Llama 3 has; train from the original folder "
            "instead"
        )
    return made


def load_tokenizer(source: Path) -> Any:
    """The tokenizer of a GGUF, rebuilt by transformers. IncompatibleError where it cannot."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:
        raise IncompatibleError(
            f"{source.name}: transformers cannot rebuild its tokenizer ({error}); train from the Hugging Face folder "
            "of this model instead"
        ) from error


def check_tokenizer(base: Path, folder: Path) -> None:
    """IncompatibleError if the tokenizer in `folder` splits the probes otherwise than llama.cpp does with `base`."""
    from sia_local.llama.model import Model

    tokenizer = hf.load_tokenizer(folder)
    with Model(base, vocab_only=True) as model:
        for text in PROBES:
            try:
                ours = tokenizer(text, add_special_tokens=False).input_ids
            except Exception as error:  # of the tokenizers library, which has no class of its own
                raise IncompatibleError(
                    f"{base.name}: transformers' rebuilt tokenizer cannot read {text[:24]!r}… ({error}); train from "
                    "the Hugging Face folder of this model instead"
                ) from error
            theirs = model.tokenize(text)
            if ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
                raise IncompatibleError(
                    f"{base.name}: transformers' rebuilt tokenizer splits a text otherwise than llama.cpp, from token "
                    f"{at} of {text[:24]!r}… on; train from the Hugging Face folder of this model instead"
                )
