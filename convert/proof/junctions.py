"""Junctions of recorded trajectories, and the values of their candidates in PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sia_local.config import setting
from sia_local.errors import ConfigError, ContextFullError, DataError
from sia_local.progress import Progress

from ..data.examples import Reader
from ..data.trajectories import Trajectory
from ..formats.arch import is_native
from ..settings import Machine

if TYPE_CHECKING:
    from sia_local import SIA
    from sia_local.records import Prompt

    from ..train.model import ValueModel


@dataclass(frozen=True)
class Case:
    """One trajectory and its junctions: before token `positions[j]` the base hesitated among `candidates[j]`.

    prompt_ids: the prompt as PyTorch's value model reads it. candidates int32 [J, k].
    """

    trajectory: Trajectory
    prompt_ids: tuple[int, ...]
    positions: list[int]
    candidates: np.ndarray


@dataclass(frozen=True)
class JunctionConfig:
    """Which junctions are looked at."""

    k: int = setting(10, "Candidates.")
    threshold: float = setting(1.0, "Entropy of a junction, in nats over the candidates.")
    limit: int = setting(40, "Trajectories.")
    per_trajectory: int = setting(24, "Junctions of a trajectory at most.")
    n_ctx: int = setting(1024, "Tokens a sequence may hold.", option="--ctx")

    def __post_init__(self) -> None:
        if min(self.k, self.limit, self.per_trajectory, self.n_ctx) < 1:
            raise ConfigError("k, limit, per-trajectory and ctx must be at least 1")


def load_runtime(
    base: str | os.PathLike[str], value: str | os.PathLike[str] | None, config: JunctionConfig, machine: Machine
) -> SIA:
    """GGUF files as they are run to be compared: float32 KV cache, no flash attention.

    Values are computed on the CPU, in full float32; a base alone, which decides the junctions, may use the GPU.
    """
    from sia_local import SIA

    return SIA.load(
        base,
        value,
        n_ctx=config.n_ctx,
        n_threads=machine.threads,
        n_gpu_layers=machine.gpu_layers if value is None else 0,
        max_candidates=config.k if value is not None else None,
        type_k="f32",
        type_v="f32",
        flash_attention="off",
    )


def prompt_of(sia: SIA, trajectory: Trajectory) -> Prompt:
    """A trajectory's prompt as the base read it when it was sampled."""
    t = trajectory
    return sia.prompt_again(t.prompt, t.rendered, t.raw, t.told)


def find_cases(
    base: str | os.PathLike[str],
    trajectories: Iterable[Trajectory],
    reader: Reader,
    config: JunctionConfig,
    machine: Machine,
) -> list[Case]:
    """Feeds each trajectory to the base and keeps up to `per_trajectory` positions with top-k entropy >= threshold.

    Kept positions are spread evenly over those found. Texts whose prompt does not fit the context are left out, and
    counted on stderr. DataError when there is no junction at all.
    """
    from sia_local.steering.entropy import entropy, top_candidates

    cases = []
    waiting = [t for t in trajectories if t.tokens]
    with load_runtime(base, None, config, machine) as sia:
        fitting = [fit for t in waiting if (fit := _fitting(sia, t, reader))]
        if len(fitting) < len(waiting):
            left = len(waiting) - len(fitting)
            print(f"left out {left} texts: their prompts do not fit {sia.n_ctx} tokens", file=sys.stderr)
        progress = Progress("junctions", len(fitting))
        for trajectory, prompt, read, tokens in fitting:
            found: list[tuple[int, np.ndarray]] = []
            t = 0
            for rows in sia.engine.trail(0, prompt.tokens[:-1], [prompt.tokens[-1], *tokens[:-1]]):
                for logits in rows:
                    ids = top_candidates(logits, config.k)
                    if entropy(logits[ids]) >= config.threshold:
                        found.append((t, ids))
                    t += 1
            if len(found) > config.per_trajectory:
                chosen = np.linspace(0, len(found) - 1, config.per_trajectory).round().astype(int)
                found = [found[i] for i in chosen]
            if found:
                cases.append(
                    Case(
                        trajectory,
                        read,
                        [t for t, _ in found],
                        np.stack([ids for _, ids in found]),
                    )
                )
            progress.update()
    if waiting and not fitting:
        raise DataError(f"no prompt of these trajectories fits {config.n_ctx} tokens: raise --ctx")
    if not cases:
        raise DataError(f"no step of these trajectories reaches an entropy of {config.threshold} nats: lower threshold")
    return cases


def _fitting(
    sia: SIA, trajectory: Trajectory, reader: Reader
) -> tuple[Trajectory, Prompt, tuple[int, ...], list[int]] | None:
    """With the prompt as the base and as the value model reads it, and the tokens that fit behind both; None if none
    do."""
    read = reader.prompt_ids(trajectory)
    try:
        prompt = prompt_of(sia, trajectory)
    except ContextFullError:
        return None
    tokens = trajectory.tokens[: max(0, sia.n_ctx - 1 - max(len(prompt.tokens), len(read)))]
    return (trajectory, prompt, read, tokens) if tokens else None


def torch_values(model: ValueModel, case: Case) -> np.ndarray:
    """V of every candidate after exactly its prefix, float32 [J, k].

    Where every layer is full attention, in one forward pass: the candidates follow the trajectory in the input, each at
    its junction's position and seeing its prefix and itself alone. This equals encoding every prefix and candidate
    afresh, which is what the others get.
    """
    import torch

    if not is_native(model.backbone.config.to_dict()):
        return np.stack([_values_afresh(model, case, j) for j in range(len(case.positions))])
    start, (n_junctions, k) = len(case.prompt_ids), case.candidates.shape
    path = [*case.prompt_ids, *case.trajectory.tokens[: case.positions[-1]]]
    ids = torch.tensor([[*path, *case.candidates.ravel().tolist()]])
    owner = np.repeat(np.array(case.positions) + start, k)
    positions = torch.tensor([[*range(len(path)), *owner.tolist()]])
    n, total = len(path), ids.shape[1]
    seen = np.zeros((total, total), bool)
    seen[:n, :n] = np.tril(np.ones((n, n), bool))
    seen[n:, :n] = np.arange(n)[None, :] < owner[:, None]
    seen[np.arange(n, total), np.arange(n, total)] = True
    device = next(model.parameters()).device
    mask = torch.zeros(1, 1, total, total).masked_fill(~torch.from_numpy(seen), torch.finfo(torch.float32).min)
    with torch.no_grad():
        hidden = model.backbone(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=mask.to(device),
            use_cache=False,
        ).last_hidden_state
        values: np.ndarray = model.head(hidden[0, n:]).cpu().numpy()
    return values.reshape(n_junctions, k)


def _values_afresh(model: ValueModel, case: Case, junction: int) -> np.ndarray:
    """V of one junction's candidates, float32 [k], each of them read behind its whole prefix."""
    import torch

    prefix = [*case.prompt_ids, *case.trajectory.tokens[: case.positions[junction]]]
    ids = torch.tensor([[*prefix, token] for token in case.candidates[junction].tolist()])
    with torch.no_grad():
        hidden = model.hidden(ids.to(next(model.parameters()).device))[:, -1]
        values: np.ndarray = model.head(hidden).cpu().numpy()
    return values
