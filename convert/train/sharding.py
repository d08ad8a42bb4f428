"""What is trained of a wrapped backbone, and its moments: taken out of the processes that share them, and put back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from sia_local.errors import ConfigError


class Body(Protocol):
    """A backbone as it is trained: its steps, and what is saved of it.

    Every process calls each of these, for it may hold a piece.
    """

    module: Any

    def set_rate(self, rate: float) -> None:
        """Learning rate of the step that comes; before its first backward pass."""

    def gradients(self) -> tuple[list[Tensor], float]:
        """What is to be clipped before `step`, and its norm over all pieces."""

    def step(self) -> None:
        """A step of the optimiser, after which gradients begin anew."""

    def weights(self) -> dict[str, Tensor]:
        """The trained weights whole, on the CPU, by their names in the unwrapped backbone; of the first process."""

    def save(self, folder: Path, at: int) -> dict[str, Any]:
        """What `load` needs beside what it left in `folder`; at: optimiser steps so far. Of the first process."""

    def tidy(self, folder: Path, at: int) -> None:
        """Once the state is written that names what was saved `at` this step, nothing older is wanted."""

    def load(self, state: dict[str, Any] | None, folder: Path) -> None:
        """state: what `save` gave, of the first process alone."""


class Frozen:
    """Nothing is trained, and nothing saved."""

    def __init__(self, module: nn.Module):
        self.module = module

    def set_rate(self, rate: float) -> None:
        pass

    def gradients(self) -> tuple[list[Tensor], float]:
        return [], 0.0

    def step(self) -> None:
        pass

    def weights(self) -> dict[str, Tensor]:
        return {}

    def save(self, folder: Path, at: int) -> dict[str, Any]:
        return {}

    def tidy(self, folder: Path, at: int) -> None:
        pass

    def load(self, state: dict[str, Any] | None, folder: Path) -> None:
        pass


class Whole(Frozen):
    """Saved whole in one place, whatever sharded it: plain modules, DistributedDataParallel, FSDP 1 and 2."""

    def __init__(self, accelerator: Any, module: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__(module)
        self.optimizer = optimizer
        self.several = accelerator.num_processes > 1
        # On the CPU itself, FSDP 1 would clone what it has freed already.
        self.offload = accelerator.device.type != "cpu"

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def gradients(self) -> tuple[list[Tensor], float]:
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        # Pieces of FSDP 1 look like whole tensors.
        flat = isinstance(self.module, FullyShardedDataParallel)
        norm = float(self.module.clip_grad_norm_(math.inf)) if flat else norm_of(trained)
        return [p.grad for p in trained if p.grad is not None], norm

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _options(self, loading: bool = False) -> Any:
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        return StateDictOptions(
            full_state_dict=True,
            cpu_offload=self.offload and not loading,
            ignore_frozen_params=True,
            strict=False,
            broadcast_from_rank0=loading and self.several,
        )

    def weights(self) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return dict(get_model_state_dict(self.module, options=self._options()))

    def save(self, folder: Path, at: int) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        moments = get_optimizer_state_dict(self.module, self.optimizer, options=self._options())
        return {"weights": self.weights(), "moments": moments}

    def load(self, state: dict[str, Any] | None, folder: Path) -> None:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        state, options = state or {"weights": {}, "moments": {}}, self._options(loading=True)
        set_model_state_dict(self.module, state["weights"], options=options)
        set_optimizer_state_dict(self.module, self.optimizer, state["moments"], options=options)


class Engine(Frozen):
    """DeepSpeed's engine, which clips and steps at the end of the last backward pass.

    It keeps a checkpoint of its own, a piece a process, in `deepspeed/` beside the state.
    """

    def __init__(self, accelerator: Any, module: Any):
        super().__init__(module)
        self.accelerator = accelerator

    def set_rate(self, rate: float) -> None:
        for group in self.module.optimizer.param_groups:
            group["lr"] = rate

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        named = [(name, p) for name, p in self.module.module.named_parameters() if p.requires_grad]
        found = [(name, p, safe_get_full_fp32_param(p)) for name, p in named]
        return {name: (p if whole is None else whole).detach().cpu() for name, p, whole in found}

    def save(self, folder: Path, at: int) -> dict[str, Any]:
        # Under a name of its own, so that the one that the last state speaks of stays until this one is whole.
        pieces, tag = folder / "deepspeed", f"step{at}"
        self.module.save_checkpoint(str(pieces), tag=tag, exclude_frozen_parameters=True)
        self.accelerator.wait_for_everyone()
        return {"tag": tag}

    def load(self, state: dict[str, Any] | None, folder: Path) -> None:
        from accelerate.utils import broadcast_object_list

        told = [state["tag"] if state else None]
        broadcast_object_list(told)
        try:
            read, _ = self.module.load_checkpoint(str(folder / "deepspeed"), tag=told[0], load_module_strict=False)
            reason = "there are none"
        except Exception as error:  # whatever DeepSpeed raises for pieces of another number of processes
            read, reason = None, " ".join(str(error).split())
        if read is None:
            raise ConfigError(
                f"DeepSpeed's pieces of the state {told[0]} in {folder / 'deepspeed'} do not fit these processes "
                f"({reason}): start as many on the same machines, or remove {folder / 'state.pt'} to begin again"
            )

    def tidy(self, folder: Path, at: int) -> None:
        if self.accelerator.is_local_main_process:
            for path in (folder / "deepspeed").glob("step*"):
                if path.name != f"step{at}":
                    shutil.rmtree(path, ignore_errors=True)


def norm_of(parameters: Sequence[nn.Parameter]) -> float:
    """The norm of their gradients, over all pieces of what FSDP 2 shards."""
    norm: Any = nn.utils.clip_grad_norm_(parameters, math.inf)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
