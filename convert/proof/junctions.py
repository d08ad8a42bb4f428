"""Junctions of recorded trajectories, and the values of their candidates in PyTorch and in the runtime."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sia_local.errors import DataError

from ..data.examples import Reader
from ..data.trajectories import Trajectory
from ..progress import Progress

if TYPE_CHECKING:
    from sia_local import SIA

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
class Runtime:
    """How GGUF files are run to compare them: float32 KV cache, no flash attention.

    n_gpu_layers: of the base that decides the junctions; values are compared on the CPU, in full float32.
    """

    n_ctx: int = 1024
    n_threads: int = 0
    n_gpu_layers: int = 0

    def load(self, base: str | os.PathLike[str], value: str | os.PathLike[str] | None, k: int) -> SIA:
        from sia_local import SIA

        return SIA.load(
            base,
            value,
            n_ctx=self.n_ctx,
            n_threads=self.n_threads,
            n_gpu_layers=self.n_gpu_layers if value is None else 0,
            max_candidates=k if value is not None else None,
            type_k="f32",
            type_v="f32",
            flash_attention="off",
        )


def find_cases(
    base: str | os.PathLike[str],
    trajectories: Iterable[Trajectory],
    reader: Reader,
    k: int = 10,
    threshold: float = 1.0,
    per_trajectory: int = 24,
    runtime: Runtime | None = None,
) -> list[Case]:
    """Feeds each trajectory to the base and keeps up to `per_trajectory` positions with top-k entropy >= threshold.

    Kept positions are spread evenly over those found. DataError when there is no junction at all.
    """
    from sia_local.steering.entropy import entropy, top_candidates

    cases = []
    waiting = [t for t in trajectories if t.tokens]
    progress = Progress("junctions", len(waiting))
    with (runtime or Runtime()).load(base, None, k) as sia:
        for trajectory in waiting:
            prompt = sia.prompt(trajectory.prompt, raw=trajectory.rendered == trajectory.prompt)
            tokens = trajectory.tokens[: max(0, sia.n_ctx - 1 - len(prompt.tokens))]
            found: list[tuple[int, np.ndarray]] = []
            t = 0
            for rows in sia.engine.trail(0, prompt.tokens[:-1], [prompt.tokens[-1], *tokens[:-1]]):
                for logits in rows:
                    ids = top_candidates(logits, k)
                    if entropy(logits[ids]) >= threshold:
                        found.append((t, ids))
                    t += 1
            if len(found) > per_trajectory:
                chosen = np.linspace(0, len(found) - 1, per_trajectory).round().astype(int)
                found = [found[i] for i in chosen]
            if found:
                cases.append(
                    Case(
                        trajectory,
                        reader.prompt_ids(trajectory),
                        [t for t, _ in found],
                        np.stack([ids for _, ids in found]),
                    )
                )
            progress.update()
    if not cases:
        raise DataError(f"no step of these trajectories reaches an entropy of {threshold} nats: lower --threshold")
    return cases


def torch_values(model: ValueModel, case: Case) -> np.ndarray:
    """V of every candidate after exactly its prefix, float32 [J, k], in one forward pass.

    The candidates follow the trajectory in the input, each at its junction's position and seeing its prefix and
    itself alone; this equals encoding every prefix and candidate afresh.
    """
    import torch

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


def gguf_values(sia: SIA, case: Case) -> tuple[np.ndarray, list[int]]:
    """The runtime's V [J, k], with its queue, branches and commits, and the prompt tokens its value model read."""
    value: Any = sia.value
    trajectory = case.trajectory
    prompt = sia.prompt(trajectory.prompt, raw=trajectory.rendered == trajectory.prompt)
    sia.engine.begin(0, prompt.tokens)
    value.begin(0, prompt)
    read = list(value.engine.slots[0].tokens)
    shared = value.engine is sia.engine
    rows: list[np.ndarray] = []
    at = 0
    for position, candidates in zip(case.positions, case.candidates, strict=True):
        for token in trajectory.tokens[at:position]:
            sia.engine.accept(0, token)
            value.accept(0, token)
        at = position
        if shared:
            sia.engine.logits([0])
        rows.append(np.asarray(value.score([(0, candidates)])[0], np.float64))
    return np.stack(rows), read


def spread_of(values: Sequence[np.ndarray]) -> float:
    """Mean over junctions of the standard deviation of V among the candidates, in the units of V."""
    return float(np.concatenate([v.std(axis=1) for v in values]).mean())
