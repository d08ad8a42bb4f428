"""The loss on branches: what candidates of one junction earned, as differences that V shall have.

Each candidate is a row of its own, prefix and candidate, so that any backbone will do. In training a text brings one of
its junctions, another one each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.examples import Example


@dataclass(frozen=True)
class Tried:
    """Candidates of some junctions. rows: prefix and candidate, whose value counts at its end alone, with the mean
    reward of the texts; weights: texts behind each mean; owners: which text of the batch; groups: which junction."""

    rows: list[Example]
    weights: list[float]
    owners: list[int]
    groups: list[int]


def draw(part: Sequence[Example], rng: np.random.Generator | None) -> Tried:
    """One junction of each text, or all of them without `rng`."""
    made = Tried([], [], [], [])
    group = 0
    for owner, example in enumerate(part):
        branches = example.branches
        if rng is not None and branches:
            branches = (branches[int(rng.integers(len(branches)))],)
        for branch in branches:
            end = example.start + branch.at
            for token, mean, count in zip(branch.ids, branch.means, branch.counts, strict=True):
                made.rows.append(Example((*example.ids[:end], token), end, example.prompt_id, mean))
                made.weights.append(float(count))
                made.owners.append(owner)
                made.groups.append(group)
            group += 1
    return made


def branch_loss(values: Tensor, targets: Tensor, tried: Tried, texts: int) -> Tensor:
    """Of each text the mean over its junctions of sum_c w (d - mean d)^2 / sum_c w with d = V - target, [texts].

    values, targets float32 [rows], in one unit; means are weighted alike. A text without junctions has 0.
    """
    out = values.new_zeros(texts)
    if not tried.rows:
        return out
    w = torch.tensor(tried.weights, device=values.device)
    group = torch.tensor(tried.groups, device=values.device)
    n = tried.groups[-1] + 1
    total = values.new_zeros(n).index_add(0, group, w)
    d = values - targets
    mean = values.new_zeros(n).index_add(0, group, w * d) / total
    error = values.new_zeros(n).index_add(0, group, w * (d - mean[group]) ** 2) / total
    owner_of = dict(zip(tried.groups, tried.owners, strict=True))
    owners = torch.tensor([owner_of[g] for g in range(n)], device=values.device)
    junctions = out.index_add(0, owners, torch.ones_like(error)).clamp_min(1.0)
    return out.index_add(0, owners, error) / junctions
