"""Sparse inference-time alignment on llama.cpp.

    from sia_local import SIA, SiaConfig
    with SIA.load("base.gguf", value="value.gguf") as sia:
        for step in sia.generate("Once upon a time", SiaConfig(beta=2.0), max_tokens=100, seed=7):
            print(step.text, end="", flush=True)

Names are imported on first use, so that `import sia_local` and the command line's help stay instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import SamplingConfig, SiaConfig
    from .errors import SiaError
    from .generation.decode import Candidates, Prompt, Stats, Step
    from .generation.processor import SiaLogitsProcessor
    from .generation.sia import SIA, Completion

__version__ = "0.1.0"

_HOMES = {
    "SIA": "generation.sia",
    "Completion": "generation.sia",
    "SiaConfig": "config",
    "SamplingConfig": "config",
    "Step": "generation.decode",
    "Stats": "generation.decode",
    "Candidates": "generation.decode",
    "Prompt": "generation.decode",
    "SiaError": "errors",
    "SiaLogitsProcessor": "generation.processor",
}
__all__ = [
    "SIA",
    "Candidates",
    "Completion",
    "Prompt",
    "SamplingConfig",
    "SiaConfig",
    "SiaError",
    "SiaLogitsProcessor",
    "Stats",
    "Step",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
