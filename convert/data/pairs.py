"""Trajectories taken over: from a data set of prompts and responses, or from texts sampled before."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sia_local.config import TemplateSettings
from sia_local.errors import DataError
from sia_local.files import file_mark
from sia_local.prompts import INPUTS, distinct, with_input

from ..settings import settings_of
from .outputs import Appender
from .rollouts import Rendering, RolloutConfig
from .trajectories import Shard, Trajectory, read_jsonl, read_trajectories

PROMPT_FIELDS = ("prompt", "instruction", "question", "query")
RESPONSE_FIELDS = ("response", "completion", "output", "answer", "chosen")
REWARD_FIELDS = ("reward", "score")
# Said by name when they hold something, since a text means something else without them.
IGNORED_FIELDS = ("system", "history", "messages", "rejected")


def take_pairs(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str],
    shard: Shard | None = None,
    config: RolloutConfig | None = None,
    limit: int | None = None,
) -> int:
    """Turns a JSONL of prompt/response pairs (and rewards, if it has them) into trajectories; returns how many.

    The base GGUF gives the tokenizer; config: how it is spoken to, by chat template or in raw text; limit: of prompts,
    the first ones. Equal prompts share a prompt_id; a row whose id stood before has its line behind it. What an
    instruction is about (`input`) is part of the prompt; fields that are not used are counted on stderr. DataError for
    a line without prompt and response, and for an output begun with another base, other pairs or another chat template.
    """
    from sia_local.llama.model import Model
    from sia_local.llama.templates import find_template

    config, shard = config or RolloutConfig(), shard or Shard()
    spoken = {"raw": config.raw, **_spoken(config)}
    numbers: dict[str, int] = {}
    taken: set[str] = set()
    ignored: Counter[str] = Counter()
    new = 0
    decisive = {"pairs": True, "base": file_mark(base), **spoken}
    with Appender(out, decisive) as append, Model(base, vocab_only=True) as model:
        model.template = find_template(config.chat_template) if config.chat_template is not None else None
        rendering = Rendering(model, config)
        for line, entry in read_jsonl(source):
            column, response = _named(entry, PROMPT_FIELDS), _named(entry, RESPONSE_FIELDS)
            if column is None or response is None:
                raise DataError(
                    f"{source}, line {line}: expected a prompt ({', '.join(PROMPT_FIELDS)}) and a response "
                    f"({', '.join(RESPONSE_FIELDS)}), found {', '.join(entry) or 'nothing'}"
                )
            prompt, response = with_input(entry[column], column, entry), entry[response]
            p = numbers.setdefault(prompt, len(numbers))
            # Before rows of other shards are left out, so that none of theirs gets the same.
            id = distinct(str(entry.get("id", f"{p}-{line}")), line, taken)
            if not shard.mine(p) or (limit is not None and p >= limit):
                continue
            unused = IGNORED_FIELDS if column == "instruction" else (*IGNORED_FIELDS, *INPUTS)
            ignored.update(name for name in unused if entry.get(name))
            reward = next((entry[name] for name in REWARD_FIELDS if isinstance(entry.get(name), (int, float))), None)
            pair = Trajectory(
                id=id,
                prompt_id=p,
                prompt=prompt,
                rendered=rendering.rendered(prompt),
                tokens=model.tokenize(response),
                response=response,
                finish=str(entry.get("finish", "stop")),
                reward=None if reward is None else float(reward),
                raw=rendering.raw,
                told=rendering.told,
            )
            if not append.check_same(pair, reward=True):
                append(pair.to_json())
                new += 1
        if not taken:
            raise DataError(f"{source} has no pairs: expected JSONL with prompt and response")
    for name, count in ignored.items():
        print(f"{source}: the field {name} of {count} rows is not used", file=sys.stderr)
    return new


def take_texts(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str],
    config: RolloutConfig | None = None,
    limit: int | None = None,
) -> int:
    """Takes over what `sia-convert rollouts` wrote before, elsewhere; returns how many texts are new in `out`.

    source: trajectories, also packed with gzip or xz; of its prompts the first `limit`. The base GGUF and config say
    what a prompt reads like. DataError for a text that this base, so spoken to, did not write: another rendering of the
    prompt, or token ids beyond its vocabulary.
    """
    from sia_local.llama.model import Model
    from sia_local.llama.templates import find_template

    config = config or RolloutConfig()
    decisive = {"texts": file_mark(source), "base": file_mark(base), **_spoken(config)}
    new = 0
    with Appender(out, decisive) as append, Model(base, vocab_only=True) as model:
        model.template = find_template(config.chat_template) if config.chat_template is not None else None
        rendering = Rendering(model, config)
        prompts: set[int] = set()
        for text in read_trajectories([source]):
            if text.prompt_id not in prompts and len(prompts) == limit:
                continue
            prompts.add(text.prompt_id)
            if (expected := rendering.rendered(text.prompt)) != text.rendered:
                raise DataError(
                    f"{source}, text {text.id}: the base read {text.rendered[:60]!r}; this base reads "
                    f"{expected[:60]!r}: take texts that were sampled by it, with the same chat template"
                )
            if (highest := max(text.tokens, default=0)) >= model.n_vocab:
                raise DataError(f"{source}, text {text.id}: token {highest} is beyond this base's {model.n_vocab}")
            if not append.check_same(text, reward=True):
                append(text.to_json())
                new += 1
        if not new and not append.done:
            raise DataError(f"{source} holds no texts: expected what `sia-convert rollouts` writes")
    return new


def _spoken(config: TemplateSettings) -> dict[str, Any]:
    return {**settings_of(TemplateSettings, config), "chat_template": config.template_mark}


def _named(entry: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these fields that holds text."""
    return next((name for name in names if isinstance(entry.get(name), str)), None)
