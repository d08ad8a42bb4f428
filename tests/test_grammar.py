"""What a JSON schema's grammar lets through is JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sia_local.errors import ConfigError
from sia_local.llama import samplers
from sia_local.llama.grammar import schema_grammar
from sia_local.llama.model import Model

STRING = {"type": "string"}
NAMED = {"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": STRING}
ODD = {"type": "object", "properties": {'a"b': STRING}, "required": ['a"b'], "additionalProperties": False}
# Two definitions of one name, in two places.
TWICE = {
    "$defs": {"a": {"$defs": {"c": {"const": "x"}}}, "b": {"$defs": {"c": {"const": "y"}}}},
    "type": "array",
    "prefixItems": [{"$ref": "#/$defs/a/$defs/c"}, {"$ref": "#/$defs/b/$defs/c"}],
}


def taken(model: Model, grammar: str, text: str) -> str:
    """The beginning of a text, token by token, that a grammar lets through."""
    chain = samplers.SamplerChain([samplers.grammar(model, grammar)])
    every = np.arange(model.n_vocab, dtype=np.int32)
    out = b""
    for char in text:
        (token,) = model.tokenize(char, parse_special=False, add_special=False)
        if token not in chain.apply(every, np.zeros(model.n_vocab, np.float32))[0]:
            break
        chain.accept(token)
        out += model.piece(token)
    return out.decode()


@pytest.mark.parametrize(
    "schema, text, until",
    [
        (STRING, '"a[^"', 5),
        (STRING, '"a\\n"', 5),
        (STRING, '"a\n"', 2),
        (STRING, '"a\t"', 2),
        ({"type": "string", "pattern": "^a.[^b]$"}, '"acc"', 5),
        ({"type": "string", "pattern": "^a.[^b]$"}, '"a"', 2),
        ({"type": "string", "pattern": "^a.[^b]$"}, '"ac"', 3),
        (NAMED, '{"ac":"x"}', 10),
        (NAMED, '{"a\n', 3),
        ({"const": "[^x"}, '"[^x"', 5),
        ({"const": 'a"b'}, '"a\\"b"', 6),
        ({"enum": ["a\\b", "x"]}, '"a\\b"', 3),
        ({"enum": ["a\\b", "x"]}, '"a\\\\b"', 6),
        ({"const": {"k": ["a\n"]}}, '{"k": ["a\\n"]}', 14),
        (ODD, '{"a\\"b":"a"}', 12),
        (ODD, "{}", 1),
        ({"$defs": {'a"b': {"enum": ["x"]}}, "$ref": '#/$defs/a"b'}, '"x"', 3),
        (TWICE, '["x","y"]', 9),
        (TWICE, '["x","x"]', 6),
        ({"type": ["array", "null"], "items": {"type": "boolean"}}, "[1]", 1),
        ({"type": ["string", "null"], "enum": ["x", None]}, '"y"', 1),
        (
            {
                "$defs": {"n": {"anyOf": [{"const": 1}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}},
                "$ref": "#/$defs/n",
            },
            "[[1]]",
            5,
        ),
        ({"anyOf": [{"const": 1}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]}, "[[1]]", 5),
        ({"type": "array", "items": {"anyOf": [{"const": 3}, {"$ref": "#/items/anyOf/0"}]}}, "[3]", 3),
    ],
)
def test_a_string_holds_no_raw_quotes_and_control_characters(
    make_gguf: Callable[..., Path], schema: Any, text: str, until: int
) -> None:
    with Model(make_gguf("base", ascii=True)) as model:
        assert taken(model, schema_grammar(schema), text) == text[:until]


def test_a_character_beyond_16_bits_is_written_as_it_is() -> None:
    written = schema_grammar({"type": "object", "properties": {"\U0001f600": {"enum": ["\U0001f44d", "\u00e9"]}}})
    assert '"\\"\U0001f44d\\""' in written and "\U0001f600" in written and "\\ud83d" not in written


def test_counts_that_would_fill_the_memory_are_refused() -> None:
    for schema in ({"type": "string", "minLength": 10**9}, {"items": {"type": "array", "maxItems": 5000.0}}):
        with pytest.raises(ConfigError, match=r"has m\w+ \S+; expected at most 4096"):
            schema_grammar(schema)
    assert schema_grammar({"type": "string", "maxLength": 4096})


def test_a_reference_to_nothing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a \$ref to '#/\$defs/gone', which is not in it"):
        schema_grammar({"items": {"$ref": "#/$defs/gone"}, "type": "array"})
