"""llama.cpp's own converter, of the pinned release: out of llama-cpp-python's source archive, run in its own process.

`arch` converts llama, qwen2 and qwen3 without it. It knows a hundred other architectures and changes with every
release, so it is fetched, never copied.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sia_local.cli.fetch import download
from sia_local.errors import ConfigError, IncompatibleError, ModelFileError
from sia_local.files import cache_root, put

RELEASE = "0.3.36"
REQUIREMENT = f"llama-cpp-python=={RELEASE}"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SCRIPT, ADAPTER_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_TAKEN = (SCRIPT, ADAPTER_SCRIPT, "conversion/", "gguf-py/gguf/", "LICENSE")
_AGAIN = "sia-convert fetch-converter"


@dataclass(frozen=True)
class Job:
    """One run of the converter. folder: the Hugging Face checkpoint. out: the GGUF file to write.

    kind: model; lean, a model without a vocabulary; vocab, the vocabulary alone; adapter, the LoRA alone.
    lora: a PEFT folder, merged into a model; tuned: safetensors of whole weights in the place of the checkpoint's.
    """

    kind: str
    folder: str
    out: str
    dtype: str = "f16"
    name: str = "model"
    pre: str | None = None
    lora: str | None = None
    tuned: str | None = None


def place() -> Path:
    """Where the converter lies or will lie: $SIA_CONVERTER, a llama.cpp of one's own, or the user's cache."""
    if named := os.environ.get("SIA_CONVERTER"):
        if not (Path(named) / SCRIPT).is_file() or not (Path(named) / "conversion").is_dir():
            raise ConfigError(
                f"SIA_CONVERTER names {named}, which holds no {SCRIPT} beside a folder conversion; name the source of "
                "llama.cpp, or unset it"
            )
        return Path(named)
    return cache_root() / f"llama.cpp-{RELEASE}"


def converter() -> Path:
    """The folder of the converter, fetched where it is not there. ModelFileError with a sentence where that fails."""
    root = place()
    if (root / SCRIPT).is_file():
        return root
    click.echo(f"llama.cpp's converter comes with the source of {REQUIREMENT}: 77 MB, once", err=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        download(REQUIREMENT, Path(temporary), "llama.cpp's converter", _AGAIN, source=True)
        archives = list(Path(temporary).glob("*.tar.gz"))
        if len(archives) != 1:
            raise ModelFileError(f"pip left {len(archives)} archives of {REQUIREMENT}, expected one; run `{_AGAIN}`")
        unpack(archives[0], Path(temporary) / "taken")
        try:
            put(Path(temporary) / "taken", root)
        except OSError:
            if not (root / SCRIPT).is_file():  # else another process was faster
                raise
    return root


def unpack(archive: Path, target: Path) -> None:
    """The converter out of the source archive. ModelFileError for another archive than the pinned one."""
    digest = hashlib.sha256()
    with archive.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != SHA256:
        raise ModelFileError(
            f"{archive.name} is another file than expected (sha256 {digest.hexdigest()[:12]}…, expected "
            f"{SHA256[:12]}…); nothing of it was kept, run `{_AGAIN}` again"
        )
    with tarfile.open(archive) as source:
        for member in source:
            inside = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and inside.startswith(_TAKEN) and ".." not in inside:
                file = source.extractfile(member)
                assert file is not None
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                (target / inside).write_bytes(file.read())


def run(*jobs: Job) -> None:
    """Runs the jobs, one after another. IncompatibleError with the converter's reason for what it cannot convert."""
    words = [sys.executable, str(Path(__file__).with_name("llamacpp_worker.py")), str(converter())]
    done = subprocess.run(
        words, input="".join(map(line, jobs)), capture_output=True, text=True, errors="replace", check=False
    )
    answers = done.stdout.splitlines()
    if len(answers) != len(jobs):
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise ModelFileError(f"llama.cpp's converter could not run: {last[0]}")
    for job, answer in zip(jobs, answers, strict=True):
        check(job, json.loads(answer))


def line(job: Job) -> str:
    """A job as the worker reads it."""
    return json.dumps(dataclasses.asdict(job)) + "\n"


def check(job: Job, why: str | None) -> None:
    """IncompatibleError for the reason that the converter gave, if it gave one."""
    if why is not None:
        hint = "; name llama.cpp's pre-tokenizer with --pre" if "pre-tokenizer" in why else ""
        if why.startswith("No module named"):
            hint = f"; pip install {why.split()[-1]}"
        raise IncompatibleError(f"llama.cpp's converter does not take {Path(job.folder).name}: {why}{hint}")


def check_known(config: dict[str, Any], folder: str) -> None:
    """IncompatibleError for a configuration whose architecture the converter does not list."""
    kinds = [
        str(name).replace("ForSequenceClassification", "ForCausalLM") for name in config.get("architectures") or ()
    ]
    tree = ast.parse((converter() / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "TEXT_MODEL_MAP" and node.value:
            if not kinds or kinds[0] not in ast.literal_eval(node.value):
                named = kinds[0] if kinds else config.get("model_type", "?")
                raise IncompatibleError(
                    f"{folder} is a {named}, which llama.cpp {RELEASE} does not convert; use a model it runs"
                )
            return
