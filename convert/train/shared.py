"""A value model that several processes train: the backbone as accelerate wraps it, the head as it is."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from sia_local.errors import ConfigError
from sia_local.progress import Progress

from ..data.examples import Example, batches
from .model import ValueModel, pad
from .sharding import Body, Engine, Frozen, Whole, norm_of

# Numbers that the kept states of a frozen backbone may hold: 2 GB.
ROOM = 500_000_000


class SharedModel:
    """Wrapping the backbone alone leaves the head's parameters where and what they are, whatever shards the rest.

    A frozen backbone is wrapped only where its weights are sharded, and its hidden states of examples that come again
    are kept. batch: texts of a forward pass of training; room: examples of a pass that computes what is kept; clip:
    largest norm of the gradient.
    """

    def __init__(
        self, accelerator: Any, model: ValueModel, batch: int, room: int, weight_decay: float, clip: float
    ) -> None:
        self.accelerator, self.model, self.batch, self.clip = accelerator, model, room, clip
        self.kind = accelerator.distributed_type.value
        tuned = [p for p in model.backbone.parameters() if p.requires_grad]
        self.frozen = not tuned
        # ZeRO-3 partitions a parameter and says so by its true size.
        self.trained = sum(int(getattr(p, "ds_numel", p.numel())) for p in (*tuned, *model.head.parameters()))
        self.sharded = self.kind == "FSDP" or (
            self.kind == "DEEPSPEED" and accelerator.state.deepspeed_plugin.zero_stage == 3
        )
        self.head_optimizer = AdamW(model.head.parameters(), weight_decay=weight_decay)
        model.head.to(accelerator.device)
        if self.frozen and not self.sharded:
            self.body: Body = Frozen(model.backbone.to(accelerator.device))
        else:
            self.body = self._wrap(tuned, batch, weight_decay)
        self._kept: dict[int, Tensor] = {}  # by the identity of an example
        self._seen: list[Sequence[Example]] = []  # whose examples stay alive, so that identities do, too

    def _wrap(self, tuned: list[nn.Parameter], batch: int, weight_decay: float) -> Body:
        accelerator, backbone = self.accelerator, self.model.backbone
        if self.kind == "DEEPSPEED":
            # The recipe decides these, not the file.
            accelerator.state.deepspeed_plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=batch, gradient_accumulation_steps=1, gradient_clipping=self.clip
            )
        try:
            if self.frozen and self.kind == "DEEPSPEED":
                return Frozen(accelerator.prepare(backbone))
            # FSDP 2 takes a backbone with its optimiser only; of frozen weights it makes no step.
            optimizer = AdamW(tuned or backbone.parameters(), weight_decay=weight_decay)
            module, wrapped = accelerator.prepare(backbone, optimizer)
        except (ValueError, KeyError, ImportError) as error:  # what its configuration says does not fit
            raise ConfigError(f"accelerate's configuration of {self.kind}: {' '.join(str(error).split())}") from error
        if self.frozen:
            return Frozen(module)
        return (
            Engine(accelerator, module) if self.kind == "DEEPSPEED" else Whole(accelerator, module, wrapped.optimizer)
        )

    def train(self, on: bool) -> None:
        self.model.train(on)
        self.body.module.train(on)

    def set_rates(self, backbone: float, head: float) -> None:
        """Learning rates of the step that comes; before its first backward pass."""
        self.body.set_rate(backbone)
        for group in self.head_optimizer.param_groups:
            group["lr"] = head

    def backward(self, part: Callable[[], Tensor], last: bool) -> Tensor:
        """One forward and backward pass; `last`: the step follows. part: computes the loss, which is returned."""
        self.accelerator.sync_gradients = last  # DeepSpeed steps when the last pass is done
        # Where more passes follow, gradients need not travel yet; what is sharded has no room to keep them whole.
        waits = not last and self.kind not in ("FSDP", "DEEPSPEED")
        with self.accelerator.no_sync(self.body.module) if waits else contextlib.nullcontext():
            with self.accelerator.autocast():
                loss = part()
            if self.frozen:
                loss.backward()
            else:
                self.accelerator.backward(loss)
        return loss.detach()

    def step(self) -> None:
        """One step of backbone and head, of one gradient, whose norm is clipped.

        The gradients of the head become their mean over the processes, as those of the backbone are.
        """
        head = list(self.model.head.parameters())
        if self.accelerator.num_processes > 1:
            for parameter in head:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        gradients, norm = self.body.gradients()
        norm = math.hypot(norm, norm_of(head))
        if (scale := self.clip / (norm + 1e-6)) < 1.0:
            for gradient in (*gradients, *(p.grad for p in head if p.grad is not None)):
                gradient.mul_(scale)
        self.body.step()
        self.head_optimizer.step()
        self.head_optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """Everything that is trained, whole, on the CPU, by its names in the model; of the first process.

        All processes must call it.
        """
        head = {f"head.{name}": w.detach().cpu() for name, w in self.model.head.named_parameters()}
        return {f"backbone.{name}": w for name, w in self.body.weights().items()} | head

    def save(self, folder: Path, at: int) -> dict[str, Any]:
        """What `load` continues from, of the first process. All processes must call it; at: steps so far."""
        head = {name: w.detach().cpu() for name, w in self.model.head.named_parameters()}
        return {"head": head, "moments": self.head_optimizer.state_dict(), "backbone": self.body.save(folder, at)}

    def load(self, state: dict[str, Any] | None, folder: Path) -> None:
        """state: what `save` gave, of the first process alone."""
        told = [(state["head"], state["moments"]) if state else None]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(told)
        head, moments = told[0] or ({}, {})
        self.model.head.load_state_dict(head)
        self.head_optimizer.load_state_dict(moments)
        self.body.load(state["backbone"] if state else None, folder)

    def values(self, part: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Values and response mask, both [batch, n]."""
        mask = torch.zeros(len(part), max(len(e.ids) for e in part))
        for i, e in enumerate(part):
            mask[i, e.start : len(e.ids)] = 1.0
        return self.model(None, self._hidden(part)), mask.to(self.accelerator.device)

    def _hidden(self, part: Sequence[Example]) -> Tensor:
        if all(id(e) in self._kept for e in part):
            kept = [self._kept[id(e)].to(self.accelerator.device) for e in part]
            return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
        ids = pad([e.ids for e in part]).to(self.accelerator.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden: Tensor = self.body.module(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def keep(self, examples: Sequence[Example], what: str) -> None:
        """Computes and keeps the states of a frozen backbone, of as many examples as there is room for.

        In fixed batches, not as training meets them: the last bits depend on the batch, and a resumed run must find
        the same ones.
        """
        if not self.frozen or any(examples is seen for seen in self._seen):
            return
        self._seen.append(examples)
        room = ROOM - sum(state.numel() for state in self._kept.values())
        packed = batches(examples, self.batch, None)
        tokens = sum(len(batch) * max(len(examples[i].ids) for i in batch) for batch in packed)
        if self.sharded and tokens * self.model.backbone.config.hidden_size > room:
            return  # all or none: a process that has its states would not take part in another's pass
        progress = Progress(f"frozen states, {what}", len(packed))
        for batch in packed:
            states = self._hidden([examples[i] for i in batch])
            room -= states.numel()
            if room < 0:
                break
            for i, state in zip(batch, states, strict=True):
                self._kept[id(examples[i])] = state[: len(examples[i].ids)].clone().cpu()
            progress.update()


def accelerator_for(told: bool | None) -> tuple[Any, bool, bool]:
    """The Accelerator of this process, whether it computes in bfloat16 (`told`, or as _half() finds), and whether all
    weights of the backbone must be of one type.

    ConfigError for a configuration of accelerate's that gives a process no texts of its own, or other types.
    """
    from accelerate import Accelerator

    gpu = torch.cuda.is_available()
    half = _half(told, gpu)
    made = Accelerator(mixed_precision="bf16" if half else "no", cpu=not gpu)
    made.gradient_accumulation_steps = 1  # the loop adds passes up itself, as the recipe says
    _check_layout(made)
    # FSDP 1 flattens LoRA and backbone together, so they have one type.
    return made, half, made.distributed_type.value == "FSDP" and not made.is_fsdp2


def _half(told: bool | None, gpu: bool) -> bool:
    """Whether it computes in bfloat16: as the recipe says, else as accelerate's configuration, else on a GPU."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if told is not None or asked is None:
        return gpu if told is None else told
    if asked not in ("no", "bf16"):
        raise ConfigError(f"accelerate's configuration asks for mixed precision {asked}: expected bf16 or no")
    return asked == "bf16"


def _check_layout(accelerator: Any) -> None:
    """Every process must have texts of its own, and the backbone be PyTorch's."""
    if accelerator.distributed_type.value == "MEGATRON_LM":
        raise ConfigError("accelerate's configuration asks for MEGATRON_LM: expected MULTI_GPU, FSDP or DEEPSPEED")
    layout = getattr(accelerator, "parallelism_config", None)
    if layout is not None and layout.non_data_parallel_size > 1:
        raise ConfigError(
            "accelerate's configuration shares one text among processes (tensor, context or sequence parallel): give "
            "each its own, with dp_replicate_size and dp_shard_size alone"
        )
