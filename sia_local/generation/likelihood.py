"""How likely a given text is: the base's log-probabilities of its tokens, or those of the base as it is steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config import SiaConfig
from ..errors import ConfigError
from ..records import Float64, Prompt, Values
from ..steering.choice import Choice
from ..steering.tilt import log_softmax
from .decode import Base


def log_likelihoods(
    base: Base,
    value: Values | None,
    slot: int,
    prompt: Prompt,
    tokens: Sequence[int],
    config: SiaConfig,
    known: int = 0,
) -> Float64:
    """log P of every token after the first `known`, each given the prompt and the tokens before it.

    float64[len(tokens) - known], nats. What config says of candidates, gate and beta decides where and how far
    steering moves them. The tail is kept and the temperature is 1, so that every token has a probability: with the gate
    `off` they are the base's own. Values are known up to a constant, which would lift or sink all candidates against
    the tail, so their mean is subtracted. A gate's memory begins at the first counted token. The slot's content is
    replaced. Raises ConfigError for filters (penalties, top_p, a grammar), which would forbid tokens.
    """
    if config.sampling.filters:
        raise ConfigError(
            "the likelihood of a given text was asked for under a penalty, a logit bias, top_p, min_p or a grammar, "
            "which forbid tokens; give settings without them"
        )
    config = replace(config.with_sampling(temperature=1.0), tail=True, center=True)
    choice = Choice(config, 0, value, None)
    source = value if choice.uses_value else None
    out = np.empty(len(tokens) - known)
    base.begin(slot, prompt.tokens)
    if source is not None:
        source.begin(slot, prompt)
    for i, token in enumerate(tokens):
        if i >= known:
            look = choice.look(base.logits([slot])[0])
            scored = source.score([(slot, look.asked)], ())[0] if source is not None and look.asks else None
            # Of the scores: a strong tilt leaves probabilities too small for a float.
            logp = log_softmax(choice.weigh(look, scored).scores)
            out[i - known] = logp[np.flatnonzero(look.ids == token)[0]]
        base.accept(slot, token)
        if source is not None:
            source.accept(slot, token)
    return out
