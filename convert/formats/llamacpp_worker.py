"""Run by `llamacpp`, with llama.cpp's converter and its own gguf package on the path.

A job is a line of JSON that comes in; the line that goes out is null, or why it failed. It imports nothing of this
program, so that the two gguf packages never meet.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Load = Callable[[], torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]
# What transformers 5 calls a layer in the configurations it saves, and what the converter reads.
LAYER_TYPES = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}


def canonical(name: str) -> str:
    """A tensor's name without the prefixes of its wrappers."""
    return re.sub(r"^(model\.|language_model\.)+", "", name)


def changes(job: dict[str, Any]) -> dict[str, Change]:
    """What training did to a weight, by canonical name: a LoRA is added in float32, a tuned weight replaces it."""
    from conversion import LazyTorchTensor
    from safetensors.torch import load_file

    lazy = LazyTorchTensor.from_eager

    def added(a: torch.Tensor, b: torch.Tensor) -> Change:
        return lambda weight: weight.to(torch.float32) + lazy(b) @ lazy(a)

    def replaced(weight: torch.Tensor) -> Change:
        return lambda _: lazy(weight)

    found = {}
    if job["lora"]:
        for module, (a, b) in pairs(Path(job["lora"])).items():
            found[f"{canonical(module)}.weight"] = added(a, b)
    if job["tuned"]:
        for name, weight in load_file(job["tuned"]).items():
            found[canonical(name)] = replaced(weight)
    return found


def changed(load: Load, change: Change) -> Load:
    return lambda: change(load())


def pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A [r, in] and scaled B [out, r] of a plain PEFT folder, by module."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    halves = load_file(folder / "adapter_model.safetensors")
    out = {}
    for name, a in halves.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b = halves[f"{module}.lora_B.weight"]
            out[module.removeprefix("base_model.model.")] = (a, b * (config["lora_alpha"] / len(a)))
    return out


def prepared(model: Any, job: dict[str, Any]) -> Any:
    """The converter's class for a model, which reads the weights that training changed and writes what is asked for."""
    from conversion.base import ModelBase

    wanted = changes(job) if job["kind"] in ("model", "lean") else {}

    class Prepared(model):
        model_arch = model.model_arch
        no_mtp = True  # nothing here drafts tokens

        def __init__(self, folder: Path, *args: Any, **options: Any):
            options["hparams"] = options.get("hparams") or ModelBase.load_hparams(folder, False)
            super().__init__(folder, *args, **options)

        @classmethod
        def filter_tensors(cls, item: tuple[str, Load]) -> tuple[str, Load] | None:
            name, load = item  # by the checkpoint's name, which the converter may change here
            change = wanted.get(canonical(name))
            kept: tuple[str, Load] | None = super().filter_tensors((name, changed(load, change) if change else load))
            if kept is not None:
                wanted.pop(canonical(name), None)
            return kept

        def index_tensors(self, *args: Any, **options: Any) -> dict[str, Load]:
            found: dict[str, Load] = super().index_tensors(*args, **options)
            if wanted:
                raise ValueError(f"the checkpoint has no weight {min(wanted)}, which training changed")
            return found

        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            if self.hparams["model_type"] == "qwen3_moe" and not self.hparams.get("norm_topk_prob"):
                raise ValueError(
                    "llama.cpp weighs its experts as norm_topk_prob = true says, this one is trained without"
                )
            kinds = self.hparams.get("layer_types")
            if kinds and self.gguf_writer.arch == "gemma3" and job["kind"] != "adapter":
                self.gguf_writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])

        def set_vocab(self) -> None:
            if job["kind"] == "lean":
                self.gguf_writer.add_tokenizer_model("no_vocab")
            elif job["kind"] != "adapter":
                super().set_vocab()

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            return str(job["pre"] or super().get_vocab_base_pre(tokenizer))

    return Prepared


def run(root: Path, job: dict[str, Any]) -> None:
    import conversion
    from conversion.base import ModelBase

    class_of, hparams_of = conversion.get_model_class, ModelBase.load_hparams

    def hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        # transformers rewrites some keys as it reads them: what the checkpoint says itself comes first.
        read: dict[str, Any] = hparams_of(folder, is_mistral_format)
        read |= json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if names := LAYER_TYPES.get(read["model_type"]):
            read["layer_types"] = [names.get(kind, kind) for kind in read["layer_types"]]
        return read

    script, words = "convert_hf_to_gguf.py", [job["folder"], "--model-name", job["name"]]
    if job["kind"] == "adapter":
        script, words = "convert_lora_to_gguf.py", [job["lora"], "--base", job["folder"]]
    elif job["kind"] == "vocab":
        words.append("--vocab-only")
    sys.argv = [script, *words, "--outfile", job["out"], "--outtype", job["dtype"]]
    try:
        conversion.get_model_class = lambda name, mmproj=False: prepared(class_of(name, mmproj), job)
        ModelBase.load_hparams = staticmethod(hparams)
        runpy.run_path(str(root / script), run_name="__main__")
    finally:
        conversion.get_model_class, ModelBase.load_hparams = class_of, staticmethod(hparams_of)


def main() -> None:
    root = Path(sys.argv[1])
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not answer
    log = io.StringIO()
    logging.basicConfig(level=logging.ERROR, stream=log)
    for line in sys.stdin:
        why = None
        log.seek(log.truncate(0))
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                run(root, json.loads(line))
        except (Exception, SystemExit) as error:
            last = log.getvalue().strip().splitlines()[-1:]
            said = str(error) if not isinstance(error, SystemExit) else ""
            why = said or "".join(last).rpartition(":")[2].strip() or repr(error)
        answers.write(json.dumps(why) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
