"""What a person gives becomes the token ids that a base reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, ContextFullError, IncompatibleError
from ..llama.chat import tokenize_chat
from ..llama.model import Model
from ..records import Messages, Prompt


def read_prompt(
    model: Model, n_ctx: int, prompt: str | Messages, raw: bool = False, extra: Mapping[str, Any] | None = None
) -> Prompt:
    """A prompt as the base reads it; only the model's vocabulary is needed.

    A string is a user turn in the model's chat template; with `raw`, or without a template, it is plain text to
    continue. A list of messages ({"role", "content"}) is a whole chat. extra: what else its template is told. Raises
    ConfigError for an empty prompt, ContextFullError for one of n_ctx tokens or more, IncompatibleError for a chat
    where there is no template.
    """
    template = model.chat_template
    if raw or (template is None and isinstance(prompt, str)):
        if not isinstance(prompt, str):
            raise ConfigError("raw generation takes a string, a list of messages was given")
        tokens = model.tokenize(prompt, add_special=True, parse_special=True)
        made = Prompt(tuple(tokens), None, prompt)
    else:
        if template is None:
            raise IncompatibleError(f"{model.path.name}: has no chat template; give plain text with raw=True (--raw)")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if any("role" not in message or "content" not in message for message in messages):
            raise ConfigError("a message of the chat has no role or no content; expected both in every message")
        tokens = tokenize_chat(model, template, messages, extra)
        made = Prompt(tuple(tokens), tuple(messages), messages[-1]["content"] if messages else "", extra or {})
    if not made.tokens:
        raise ConfigError("the prompt is empty; give at least one character")
    if len(made.tokens) >= n_ctx:
        raise ContextFullError(
            f"the prompt is {len(made.tokens)} tokens, the context holds {n_ctx}; shorten the prompt or "
            "raise the context length (--ctx)",
            len(made.tokens),
            n_ctx,
        )
    return made
