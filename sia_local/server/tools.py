"""The functions a request offers: checked, shown to the template, demanded by a grammar where one must be called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..generation.sia import SIA
from ..llama.grammar import gathered, schema_grammar
from .calls import HERMES, LLAMA, MISTRAL, Calls, Form, find_form
from .errors import RefusedError
from .fields import ChatBody, NamedChoice

MOST_TOOLS = 128


@dataclass(frozen=True)
class Offer:
    """shown: what the template is told; told: what the first message is headed with where it cannot be told. functions:
    JSON schemas of the parameters by name; form: how calls of them are written, None where nobody can tell. must: one
    has to be called. left_out: fields of the request that change nothing with this model."""

    shown: list[dict[str, Any]] = field(default_factory=list)
    told: str = ""
    functions: dict[str, Any] = field(default_factory=dict)
    form: Form | None = None
    must: bool = False
    several: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """What the text must show though it may be a control token."""
        return self.form.marks if self.form is not None else ()

    def splitter(self) -> Calls | None:
        return Calls(self.form, self.functions) if self.form is not None else None

    @property
    def grammar(self) -> str | None:
        """GBNF of one call or more; None where text will do."""
        if not self.must or self.form is None:
            return None
        named = "parameters" if self.form is LLAMA else "arguments"
        calls: list[dict[str, Any]] = []
        definitions: dict[str, Any] = {}
        for i, (name, schema) in enumerate(self.functions.items()):
            parameters, own = gathered(schema, f"parameters{i}-")
            definitions |= own
            # The name comes first, so that a stream can tell it before the arguments are written.
            properties = {"name": {"const": name}, named: parameters}
            calls.append({"type": "object", "properties": properties, "required": ["name", named]})
        one: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
        if self.form is MISTRAL:
            listed = {"type": "array", "items": one, "minItems": 1}
            listed = listed if self.several else {**listed, "maxItems": 1}
            return _within('"[TOOL_CALLS]" call', {**listed, "$defs": definitions})
        one["$defs"] = definitions
        if self.form is LLAMA:
            return _within('call ("; " call)*' if self.several else "call", one)
        marked = '"<tool_call>\\n" call "\\n</tool_call>"'
        return _within(f'{marked} ("\\n" {marked})*' if self.several else marked, one)


NO_OFFER = Offer()


def offer(sia: SIA, body: ChatBody) -> Offer:
    """What a chat offers. Raises RefusedError for what cannot be offered."""
    choice, template = body.tool_choice, sia.model.chat_template or ""
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise RefusedError(400, "tool_choice wants a call, but there are no tools; give some", param="tool_choice")
        return NO_OFFER
    if len(body.tools) > MOST_TOOLS:
        raise RefusedError(400, f"{len(body.tools)} tools were given; expected at most {MOST_TOOLS}", param="tools")
    functions = {}
    for i, tool in enumerate(body.tools):
        if tool.type != "function" or tool.function is None:
            message = f"tools[{i}].type is {tool.type!r}; only functions are called, give type function"
            raise RefusedError(400, message, param=f"tools[{i}].type")
        functions[tool.function.name] = tool.function.parameters or {"type": "object", "properties": {}}
    if choice == "none":
        return NO_OFFER
    must = choice not in (None, "auto")
    if "tools" not in template and not must:
        # Many clients offer their tools to every model.
        return Offer(left_out=("tools",))
    shown = [tool.model_dump(exclude_none=True) for tool in body.tools]
    several = body.parallel_tool_calls is not False
    if isinstance(choice, NamedChoice):
        several = False
        name = choice.function.name
        if name not in functions:
            message = f"tool_choice names {name!r}; expected one of {', '.join(functions)}"
            raise RefusedError(400, message, param="tool_choice")
        functions = {name: functions[name]}
    form = find_form(template) or (HERMES if must else None)
    if "tools" not in template:
        told = _description([tool["function"] for tool in shown if tool["function"]["name"] in functions])
        return Offer([], told, functions, form, must, several)
    return Offer(shown, "", functions, form, must, several)


def _description(functions: Sequence[dict[str, Any]]) -> str:
    """Functions in words, as Hermes' template tells of them."""
    listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    form = '<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'
    return f"These functions can be called:\n{listed}\nAnswer with a call of one that fits:\n{form}\n\n"


def _within(root: str, schema: dict[str, Any]) -> str:
    """A grammar whose rule `call` is that of a schema."""
    rules = schema_grammar(schema).splitlines()
    rules = ["call" + rule[4:] if rule.startswith("root ::=") else rule for rule in rules]
    return "\n".join([f"root ::= {root}", *rules])
