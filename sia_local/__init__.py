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
    from .config import SamplingConfig as SamplingConfig
    from .config import Setup as Setup
    from .config import SiaConfig as SiaConfig
    from .errors import SiaError as SiaError
    from .evaluation.profile import Profile as Profile
    from .generation.best_of import BestOf as BestOf
    from .generation.best_of import best_of as best_of
    from .generation.nudge import Nudged as Nudged
    from .generation.processor import SiaLogitsProcessor as SiaLogitsProcessor
    from .generation.sia import SIA as SIA
    from .generation.writing import Generation as Generation
    from .generation.writing import Run as Run
    from .records import Candidates as Candidates
    from .records import Completion as Completion
    from .records import Prompt as Prompt
    from .records import Request as Request
    from .records import Stats as Stats
    from .records import Step as Step
    from .records import Tally as Tally
    from .rewards.load import load_reward as load_reward
    from .values.guides import Guides as Guides
    from .values.sources import ValuePath as ValuePath

__version__ = "0.2.0"

_HOMES = {
    "SIA": "generation.sia",
    "Generation": "generation.writing",
    "Run": "generation.writing",
    "BestOf": "generation.best_of",
    "best_of": "generation.best_of",
    "Nudged": "generation.nudge",
    "SiaLogitsProcessor": "generation.processor",
    "SiaConfig": "config",
    "SamplingConfig": "config",
    "Setup": "config",
    "Request": "records",
    "Prompt": "records",
    "Step": "records",
    "Stats": "records",
    "Tally": "records",
    "Candidates": "records",
    "Completion": "records",
    "Guides": "values.guides",
    "ValuePath": "values.sources",
    "load_reward": "rewards.load",
    "Profile": "evaluation.profile",
    "SiaError": "errors",
}
__all__ = [
    "SIA",
    "BestOf",
    "Candidates",
    "Completion",
    "Generation",
    "Guides",
    "Nudged",
    "Profile",
    "Prompt",
    "Request",
    "Run",
    "SamplingConfig",
    "Setup",
    "SiaConfig",
    "SiaError",
    "SiaLogitsProcessor",
    "Stats",
    "Step",
    "Tally",
    "ValuePath",
    "best_of",
    "load_reward",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
