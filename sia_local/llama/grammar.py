"""JSON schemas as GBNF grammars, by llama-cpp-python's own converter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from ..errors import ConfigError

# A literal of GBNF, or a class of characters.
_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
# Private use: no schema and hardly any text holds it. The second is how the converter writes the first.
_MARK, _MARKED = "\ue002{}\ue003", re.compile(r"\\ue002(\d+)\\ue003")

MOST_REPETITIONS = 4096


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The GBNF grammar of a JSON schema; of an empty one, that of any JSON object. Nothing is fetched for a `$ref`.

    Raises ConfigError for a schema that has no such grammar.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    _check_repetitions(schema)
    held: list[str] = []
    whole, definitions = gathered(schema or {"type": "object"}, "definition")
    try:
        written = json_schema_to_gbnf(json.dumps(_marked({**whole, "$defs": definitions}, held)))
    except Exception as error:
        raise ConfigError(
            f"the JSON schema cannot be turned into a grammar ({type(error).__name__}: {error}); use types, "
            "properties, items, enum, const, anyOf and local $refs"
        ) from None
    written = _PART.sub(_no_raw_characters, written)
    return _MARKED.sub(lambda mark: held[int(mark[1])], written)


def _check_repetitions(node: Any) -> None:
    """Raises ConfigError for counts whose repetitions, which are spelled out, would fill the memory."""
    if isinstance(node, list):
        for one in node:
            _check_repetitions(one)
    elif isinstance(node, Mapping):
        for key, x in node.items():
            if key in _COUNTS and isinstance(x, (int, float)) and x > MOST_REPETITIONS:
                raise ConfigError(f"the JSON schema has {key} {x}; expected at most {MOST_REPETITIONS}")
            _check_repetitions(x)


def gathered(schema: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema whose local references go to `#/$defs/name0`, `#/$defs/name1`, …, and these definitions; so it can be
    part of another. The converter tells definitions apart by the last word of their paths, and knows no lists in these.

    Raises ConfigError for a reference to what is not there.
    """
    known: dict[str, str] = {}
    definitions: dict[str, Any] = {}

    def walked(node: Any, names: bool = False) -> Any:
        if isinstance(node, list):
            return [walked(one) for one in node]
        if not isinstance(node, Mapping):
            return node
        out = {key: x if key in _CONSTANT and not names else walked(x, key in _NAMING) for key, x in node.items()}
        if not names and isinstance(ref := node.get("$ref"), str) and ref.startswith("#"):
            if ref not in known:
                known[ref] = f"{name}{len(known)}"
                definitions[known[ref]] = walked(_pointed(schema, ref))
            out["$ref"] = f"#/$defs/{known[ref]}"
        # Of a list of types the converter keeps nothing else that the schema says.
        if not names and isinstance(kinds := node.get("type"), list) and not {"$ref", "anyOf", "oneOf"} & set(node):
            del out["type"]
            return out if {"const", "enum"} & set(node) else {"anyOf": [{**out, "type": kind} for kind in kinds]}
        return out

    inner = walked({key: x for key, x in schema.items() if key not in ("$defs", "definitions")})
    # Beside a reference the converter does not look into the definitions.
    return ({"anyOf": [inner]} if "$ref" in inner else inner), definitions


_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# Keys whose values are mappings by name, and those whose values are no schemas.
_NAMING = ("properties", "$defs", "definitions")
_CONSTANT = ("const", "enum", "required")


def _pointed(schema: Any, ref: str) -> Any:
    """What a local reference points to (RFC 6901)."""
    found = schema
    for part in unquote(ref.removeprefix("#")).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (LookupError, TypeError, ValueError):
            raise ConfigError(f"the JSON schema has a $ref to {ref!r}, which is not in it; add it") from None
    return found


def _marked(schema: Any, held: list[str], names: bool = False) -> Any:
    """A schema whose constants and names of properties are marks where the converter does not write them as JSON has
    them: it does not escape the escape, and halves characters beyond 16 bits. held: filled with what GBNF has in their
    places. names: keys are names of properties.
    """

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            escaped = json.dumps(value, ensure_ascii=False)[1:-1]
            if "\\" not in escaped and max(value, default="") <= "\uffff":
                return value
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
    return {key: mark(x) if key in _CONSTANT else _marked(x, held, key == "properties") for key, x in schema.items()}


def _no_raw_characters(part: re.Match[str]) -> str:
    """A class of all characters but some stands inside a JSON string, where quotes, backslashes and control characters
    are never written as they are; the converter lets them through."""
    text = part.group()
    return text[:-1] + r'"\\\x7F\x00-\x1F]' if text.startswith("[^") else text
