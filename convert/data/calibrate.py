"""The settings of a finished value file: `sia-local calibrate` as a step of the chain."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sia_local import SIA
from sia_local.config import ChatSettings
from sia_local.errors import ContextFullError
from sia_local.evaluation.calibrate import calibrate
from sia_local.evaluation.plan import Goal, Task
from sia_local.prompts import PromptItem, read_prompt_items
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
    Prompts that do not fit its context are left out, as they were there, and counted on stderr. Raises ConfigError for
    a goal that cannot be reached, NumericError for values that do not differ and ContextFullError when no prompt fits.
    """
    request = dataclasses.replace(config.request, raw=sampled.raw)
    items = read_prompt_items(prompts)[: config.limit]
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
        task = Task(prompts=_fitting(sia, items, sampled.raw), request=request, **settings_of(Goal, config))
        profile = calibrate(sia, task, load_reward(reward) if reward is not None else None)
    profile = dataclasses.replace(profile, model=base.name, value=value.name)
    profile.write(out)
    return str(profile.chose)


def _fitting(sia: SIA, items: Sequence[PromptItem], raw: bool) -> list[PromptItem]:
    kept, too_long = [], []
    for item in items:
        try:
            prompt = sia.prompt(item.text, raw)
            if sia.value is not None:  # which may read it in a longer template
                with sia.desk.slot() as slot:
                    sia.value.begin(slot, prompt)
            kept.append(item)
        except ContextFullError as error:
            too_long.append(error)
    if not kept:
        raise too_long[0]
    if too_long:
        print(f"left out {len(too_long)} prompts: they do not fit {sia.n_ctx} tokens", file=sys.stderr)
    return kept
