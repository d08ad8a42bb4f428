"""A value model that several processes train: the backbone as accelerate wraps it, the head as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sia_local.progress import Progress

from ..data.examples import Example, batches
from .model import ValueModel, pad

# Numbers that the kept states of a frozen backbone may hold: 2 GB.
ROOM = 500_000_000


class SharedModel:
    """Wrapping the backbone alone leaves the head's parameters where and what they are, whatever shards the rest.

    A frozen backbone is not wrapped, and its hidden states of examples that come again are kept. batch: examples of a
    pass that computes them.
    """

    def __init__(self, accelerator: Any, model: ValueModel, batch: int):
        self.accelerator, self.model, self.batch = accelerator, model, batch
        self.frozen = not any(p.requires_grad for p in model.backbone.parameters())
        self.backbone = model.backbone if self.frozen else accelerator.prepare_model(model.backbone)
        model.to(accelerator.device)
        self._kept: dict[int, Tensor] = {}  # by the identity of an example
        self._seen: list[Sequence[Example]] = []  # whose examples stay alive, so that identities do, too

    def train(self, on: bool) -> None:
        self.model.train(on)
        self.backbone.train(on)

    def holds_back(self, on: bool) -> contextlib.AbstractContextManager[Any]:
        """Where more backward passes follow before the step, gradients need not travel yet."""
        return self.accelerator.no_sync(self.backbone) if on else contextlib.nullcontext()

    def share_head(self) -> None:
        """The gradients of the head become their mean over the processes, as those of the backbone are."""
        if self.accelerator.num_processes > 1:
            for parameter in self.model.head.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

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
            hidden: Tensor = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
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
        progress = Progress(f"frozen states, {what}", len(packed))
        for batch in packed:
            states = self._hidden([examples[i] for i in batch])
            room -= states.numel()
            if room < 0:
                break
            for i, state in zip(batch, states, strict=True):
                self._kept[id(examples[i])] = state[: len(examples[i].ids)].clone().cpu()
            progress.update()
