"""What a person gives becomes the token ids that a base reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, ContextFullError, IncompatibleError
from ..llama.chat import render_chat, tokenize_chat
from ..llama.model import Model
from ..records import Message, Messages, Prompt


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
            raise IncompatibleError(
                f"{model.path.name}: has no chat template, so it cannot answer a chat; give one with chat_template "
                "(--chat-template), or ask with a plain text"
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if any("role" not in message or "content" not in message for message in messages):
            raise ConfigError("a message of the chat has no role or no content; expected both in every message")
        tokens = tokenize_chat(model, template, messages, extra)
        made = Prompt(tuple(tokens), tuple(messages), messages[-1]["content"] if messages else "", extra or {})
    return _fitting(made, n_ctx)


def read_again(
    model: Model, n_ctx: int, prompt: str, rendered: str, raw: bool = False, told: Mapping[str, Any] | None = None
) -> Prompt:
    """The prompt of a text that was written before as the base read it then, whatever its template says today.

    rendered: what it read, empty where that is not known. told: what its template was told, which a value model's own
    still is. Raises as read_prompt does.
    """
    message = {"role": "user", "content": prompt}
    if raw or not rendered or rendered == _rendered(model, message, told):
        return read_prompt(model, n_ctx, prompt, raw, told)
    tokens = model.tokenize(rendered, add_special=True, parse_special=True)
    return _fitting(Prompt(tuple(tokens), (message,), prompt, told or {}), n_ctx)


def _rendered(model: Model, message: Message, told: Mapping[str, Any] | None) -> str | None:
    """As the base's template spells it, None where it has none or refuses."""
    if model.chat_template is None:
        return None
    bos, eos = (model.token_text(token) if token >= 0 else "" for token in (model.bos, model.eos))
    try:
        return render_chat(model.chat_template, [message], bos, eos, told)
    except ConfigError:
        return None


def _fitting(made: Prompt, n_ctx: int) -> Prompt:
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
