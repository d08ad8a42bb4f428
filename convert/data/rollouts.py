"""Trajectories: sampled from a base GGUF through `sia_local`, or taken from a data set of pairs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sia_local import SiaConfig
from sia_local.errors import ConfigError, ContextFullError, DataError

from ..progress import Progress
from .trajectories import Appender, Shard, Trajectory, finished_ids, read_jsonl

PROMPT_FIELDS = ("prompt", "instruction", "question", "query")
RESPONSE_FIELDS = ("response", "completion", "output", "answer", "chosen")


@dataclass(frozen=True)
class RolloutConfig:
    """How trajectories are sampled. `sampling` is the policy: gate `off` is the base, restricted to its top k.

    samples: responses a prompt. slots: sequences decoded at once. n_ctx: tokens a sequence may hold.
    """

    base: str
    samples: int = 4
    max_tokens: int = 128
    slots: int = 16
    n_ctx: int = 512
    n_threads: int = 0
    n_gpu_layers: int = 0
    value: str | None = None
    sampling: SiaConfig = field(default_factory=lambda: SiaConfig(gate="off"))
    raw: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.max_tokens, self.slots) < 1:
            raise ConfigError("samples, max-tokens and slots must be at least 1")


def sample(prompts: list[str], out: str | os.PathLike[str], config: RolloutConfig, shard: Shard | None = None) -> int:
    """Appends `samples` trajectories a prompt to `out`, skipping those already there; returns how many are new.

    Sample j of prompt p has the id `p-j` and a seed of its own, so a run that was interrupted, or split into
    shards, samples what one run would have. Prompts that do not fit n_ctx are left out, and counted on stderr.
    Raises DataError for an empty prompt set, ContextFullError when no prompt fits.
    """
    from sia_local import SIA
    from sia_local.llama.chat import render_chat

    if not prompts:
        raise DataError("the prompt file is empty: expected one prompt a line, or JSONL with a field `prompt`")
    shard = shard or Shard()
    done = finished_ids(out)
    wanted = [
        (p, j) for p in range(len(prompts)) if shard.mine(p) for j in range(config.samples) if f"{p}-{j}" not in done
    ]
    if not wanted:
        return 0
    progress = Progress("rollouts", len(wanted) + len(done), len(done))
    with (
        SIA.load(
            config.base,
            config.value,
            n_ctx=config.n_ctx,
            slots=config.slots,
            n_threads=config.n_threads,
            n_gpu_layers=config.n_gpu_layers,
            max_candidates=config.sampling.k if config.value else None,
        ) as sia,
        Appender(out) as append,
    ):
        template = sia.model.chat_template
        bos = sia.model.token_text(sia.model.bos) if sia.model.bos >= 0 else ""
        eos = sia.model.token_text(sia.model.eos) if sia.model.eos >= 0 else ""

        @functools.lru_cache(maxsize=4 * config.slots)
        def rendered(prompt: str) -> str:
            if config.raw or template is None:
                return prompt
            return render_chat(template, [{"role": "user", "content": prompt}], bos, eos)

        too_long: list[ContextFullError] = []

        def jobs() -> Iterator[Any]:
            read: dict[int, Any] = {}  # rendering a template takes as long as sampling some tokens
            for number, (p, j) in enumerate(wanted):
                seed = (config.seed * 1_000_003 + p * 8191 + j) % (1 << 31)
                try:
                    if p not in read:
                        read = {p: sia.prompt(prompts[p], config.raw)}
                except ContextFullError as error:
                    too_long.append(error)
                    progress.update()
                    continue
                yield sia.job(read[p], config.sampling, max_tokens=config.max_tokens, seed=seed, id=number)

        texts: dict[int, list[str]] = {}
        tokens: dict[int, list[int]] = {}
        for step in sia.run(jobs()):
            texts.setdefault(step.job, []).append(step.text)
            ended = step.finish == "eog"
            if not ended:
                tokens.setdefault(step.job, []).append(step.token)
            if step.finish is None:
                continue
            p, j = wanted[step.job]
            append(
                Trajectory(
                    id=f"{p}-{j}",
                    prompt_id=p,
                    prompt=prompts[p],
                    rendered=rendered(prompts[p]),
                    tokens=tokens.pop(step.job, []),
                    response="".join(texts.pop(step.job)),
                    finish="stop" if ended else "length",
                    stop=step.token if ended else None,
                ).to_json()
            )
            progress.update()
    if too_long:
        if len(too_long) == len(wanted) and not done:
            raise too_long[0]
        print(f"left out {len(too_long)} trajectories: their prompts do not fit {config.n_ctx} tokens", file=sys.stderr)
    return len(wanted) - len(too_long)


def take_pairs(
    source: str | os.PathLike[str], out: str | os.PathLike[str], base: str, shard: Shard | None = None
) -> int:
    """Turns a JSONL of prompt/response pairs (and rewards, if it has them) into trajectories; returns how many.

    The base GGUF gives the tokenizer. Equal prompts share a prompt_id. DataError for a line without the fields.
    """
    from sia_local.llama.chat import render_chat
    from sia_local.llama.model import Model

    shard = shard or Shard()
    done = finished_ids(out)
    numbers: dict[str, int] = {}
    new = 0
    with Model(base, vocab_only=True) as model, Appender(out) as append:
        template = model.chat_template
        for line, entry in read_jsonl(source):
            prompt = next((entry[name] for name in PROMPT_FIELDS if isinstance(entry.get(name), str)), None)
            response = next((entry[name] for name in RESPONSE_FIELDS if isinstance(entry.get(name), str)), None)
            if prompt is None or response is None:
                raise DataError(
                    f"{source}, line {line}: expected a prompt ({', '.join(PROMPT_FIELDS)}) and a response "
                    f"({', '.join(RESPONSE_FIELDS)}), found {', '.join(entry) or 'nothing'}"
                )
            p = numbers.setdefault(prompt, len(numbers))
            name = str(entry.get("id", f"{p}-{line}"))
            if not shard.mine(p) or name in done:
                continue
            rendered = prompt
            if template is not None:
                eos = model.token_text(model.eos) if model.eos >= 0 else ""
                rendered = render_chat(template, [{"role": "user", "content": prompt}], "", eos)
            reward = entry.get("reward", entry.get("score"))
            append(
                Trajectory(
                    id=name,
                    prompt_id=p,
                    prompt=prompt,
                    rendered=rendered,
                    tokens=model.tokenize(response),
                    response=response,
                    finish=str(entry.get("finish", "stop")),
                    reward=float(reward) if isinstance(reward, (int, float)) else None,
                ).to_json()
            )
            new += 1
    if not new and not done:
        raise DataError(f"{source} has no pairs: expected JSONL with prompt and response")
    return new


def load_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a file as `sia_local` reads them."""
    from sia_local.prompts import read_prompts

    if not Path(path).exists():
        raise DataError(f"no file at {path}: expected prompts as text, JSONL, JSON or CSV")
    return read_prompts(path)
