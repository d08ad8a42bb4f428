"""What llama-cpp-python's own generation takes from a caller. Imports all of that package, class `Llama` included."""

from __future__ import annotations

from typing import Any

from llama_cpp import LogitsProcessorList


class ProcessorList(LogitsProcessorList):
    """A LogitsProcessorList whose processors stay. llama-cpp-python adds `logit_bias=` by extend(), takes what that
    returns for the list, and so drops every processor that a caller gave, while the bias stays in the caller's list."""

    def extend(self, more: Any) -> ProcessorList:  # type: ignore[override]
        return ProcessorList([*self, *more])
