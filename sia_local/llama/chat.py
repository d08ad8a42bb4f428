"""A chat as token ids: rendered by a template, with what a model wrote kept as the ids it wrote.

Sampled text is often not tokenized the way it was sampled. Tokenizing an answer anew would show the model other
ids than it wrote, and would end the shared prefix in the middle of the answer: the next turn would be encoded
from there instead of from its own beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..errors import ConfigError
from ..records import Message
from ..text import Written
from .model import Model
from .templates import TemplateError, render

# Tokens that a template may add to a chat, or one template to a prompt beyond another.
TEMPLATE_ROOM = 512
REASONING = "reasoning_content"
_MARK = "\ue000{}\ue001"  # private use: no template and hardly any text holds it


def tokenize_chat(
    model: Model, template: str, messages: Sequence[Message], extra: Mapping[str, Any] | None = None
) -> list[int]:
    """Tokens of a rendered chat; the beginning-of-sequence token once, whoever writes it. extra: see render_chat.

    Contents that are `Written` keep their ids. Others that spell a control token, such as <|im_end|>, stay the text
    they are, so that nothing typed ends its turn. Both hold where the template takes contents over unchanged and
    the tokenizer puts no space before a text (most of SentencePiece do); elsewhere the rendered chat is tokenized as
    a whole, control tokens included.
    """
    messages = _fitting(template, messages)
    bos = model.token_text(model.bos) if model.bos >= 0 else ""
    eos = model.token_text(model.eos) if model.eos >= 0 else ""
    text = render_chat(template, messages, bos, eos, extra)
    tokens = plain = model.tokenize(text, add_special=True, parse_special=True)
    held: list[tuple[str, Sequence[int]]] = []
    marked = []
    for message in messages:
        ids = _own_ids(model, message.get("content"))
        if ids is not None:
            held.append((message["content"], ids))
            message = {**message, "content": _MARK.format(len(held) - 1)}
        marked.append(message)
    if held:
        tokens = _with_ids(model, render_chat(template, marked, bos, eos, extra), held, text, plain)
    return tokens


def _own_ids(model: Model, content: object) -> Sequence[int] | None:
    """Ids a content has whatever stands around it; None for ordinary text, which may merge with the template's."""
    if not isinstance(content, str):
        return None
    if isinstance(content, Written) and _text(model, content.tokens) == content:
        return content.tokens
    literal = model.tokenize(content)
    ordinary = literal == model.tokenize(content, parse_special=True)
    return None if ordinary or _text(model, literal) != content else literal


def _with_ids(
    model: Model, rendered: str, held: Sequence[tuple[str, Sequence[int]]], text: str, plain: list[int]
) -> list[int]:
    """`plain` with held ids in their places; `plain` itself wherever that would change the text."""
    tokens, rest, whole = list[int](), rendered, ""
    for i, (content, ids) in enumerate(held):
        before, mark, rest = rest.partition(_MARK.format(i))
        if not mark:
            return plain
        tokens += model.tokenize(before, add_special=i == 0, parse_special=True)
        tokens += ids
        whole += before + content
    tokens += model.tokenize(rest, parse_special=True)
    if whole + rest != text:
        return plain
    # Literal control tokens have a text, parsed ones none, so that the whole can be compared without them only.
    literal = any(ids is not getattr(content, "tokens", None) for content, ids in held)
    return tokens if literal or _text(model, tokens) == _text(model, plain) else plain


def _text(model: Model, tokens: Sequence[int]) -> str:
    return b"".join(map(model.piece, tokens)).decode("utf-8", "replace")


def render_chat(
    template: str, messages: Sequence[Message], bos: str = "", eos: str = "", extra: Mapping[str, Any] | None = None
) -> str:
    """A chat as `template` (jinja) spells it, ending in an opened assistant turn.

    extra: what else the template is told, such as `tools`; `add_generation_prompt=False` leaves the turn unopened.
    A system turn that the template refuses or leaves out begins the user turn behind it, as with llama-server.
    Raises ConfigError when the template refuses the messages.
    """
    told = dict(extra or {})
    opens = bool(told.pop("add_generation_prompt", True))
    try:
        return render(template, _as_named(template, _fitting(template, messages)), bos, eos, opens, told)
    except (TemplateError, TypeError) as error:
        raise ConfigError(
            f"the chat template cannot render this conversation ({error}); give another template, or let it "
            "be continued as plain text"
        ) from error


def _fitting(template: str, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages, or the first two as one where the template has no place for a system turn."""
    if [message.get("role") for message in messages[:2]] != ["system", "user"]:
        return messages
    system, user, *rest = messages
    told, said = system.get("content"), user.get("content")
    if not isinstance(told, str) or not isinstance(said, str) or _takes_system(template):
        return messages
    return [{**user, "content": f"{told}\n{said}"}, *rest]


@lru_cache(maxsize=16)
def _takes_system(template: str) -> bool:
    """Whether a chat shows its system turn; true, too, of a template that fails without one as well."""
    system, user = ({"role": role, "content": _MARK.format(role)} for role in ("system", "user"))
    try:
        return system["content"] in render(template, [system, user], "", "", True, {})
    except TemplateError:
        pass
    try:
        render(template, [user], "", "", True, {})
    except TemplateError:
        return True
    return False


def _as_named(template: str, messages: Sequence[Message]) -> list[Message]:
    """Messages whose reasoning has the name that the template knows it by."""
    if REASONING in template or "thinking" not in template:
        return list(messages)
    return [{"thinking" if name == REASONING else name: x for name, x in message.items()} for message in messages]
