"""The floor of a run: its llama.cpp calls again, and nothing else.

`Recorder` notes every decode and every KV operation a run makes on some contexts. `play` repeats them with the
same batches: what then remains of the run's time is llama.cpp, and the difference is what this program adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..runtime import Context

_CALLS = ("seq_rm", "seq_cp", "set_embeddings")


class Recorder:
    def __init__(self, contexts: Sequence[Context]):
        self._contexts = contexts
        self._log: list[Callable[[], Any]] = []
        self.rows = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While open, calls on the contexts are run and noted. What was noted before is dropped."""
        self._log, self.rows = [], 0
        try:
            for context in self._contexts:
                self._wrap(context)
            yield
        finally:
            for context in self._contexts:
                for name in ("decode", *_CALLS):
                    context.__dict__.pop(name, None)

    def _wrap(self, context: Context) -> None:
        for name in _CALLS:
            call = getattr(context, name)

            def noted(*args: Any, call: Callable[..., Any] = call) -> Any:
                self._log.append(lambda: call(*args))
                return call(*args)

            context.__dict__[name] = noted
        decode = context.decode

        def decode_noted() -> None:
            batch, n = context.batch, context.batch.n
            arrays: list[np.ndarray] = [batch.token, batch.pos, batch.n_seq, batch.output, batch.seq]
            if batch.embd is not None:
                arrays.append(batch.embd)
            saved = [(array[:n], np.copy(array[:n])) for array in arrays]

            def again() -> None:
                for target, content in saved:
                    target[...] = content
                batch.n = n
                decode()
                context.synchronize()

            self._log.append(again)
            self.rows += n
            decode()

        context.__dict__["decode"] = decode_noted

    def play(self) -> float:
        """Seconds for the noted calls. The caches must stand as they did when the recording began, or hold a
        continuation of it: a run that begins by forgetting what follows its prompt replays any number of times.
        """
        started = time.perf_counter()
        for call in self._log:
            call()
        return time.perf_counter() - started
