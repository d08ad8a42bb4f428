"""What each of two processes runs for test_sharded: accelerate's sharding on the CPU, interrupted and continued.

accelerate offers FSDP and DeepSpeed on accelerators alone; PyTorch and DeepSpeed themselves work on the CPU, so what it
takes for one here is a processor.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from sia_convert.train.config import LoraSettings, Place, TrainConfig
from sia_convert.train.loop import Trainer
from sia_convert.train.run_folder import RunFolder


class Interrupted(Exception):
    pass


def on_the_cpu() -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    initialise = Accelerator.__init__

    def init(self: Accelerator, *given: Any, cpu: bool, **named: Any) -> None:
        initialise(self, *given, **named)

    def backend(self: PartialState, *given: Any, **named: Any) -> tuple[str, DistributedType]:
        sharded = "true" in (os.environ.get(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
        return "gloo", DistributedType.MULTI_GPU if sharded else DistributedType.MULTI_CPU

    Accelerator.__init__, PartialState._prepare_backend = init, backend
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        # It would be compiled, for minutes, and only makes sums within a machine faster.
        vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None


def main(job: str) -> None:
    on_the_cpu()
    with open(job) as handle:
        runs = json.load(handle)
    save = RunFolder.save_state

    def save_then_stop(self: RunFolder, place: Place) -> None:
        save(self, place)
        raise Interrupted

    for environment, settings in runs:
        os.environ |= environment
        lora = settings["lora"] | {"targets": tuple(settings["lora"]["targets"])}
        config = TrainConfig(**settings | {"data": tuple(settings["data"]), "lora": LoraSettings(**lora)})
        for method, ends in ((save_then_stop, [Interrupted]), (save, [])):
            RunFolder.save_state = method  # type: ignore[method-assign]
            with contextlib.suppress(*ends):
                trainer = Trainer(config)
                trainer.run(True)
        if trainer.accelerator.is_main_process:
            kind, module = trainer.accelerator.distributed_type.value, trainer.shared.body.module
            print(f"as {kind} {type(module).__name__}", flush=True)
        AcceleratorState._reset_state(True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
