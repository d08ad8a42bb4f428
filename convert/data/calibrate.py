"""The settings of a finished value file: `sia-local calibrate` as a step of the chain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sia_local import SIA
from sia_local.config import ChatSettings, SiaConfig
from sia_local.evaluation.calibrate import calibrate
from sia_local.evaluation.plan import Goal, Task
from sia_local.prompts import read_prompt_items
from sia_local.records import Request
from sia_local.rewards.load import load_reward

from ..settings import Machine, settings_of
from .rollouts import RolloutConfig


def calibrate_file(
    base: Path,
    value: Path,
    prompts: Path,
    config: Any,
    sampled: RolloutConfig,
    reward: str | None,
    out: Path,
    machine: Machine,
) -> str:
    """Writes the profile of `config` (a plan's CalibrateSection) to `out`; what it chose, as a sentence.

    sampled: how the base was spoken to for the texts that were trained on.
    Raises ConfigError for a goal that cannot be reached and NumericError for values that do not differ.
    """
    request = Request("", SiaConfig(k=config.k), max_tokens=config.max_tokens, seed=config.seed)
    items = read_prompt_items(prompts)[: config.limit]
    task = Task(prompts=items, request=request, **settings_of(Goal, config))
    with SIA.load(
        base,
        value,
        n_ctx=sampled.n_ctx,
        slots=config.slots,
        n_threads=machine.threads,
        n_gpu_layers=machine.gpu_layers,
        max_candidates=config.k,
        **settings_of(ChatSettings, sampled),
    ) as sia:
        profile = calibrate(sia, task, load_reward(reward) if reward is not None else None)
    profile = dataclasses.replace(profile, model=base.name, value=value.name)
    profile.write(out)
    return str(profile.chose)
