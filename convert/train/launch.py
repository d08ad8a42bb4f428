"""Training in several processes: one job file, one `accelerate launch`."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from sia_local.errors import ConfigError, SiaError
from sia_local.files import atomic_write

from ..formats.tensors import read_json
from .config import LoraSettings, TrainConfig


def launch(
    config: TrainConfig,
    job: Path,
    processes: int | None = None,
    accelerate: Path | None = None,
    restart: bool = False,
    threads: int | None = None,
    anew: bool = False,
) -> None:
    """Trains `config` in several processes.

    They are started by `accelerate launch` as a configuration file says: the one at `accelerate`, else the one that
    `accelerate config` has left on this machine. It may name several machines, each of which is given the same command.
    Where there is neither, `processes` of this machine. job: a file for what they read. threads: CPU threads of each
    process; without, they have one, or as many as OMP_NUM_THREADS says. restart, anew: as train() has them, the first
    as its `resume`. Raises ConfigError for a file that is not there, SiaError when training fails, and when other than
    `processes` were started.
    """
    if accelerate is not None and not accelerate.is_file():
        raise ConfigError(f"no file at {accelerate}: expected what `accelerate config` writes")
    with atomic_write(job) as handle:
        json.dump({"config": dataclasses.asdict(config), "processes": processes}, handle, indent=1)
    words = [sys.executable, *_starter(processes, accelerate)]
    words += [f"{__package__}.launch", str(job), *(["--restart"] if restart else []), *(["--anew"] if anew else [])]
    more = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    done = subprocess.run(words, check=False, env={**os.environ, **more})
    if done.returncode:
        raise SiaError(
            f"training in several processes ended with code {done.returncode}: its message is above; the same command "
            "continues from the last saved state"
        )


def _starter(processes: int | None, accelerate: Path | None) -> list[str]:
    """The program that starts the processes, up to the name of the module that they run."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    words = ["-m", "accelerate.commands.launch"]
    several = ["--num_processes", str(processes)] if processes is not None else []
    if accelerate is not None:
        return [*words, "--config_file", str(accelerate), *several, "--module"]
    if os.path.isfile(default_config_file):
        return [*words, *several, "--module"]
    if not torch.cuda.is_available():
        # `accelerate launch --cpu` starts one process, however many are asked for.
        return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes or 1), "-m"]
    where = ["--multi_gpu"] if torch.cuda.device_count() > 1 else []
    unsaid = ["--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no"]  # it would warn
    return [*words, *where, *several, *unsaid, "--module"]


def main(job: str, *flags: str) -> int:
    """What every process runs; returns the exit code."""
    from .loop import train

    told = read_json(job)
    settings, wanted = told["config"], told["processes"]
    settings["lora"]["targets"] = tuple(settings["lora"]["targets"])
    settings |= {"lora": LoraSettings(**settings["lora"]), "data": tuple(settings["data"])}
    try:
        if wanted is not None and wanted != (found := int(os.environ.get("WORLD_SIZE", "1"))):
            raise SiaError(f"{wanted} processes were asked for, {found} started: see the configuration of accelerate")
        train(TrainConfig(**settings), "--restart" not in flags, "--anew" in flags)
    except SiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
