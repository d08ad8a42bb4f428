"""Training in several processes: one job file, one `accelerate launch`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from sia_local.errors import SiaError
from sia_local.files import atomic_write

from ..formats.tensors import read_json
from .config import LoraSettings, TrainConfig


def launch(config: TrainConfig, processes: int, job: Path, restart: bool = False) -> None:
    """Trains `config` in `processes` processes of this machine. SiaError when it fails."""
    import torch

    with atomic_write(job) as handle:
        json.dump(dataclasses.asdict(config), handle, indent=1)
    where = ["--multi_gpu"] if torch.cuda.device_count() > 1 else [] if torch.cuda.is_available() else ["--cpu"]
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), *where]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += ["--module", f"{__package__}.launch", str(job), *(["--restart"] if restart else [])]
    done = subprocess.run(words, check=False)
    if done.returncode:
        raise SiaError(
            f"training in {processes} processes ended with code {done.returncode}: its message is above; the same "
            "command continues from the last saved state"
        )


def main(job: str, *flags: str) -> int:
    """What every process runs; returns the exit code."""
    from .loop import train

    settings = read_json(job)
    settings["lora"]["targets"] = tuple(settings["lora"]["targets"])
    settings |= {"lora": LoraSettings(**settings["lora"]), "data": tuple(settings["data"])}
    try:
        train(TrainConfig(**settings), resume="--restart" not in flags)
    except SiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
