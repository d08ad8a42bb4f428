"""Models of every architecture that llama.cpp converts: bases, and value models in the four layouts.

llama.cpp's converter writes a model, an adapter or a vocabulary aside; what makes a value model of it is added here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import IncompatibleError
from sia_local.files import scratch
from sia_local.llama.ggml import dequantize
from sia_local.llama.gguf import GgufMetadata

from . import llamacpp
from .gguf_io import KV, Tensor, f32, read_gguf, stored_tensors, text, u32, write_gguf
from .hf import Backbone
from .llamacpp import Job
from .tensors import TensorFolder
from .vocab import Vocab

_KINDS = {"merged": "model", "lean": "lean", "adapter": "adapter"}


def write_base(folder: Path, out: Path, dtype: str, pre: str | None, name: str) -> None:
    """A whole model, as llama.cpp's converter writes it."""
    llamacpp.run(Job("model", str(folder), str(out), dtype, name, pre))


@contextmanager
def converted(backbone: Backbone, layout: str, dtype: str, pre: str | None, temporary: Path) -> Iterator[Converted]:
    """What llama.cpp's converter makes of a backbone and its changes for a layout; gone when the block ends.

    temporary: the file that is being written.
    """
    folder, kind = str(backbone.folder), _KINDS.get(layout)
    has_tokenizer = any((backbone.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    with scratch(temporary) as root:
        jobs = []
        if kind is not None:
            lora = _plain_lora(backbone, root / "lora") if backbone.lora else None
            tuned = None if backbone.tuned is None else _tuned(backbone.tuned, backbone.tensors, root)
            jobs.append(Job(kind, folder, str(root / "made.gguf"), dtype, "model", pre, lora, tuned))
        if layout != "merged" and has_tokenizer:
            # Only its tokens are looked at, so the pre-tokenizer may be any.
            jobs.append(Job("vocab", folder, str(root / "vocab.gguf"), pre=pre or "default"))
        llamacpp.run(*jobs)
        made = root / "made.gguf" if kind else None
        tokens = made if layout == "merged" else root / "vocab.gguf" if has_tokenizer else None
        yield Converted(made, Vocab.from_gguf(tokens) if tokens else None)


class Converted:
    """A GGUF that llama.cpp's converter wrote, None for a head, which holds no weight of the model; and its tokens."""

    def __init__(self, path: Path | None, vocab: Vocab | None):
        self.path, self.vocab = path, vocab

    @property
    def source(self) -> Path:
        assert self.path is not None
        return self.path

    def fields(self) -> dict[str, KV]:
        """Its metadata but for what names it."""
        read = read_gguf(self.source)[0]
        return {key: field for key, field in read.items() if not key.startswith("general.")}

    @property
    def arch(self) -> str:
        return str(read_gguf(self.source)[0]["general.architecture"].value)

    def write_merged(self, path: Path, fields: dict[str, KV]) -> None:
        write_gguf(path, self.arch, {**self.fields(), **fields}, stored_tensors(self.source))

    def write_adapter(self, path: Path, fields: dict[str, KV], pairs: int) -> None:
        """The LoRA alone. IncompatibleError where fewer than its `pairs` of matrices were converted."""
        tensors = stored_tensors(self.source)
        if len(tensors) < 2 * pairs:
            raise IncompatibleError(
                f"llama.cpp's converter kept {len(tensors) // 2} of {pairs} pairs of LoRA matrices: train without "
                f"those that its {self.arch} has no place for"
            )
        write_gguf(path, self.arch, {**self.fields(), **fields}, tensors)

    def write_lean(self, path: Path, fields: dict[str, KV], head: np.ndarray) -> None:
        """The same model with the value as its only logit; its embedding rows are left out. head float32 [n_embd]."""
        arch, own = self.arch, self.fields()
        if float(own.get(f"{arch}.final_logit_softcapping", f32(0.0)).value) > 0:
            raise IncompatibleError(f"a {arch} caps its logits, so the lean layout cannot hold a value: use merged")
        if f"{arch}.logit_scale" in own:
            own[f"{arch}.logit_scale"] = f32(1.0)
        own |= {f"{arch}.vocab_size": u32(1), "tokenizer.ggml.model": text("no_vocab")}
        tensors = {tensor.name: tensor for tensor in stored_tensors(self.source)}
        if "output.bias" in tensors:
            raise IncompatibleError(f"a {arch} has a bias in its output layer: use the merged layout")
        n_embd = len(head)
        tensors["token_embd.weight"] = Tensor(
            "token_embd.weight", (1, n_embd), lambda: np.zeros((1, n_embd), np.float32)
        )
        tensors["output.weight"] = Tensor("output.weight", (1, n_embd), lambda: head.reshape(1, -1))
        write_gguf(path, arch, {**own, **fields}, tensors.values())

    def embedding_rows(self) -> np.ndarray:
        """float32 [rows, n_embd]."""
        with GgufMetadata(self.source) as meta:
            kind, offset, size = meta.tensor_span("token_embd.weight")
            n_embd, n_rows = meta.tensors()["token_embd.weight"]
        rows = np.fromfile(self.source, np.uint8, size, offset=offset).reshape(n_rows, -1)
        return dequantize(rows, kind, n_embd)


def _tuned(tuned: TensorFolder, checkpoint: TensorFolder, folder: Path) -> str:
    """A file of the tuned weights by the checkpoint's names, where transformers has the experts of a block in one."""
    from safetensors.numpy import save_file

    if all(name in checkpoint for name in tuned):
        return str(tuned.folder / "tuned.safetensors")
    weights: dict[str, np.ndarray] = {}
    for name in tuned:
        experts, _, part = name.rpartition(".")
        if name in checkpoint or f"{experts}.0.down_proj.weight" not in checkpoint:
            weights[name] = tuned.get(name)
            continue
        halves = np.split(tuned.get(name), 2, axis=1) if part == "gate_up_proj" else [tuned.get(name)]
        for half, rows in zip(("gate_proj", "up_proj") if len(halves) > 1 else (part,), halves, strict=True):
            weights |= {f"{experts}.{i}.{half}.weight": np.ascontiguousarray(own) for i, own in enumerate(rows)}
    save_file(weights, folder / "tuned.safetensors")
    return str(folder / "tuned.safetensors")


def _plain_lora(backbone: Backbone, folder: Path) -> str:
    """The LoRA as a PEFT folder with one alpha, under the names of the checkpoint, which is all the converter reads."""
    from safetensors.numpy import save_file

    lora = backbone.lora
    assert lora is not None
    halves: dict[str, np.ndarray] = {}
    for module in sorted(lora.pairs):
        a, b = lora.for_one_alpha(module)
        name = backbone.tensors.index[f"{module}.weight"][1].removesuffix(".weight")
        halves[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        halves[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
    folder.mkdir()
    save_file(halves, folder / "adapter_model.safetensors")
    config: dict[str, Any] = {"peft_type": "LORA", "lora_alpha": lora.scale * lora.rank, "r": lora.rank}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)
