"""JSON schemas as GBNF grammars, by llama-cpp-python's own converter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

# A literal of GBNF, or a class of characters.
_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
# Private use: no schema and hardly any text holds it. The second is how the converter writes the first.
_MARK, _MARKED = "\ue002{}\ue003", re.compile(r"\\ue002(\d+)\\ue003")


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The GBNF grammar of a JSON schema; of an empty one, that of any JSON object. Nothing is fetched for a `$ref`.

    Raises ConfigError for a schema that has no such grammar.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    held: list[str] = []
    try:
        written = json_schema_to_gbnf(json.dumps(_marked(schema or {"type": "object"}, held)))
    except Exception as error:
        raise ConfigError(
            f"the JSON schema cannot be turned into a grammar ({type(error).__name__}: {error}); use types, "
            "properties, items, enum, const, anyOf and local $refs"
        ) from None
    written = _PART.sub(_no_raw_characters, written)
    return _MARKED.sub(lambda mark: held[int(mark[1])], written)


def _marked(schema: Any, held: list[str], names: bool = False) -> Any:
    """A schema whose constants and names of properties are marks where JSON escapes something in them: the converter
    does not escape the escape. held: filled with what GBNF has in their places. names: keys are names of properties.
    """

    def mark(value: Any) -> Any:
        if isinstance(value, str) and "\\" in (escaped := json.dumps(value, ensure_ascii=False)[1:-1]):
            literal = re.sub(r'[\\"]', r"\\\g<0>", escaped)
            if literal not in held:
                held.append(literal)
            return _MARK.format(held.index(literal))
        if isinstance(value, dict):
            return {mark(key): mark(x) for key, x in value.items()}
        return list(map(mark, value)) if isinstance(value, list) else value

    if isinstance(schema, list):
        return [_marked(one, held) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    if names:
        return {mark(name): _marked(x, held) for name, x in schema.items()}
    return {
        key: mark(x) if key in ("const", "enum", "required") else _marked(x, held, key in ("properties", "$defs"))
        for key, x in schema.items()
    }


def _no_raw_characters(part: re.Match[str]) -> str:
    """A class of all characters but some stands inside a JSON string, where quotes, backslashes and control characters
    are never written as they are; the converter lets them through."""
    text = part.group()
    return text[:-1] + r'"\\\x7F\x00-\x1F]' if text.startswith("[^") else text
