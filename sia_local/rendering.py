"""A chat as token ids: rendered by a template, with what a model wrote kept as the ids it wrote.

Sampled text is often not tokenized the way it was sampled. Tokenizing an answer anew would show the model other
ids than it wrote, and would end the shared prefix in the middle of the answer: the next turn would be encoded
from there instead of from its own beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from .runtime import Model, render_chat
from .text import Written

_MARK = "\ue000{}\ue001"  # private use: no template and hardly any text holds it


def tokenize_chat(model: Model, template: str, messages: Sequence[dict[str, str]]) -> list[int]:
    """Tokens of a rendered chat; the beginning-of-sequence token once, whoever writes it.

    Contents that are `Written` keep their ids, as long as the template takes them over unchanged.
    """
    bos = model.token_text(model.bos) if model.bos >= 0 else ""
    eos = model.token_text(model.eos) if model.eos >= 0 else ""
    text = render_chat(template, messages, bos, eos)
    plain = model.tokenize(text, add_special=True, parse_special=True)
    written = [m["content"] for m in messages if isinstance(m.get("content"), Written)]
    tokens = plain
    if written:
        marked, at = [], 0
        for message in messages:
            if isinstance(message.get("content"), Written):
                message, at = {**message, "content": _MARK.format(at)}, at + 1
            marked.append(message)
        tokens = _with_ids(model, render_chat(template, marked, bos, eos), written, text, plain)
    return tokens[1:] if len(tokens) > 1 and tokens[0] == tokens[1] == model.bos else tokens


def _with_ids(model: Model, rendered: str, written: Sequence[str], text: str, plain: list[int]) -> list[int]:
    """`plain` with written ids in their places; `plain` itself wherever that would change the text."""
    tokens, rest, whole = [], rendered, ""
    for i, content in enumerate(written):
        before, mark, rest = rest.partition(_MARK.format(i))
        if not mark or not isinstance(content, Written) or _text(model, content.tokens) != content:
            return plain
        tokens += model.tokenize(before, add_special=i == 0, parse_special=True)
        tokens += content.tokens
        whole += before + content
    tokens += model.tokenize(rest, parse_special=True)
    return tokens if whole + rest == text and _text(model, tokens) == _text(model, plain) else plain


def _text(model: Model, tokens: Sequence[int]) -> str:
    return b"".join(map(model.piece, tokens)).decode("utf-8", "replace")
