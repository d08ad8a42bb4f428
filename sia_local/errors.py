"""Everything sia_local raises on purpose. A message is one sentence: what was given, expected, and to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

# Ends the process with a sentence where C code would abort it. Set by the command line; other programs are their own.
give_up: Callable[[str], NoReturn] | None = None


CONTROLS = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


class SiaError(Exception):
    """Root of the hierarchy; the command line prints it as one line and exits with 2. What a message quotes of a file
    holds no control characters, which could steer a terminal, and no page."""

    def __init__(self, message: str = ""):
        message = message.translate(CONTROLS)
        super().__init__(message if len(message) <= 1500 else f"{message[:1000]} … {message[-400:]}")


class ConfigError(SiaError, ValueError):
    """An option or argument outside its range, or options that exclude each other."""


class ModelFileError(SiaError):
    """A model file that is missing, empty, truncated, not GGUF, or that llama.cpp cannot load."""


class IncompatibleError(SiaError):
    """Two files that do not fit: vocabularies, widths, a head that is missing, an unsupported architecture."""


class ContextFullError(SiaError):
    """A prompt or a history that does not fit the context. tokens: of it; holds: tokens the context does."""

    def __init__(self, message: str, tokens: int | None = None, holds: int | None = None):
        super().__init__(message)
        self.tokens, self.holds = tokens, holds


class NumericError(SiaError):
    """NaN or infinite logits or values."""


class DataError(SiaError):
    """A data file (prompts, trajectories, profile) that cannot be read as what it should be."""
