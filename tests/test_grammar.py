"""What a JSON schema's grammar lets through is JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sia_local.llama import samplers
from sia_local.llama.grammar import schema_grammar
from sia_local.llama.model import Model

STRING = {"type": "string"}
NAMED = {"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": STRING}
ODD = {"type": "object", "properties": {'a"b': STRING}, "required": ['a"b'], "additionalProperties": False}


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
    ],
)
def test_a_string_holds_no_raw_quotes_and_control_characters(
    make_gguf: Callable[..., Path], schema: Any, text: str, until: int
) -> None:
    with Model(make_gguf("base", ascii=True)) as model:
        assert taken(model, schema_grammar(schema), text) == text[:until]
