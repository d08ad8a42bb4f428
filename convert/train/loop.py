"""Trains a value model on scored trajectories; stops when held-out loss does, resumes bit for bit."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sia_local.errors import DataError, NumericError
from sia_local.files import alone
from sia_local.progress import Progress

from ..data.examples import Example, Reader, Split, batches, load_split
from ..formats.hf import load_tokenizer
from .branches import Tried, branch_loss, draw
from .config import MOVING, Place, TrainConfig
from .metrics import of_texts
from .model import build, value_loss
from .run_folder import RunFolder, key_of
from .shared import SharedModel, accelerator_for


def train(config: TrainConfig, resume: bool = True, anew: bool = False) -> dict[str, Any]:
    """Runs to the end of training and returns the report also written to `training.json`.

    With `resume` an interrupted run of the same configuration and data continues exactly where its last state
    was saved; another one is refused or, with `anew`, replaced. The folder holds the best model so far, whole. Errors:
    ConfigError, DataError, NumericError.
    """
    return Trainer(config).run(resume, anew)


class Trainer:
    """One run: model, data and optimiser; `run` is the loop."""

    def __init__(self, config: TrainConfig):
        self.config, key = config, key_of(config)
        self.accelerator, half, flat = accelerator_for(config.bf16)
        gpu = self.accelerator.device.type == "cuda"
        torch.manual_seed(config.seed)
        self.model = build(
            config.backbone,
            config.tuning,
            config.lora,
            config.layers,
            config.head_hidden,
            torch.bfloat16 if half and gpu and not flat else torch.float32,
            config.checkpointing,
        )
        tokenizer = load_tokenizer(config.backbone)
        self.reader = Reader(tokenizer, config.template, config.stop_token, config.placement == "head")
        self.stop_token = self.reader.stop_token  # refused now, not behind the first epoch
        n_vocab = int(self.model.backbone.get_input_embeddings().num_embeddings)
        # A model without positions names no longest text.
        longest = min(
            config.max_length, getattr(self.model.backbone.config, "max_position_embeddings", config.max_length)
        )
        self.split: Split = load_split(
            config.data, self.reader, n_vocab, config.held_out, longest, config.seed, config.limit
        )
        if config.loss == "branched" and not any(e.branches for e in self.split.train):
            raise DataError(
                "the loss branched was asked for, but no text has branches; make some with `sia-convert branch`"
            )
        self.rates = [config.lr, config.head_lr or config.lr]
        self.device = self.accelerator.device
        self.world = self.accelerator.num_processes
        self.shared = SharedModel(
            self.accelerator, self.model, config.batch, max(config.batch, 32), config.weight_decay, config.clip
        )
        self.folder = RunFolder(config, key, self.accelerator, self.shared)
        self.place = Place()

    def run(self, resume: bool, anew: bool = False) -> dict[str, Any]:
        """The main process of several holds the folder, so that no other run writes it meanwhile."""
        if not self.accelerator.is_main_process:
            return self._run(resume, anew)
        with alone(Path(self.config.out)):
            return self._run(resume, anew)

    def _run(self, resume: bool, anew: bool) -> dict[str, Any]:
        c, main = self.config, self.accelerator.is_main_process
        self.folder.clear()
        p = self.place = (self.folder.restore(anew) if resume else None) or self.place
        n, m = len(self.split.train), len(self.split.held_out)
        if main:
            trained = self.shared.trained
            print(f"{n} training and {m} held-out trajectories, {self.split.dropped} dropped; {trained:,} weights")
        while p.epoch < c.epochs and p.stale < c.patience:
            self.epoch()
            metrics = self.evaluate()
            metrics |= {"epoch": p.epoch + 1, "train_loss": p.loss_sum / max(p.loss_count, 1.0)}
            p.history.append(metrics)
            better = metrics["loss"] < p.best
            p.best, p.stale = (metrics["loss"], 0) if better else (p.best, p.stale + 1)
            p.epoch, p.step, p.loss_sum, p.loss_count = p.epoch + 1, 0, 0.0, 0.0
            if main:
                print(_line(metrics, better, c.loss), flush=True)
            if better:
                self.folder.save_model(self.split, p.tokens, self.reader.template, self.stop_token)
            self.folder.save_state(p)
        return self.folder.finish(p, self.split) if main else {}

    def epoch(self) -> None:
        """Trains from where the place says to the end of the epoch."""
        c, p = self.config, self.place
        rank, world = self.accelerator.process_index, self.world
        rng = np.random.default_rng([c.seed, p.epoch])
        packed = batches(self.split.train, c.batch, rng)
        per_step = c.accumulate * world
        steps = [packed[i : i + per_step] for i in range(0, len(packed), per_step)]
        # Before the clock of the epoch starts: where there is something to keep, it takes longer than all epochs.
        self.shared.keep(self.split.train, "training")
        progress = Progress(f"epoch {p.epoch + 1}/{c.epochs}", len(steps), p.step)
        self.shared.train(True)
        while p.step < len(steps):
            started = time.monotonic()
            group = steps[p.step]
            whole = sum(map(len, group))
            # All ranks make as many passes; one without a batch of its own computes the first with weight 0.
            mine = [(b, len(b) / whole * world) for b in group[rank::world]]
            mine += [(group[0], 0.0)] * (-(-len(group) // world) - len(mine))
            rate = self._set_rate(len(steps))
            loss_sum = 0.0
            for i, (batch, weight) in enumerate(mine, 1):
                loss_sum += float(self.shared.backward(partial(self._loss, batch, weight), i == len(mine)))
            loss = float(self.accelerator.reduce(torch.tensor(loss_sum, device=self.device), "sum")) / world
            if not np.isfinite(loss):
                raise NumericError(f"the loss became {loss} at step {p.total + 1}: lower --lr (now {rate:g})")
            self.shared.step()
            p.step, p.total = p.step + 1, p.total + 1
            p.tokens += sum(len(self.split.train[i].ids) - self.split.train[i].start for b in group for i in b)
            p.loss_sum, p.loss_count = p.loss_sum + loss * whole, p.loss_count + whole
            p.seconds += time.monotonic() - started
            p.curve.append([p.total, loss])
            if self.accelerator.is_main_process:
                progress.update(1, f"loss {p.loss_sum / p.loss_count:.4f}")
            if p.step % c.save_every == 0 and p.step < len(steps):
                self.folder.save_state(p)

    def _set_rate(self, steps_an_epoch: int) -> float:
        c, done = self.config, self.place.total
        total = max(1, steps_an_epoch * c.epochs)
        part = min(1.0, done / total)
        factor = {"constant": 1.0, "linear": 1.0 - part, "cosine": 0.5 * (1.0 + float(np.cos(np.pi * part)))}
        scale = factor[c.schedule] * (min(1.0, (done + 1) / c.warmup) if c.warmup else 1.0)
        rates = [rate * scale for rate in self.rates]
        self.shared.set_rates(*rates)
        return rates[0]

    def _loss(self, batch: list[int], weight: float) -> Tensor:
        return self._losses(batch).mean() * weight

    def _losses(self, batch: list[int]) -> Tensor:
        c, part = self.config, [self.split.train[i] for i in batch]
        tried = draw(part if c.loss == "branched" else [], np.random.default_rng([c.seed, self.place.epoch, *batch]))
        values, mask, ends = self._values(part, tried)
        rewards = torch.tensor([self._standard(e.reward) for e in part], device=self.device)
        losses = value_loss(values, mask, rewards, c.loss, c.lam)
        return losses + self._branch_loss(ends, tried, len(part)) if tried.rows else losses

    def _values(self, part: list[Example], tried: Tried) -> tuple[Tensor, Tensor, Tensor]:
        """Values and response mask [batch, n], and V of what was tried: one pass for all."""
        values, mask = self.shared.values([*part, *tried.rows])
        n = len(part)
        return values[:n], mask[:n], (values[n:] * mask[n:]).sum(1)

    def _branch_loss(self, ends: Tensor, tried: Tried, texts: int) -> Tensor:
        targets = torch.tensor([self._standard(row.reward) for row in tried.rows], device=self.device)
        return branch_loss(ends, targets, tried, texts)

    def _standard(self, reward: float) -> float:
        return (reward - self.split.mean) / self.split.std

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss and metrics, of the mean of V over the response and of V at its last token."""
        rank, world = self.accelerator.process_index, self.world
        self.shared.train(False)
        rows: list[list[float]] = []  # index, loss, squared error a token, mean V, last V
        examples = self.split.held_out
        self.shared.keep(examples, "held-out")
        # Where branches come along, all of each text's, no more texts than training takes.
        size = self.config.batch if self.config.loss == "branched" else max(self.config.batch, 32)
        packed = batches(examples, size, None)
        # Every rank makes as many passes, for what is wrapped may wait for the others; what is read twice counts once.
        for at in range(rank, -(-len(packed) // world) * world, world):
            batch = packed[at % len(packed)]
            part = [examples[i] for i in batch]
            tried = draw(part if self.config.loss == "branched" else [], None)
            with self.accelerator.autocast():
                values, mask, ends = self._values(part, tried)
            rewards = torch.tensor([self._standard(e.reward) for e in part], device=self.device)
            squares = value_loss(values, mask, rewards, "per-token")
            moving = self.config.loss in MOVING
            losses = squares if moving else value_loss(values, mask, rewards, self.config.loss)
            if tried.rows:
                losses = losses + self._branch_loss(ends, tried, len(part))
            means = (values * mask).sum(1) / mask.sum(1)
            for i, index in enumerate(batch):
                final = values[i, len(part[i].ids) - 1]
                rows.append([index, *(float(x) for x in (losses[i], squares[i], means[i], final))])
        if world > 1:
            from accelerate.utils import gather_object

            rows = gather_object(rows)
        table = np.array(sorted({int(row[0]): row for row in rows}.values()))
        read = [examples[int(index)] for index in table[:, 0]]
        rewards_of = np.array([self._standard(e.reward) for e in read])
        metrics = of_texts(table[:, 1:], rewards_of, [e.prompt_id for e in read])
        told = [metrics]
        if world > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(told)  # so that all agree what is better, to the last bit
        if not math.isfinite(told[0]["loss"]):
            raise NumericError(f"the held-out loss is {told[0]['loss']}: lower --lr (now {self.config.lr:g})")
        return told[0]


def _line(m: dict[str, float], better: bool, loss: str) -> str:
    # Lambda-returns move with the model, so the one is no measure of the other.
    to_what, to_reward = (" to its lambda-returns", " to the reward") if loss in MOVING else ("", "")
    known = f"pairwise {m['pairwise']:.3f} (last {m['pairwise_last']:.3f})"
    pairs = "no pairs, as no prompt has two texts" if math.isnan(m["pairwise"]) else known
    return (
        f"epoch {int(m['epoch'])}: train {m['train_loss']:.4f}{to_what}, held-out {m['loss']:.4f}{to_reward}, "
        f"R2 {m['r2']:.3f} "
        f"(last {m['r2_last']:.3f}), Spearman {m['spearman']:.3f}, {pairs}{', best so far' if better else ''}"
    )
