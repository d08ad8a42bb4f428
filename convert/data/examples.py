"""Training examples: scored trajectories as the value model reads them, split by prompt, packed into batches."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sia_local.errors import ConfigError, DataError

from ..formats.checkpoint import RAW_TEMPLATE
from ..formats.hf import adds_bos
from .trajectories import Branch, Trajectory, check_rewards, in_order

# What ends an answer where a template names it, but cannot be asked.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
ANSWER = "An answer of 4711."


@dataclass(frozen=True)
class Example:
    """ids: prompt then response (and the token that ended it); values count from position `start` on. branches: what
    was tried in place of some tokens of the response."""

    ids: tuple[int, ...]
    start: int
    prompt_id: int
    reward: float  # reward units
    branches: tuple[Branch, ...] = ()


class Reader:
    """Turns trajectories into examples with the value backbone's tokenizer and prompt template.

    template: jinja text, `chat` (the tokenizer's own, else the plain prompt) or `raw` (the plain prompt).
    as_base: read what the base read (`rendered`), as a head over the base's hidden states does.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "chat",
        stop_token: str | None = None,
        as_base: bool = False,
    ):
        self.tokenizer, self.as_base = tokenizer, as_base
        own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        self.template = {"chat": own or RAW_TEMPLATE, "raw": RAW_TEMPLATE}.get(template, template)
        self.bos, self.eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        self._adds_bos = adds_bos(tokenizer)
        self._named_stop = stop_token
        self._prompts: dict[str, tuple[int, ...]] = {}

    @functools.cached_property
    def stop_token(self) -> int:
        """Id of what ends a response that does not tell. ConfigError where nothing says it; prompts need none."""
        vocab, wanted = self.tokenizer.get_vocab(), self._named_stop
        if wanted:
            names = [wanted]
        elif found := self._behind_an_answer():
            names = [found]
        else:
            names = [t for t in (self.eos, *END_TOKENS) if t and t in self.template] + [self.eos]
        for name in names:
            if name in vocab:
                return int(vocab[name])
        raise ConfigError(f"the tokenizer has no stop token {wanted or self.eos!r}: name one with --stop-token")

    def _behind_an_answer(self) -> str | None:
        """The token that the template ends an answer with, or None where it does not say.

        Of several in a row the tokenizer's end; but Phi's template, for one, ends a chat with that only after an
        answer's own end and a line break.
        """
        from sia_local.llama.chat import render_chat

        chat = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": ANSWER}]
        try:
            rendered = render_chat(self.template, chat, self.bos, self.eos, {"add_generation_prompt": False})
        except ConfigError:
            return None
        _, answered, tail = rendered.rpartition(ANSWER)
        if not answered or not tail.strip():
            return None
        end = tail.split()[0]
        if self.eos and self.eos in end:
            return self.eos
        known = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        return next((token for token in known if end.startswith(token)), None)

    def prompt_ids(self, trajectory: Trajectory) -> tuple[int, ...]:
        """Token ids of the rendered prompt, begin-of-sequence once where the tokenizer adds one."""
        # A base without a template, or asked for raw text, hands its value model the same plain text.
        given = trajectory.raw or bool(self.as_base and trajectory.rendered)
        told = json.dumps(trajectory.told) if trajectory.told else ""
        key = trajectory.rendered if given else f"\0{told}\0{trajectory.prompt}"
        if key not in self._prompts:
            rendered = key
            if not given:
                from sia_local.llama.chat import render_chat

                messages = [{"role": "user", "content": trajectory.prompt}]
                rendered = render_chat(self.template, messages, self.bos, self.eos, trajectory.told)
            ids = self.tokenizer(rendered, add_special_tokens=False).input_ids
            if self._adds_bos and ids[:1] != [self.tokenizer.bos_token_id]:
                ids = [self.tokenizer.bos_token_id, *ids]
            self._prompts[key] = tuple(ids)
        return self._prompts[key]

    def example(self, trajectory: Trajectory) -> Example:
        prompt = self.prompt_ids(trajectory)
        response = list(trajectory.tokens)
        if trajectory.finish == "stop":
            response.append(self.stop_token if trajectory.stop is None else trajectory.stop)
        reward = float("nan") if trajectory.reward is None else trajectory.reward
        return Example((*prompt, *response), len(prompt), trajectory.prompt_id, reward, trajectory.branches)


@dataclass(frozen=True)
class Split:
    """Training and held-out examples, no prompt in both; mean and std of the training rewards.

    A prompt is what the value model reads of it: its `prompt_id` here, whatever numbers the files give.
    """

    train: list[Example]
    held_out: list[Example]
    mean: float
    std: float
    dropped: int  # examples longer than the limit or without a response


def load_split(
    paths: Iterable[str | os.PathLike[str]],
    reader: Reader,
    n_vocab: int,
    held_out: float,
    max_length: int,
    seed: int,
    limit: int | None = None,
) -> Split:
    """Reads scored trajectories. DataError for empty, unscored, NaN or constant data, or ids out of range."""
    trajectories = list(in_order(paths))[:limit]
    check_rewards(trajectories)
    examples = [reader.example(t) for t in trajectories]
    fitting = [e for e in examples if e.start < len(e.ids) <= max_length]
    seen: dict[tuple[int, ...], int] = {}
    kept = [dataclasses.replace(e, prompt_id=seen.setdefault(e.ids[: e.start], len(seen))) for e in fitting]
    if not kept:
        raise DataError(f"all {len(examples)} trajectories are empty or longer than {max_length} tokens")
    highest = max(max(*e.ids, *(t for b in e.branches for t in b.ids)) for e in kept)
    if highest >= n_vocab:
        raise DataError(
            f"the trajectories hold token {highest}, the backbone's vocabulary ends at {n_vocab - 1}: they were "
            "sampled from a base with another tokenizer"
        )
    if len(seen) < 2:
        raise DataError("all trajectories answer one prompt; the held-out split needs at least two")
    n_held_out = min(len(seen) - 1, max(1, round(len(seen) * held_out)))
    chosen = set(np.random.default_rng(seed).permutation(len(seen))[:n_held_out].tolist())
    train = [e for e in kept if e.prompt_id not in chosen]
    rewards = np.array([e.reward for e in train])
    if rewards.std() == 0:
        raise DataError(f"all {len(train)} training rewards are {rewards[0]}: a constant reward teaches nothing")
    rest = [e for e in kept if e.prompt_id in chosen]
    return Split(train, rest, float(rewards.mean()), float(rewards.std()), len(examples) - len(kept))


def batches(examples: Sequence[Example], size: int, rng: np.random.Generator | None) -> list[list[int]]:
    """Indices in batches of similar length, so that little is padding; shuffled with `rng`, else in order."""
    order = np.arange(len(examples)) if rng is None else rng.permutation(len(examples))
    lengths = np.array([len(e.ids) for e in examples])
    window = size * 32 if rng is not None else max(1, len(order))
    out = []
    for at in range(0, len(order), window):
        part = order[at : at + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        out += [part[i : i + size].tolist() for i in range(0, len(part), size)]
    if rng is not None:
        out = [out[i] for i in rng.permutation(len(out))]
    return out
