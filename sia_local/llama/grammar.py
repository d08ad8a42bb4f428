"""JSON schemas as GBNF grammars, by llama-cpp-python's own converter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

# A literal of GBNF, or a class of characters.
_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The GBNF grammar of a JSON schema; of an empty one, that of any JSON object. Nothing is fetched for a `$ref`.

    Raises ConfigError for a schema that has no such grammar.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        written = json_schema_to_gbnf(json.dumps(schema or {"type": "object"}))
    except Exception as error:
        raise ConfigError(
            f"the JSON schema cannot be turned into a grammar ({type(error).__name__}: {error}); use types, "
            "properties, items, enum, const, anyOf and local $refs"
        ) from None
    return _PART.sub(_no_raw_characters, written)


def _no_raw_characters(part: re.Match[str]) -> str:
    """A class of all characters but some stands inside a JSON string, where quotes, backslashes and control characters
    are never written as they are; the converter lets them through."""
    text = part.group()
    return text[:-1] + r'"\\\x7F\x00-\x1F]' if text.startswith("[^") else text
