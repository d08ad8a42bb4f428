"""Tools, a template that shows them, and grammars that stand in for a model that calls them."""

from __future__ import annotations

import json
from typing import Any

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | map(attribute='function.name') | join }} in <tool_call>"
    "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": schema}}


TOOLS = [tool("look", where={"enum": ["up", "down"]}), tool("wait", long={"type": "boolean"})]


def written(text: str) -> str:
    """A grammar of one text, which stands in for a model that has learned to call."""
    return f"root ::= {json.dumps(text)}"
