"""The floor of a run: its llama.cpp calls again, and nothing else.

`Recorder` notes every decode and every KV operation a run makes on some contexts. `play` repeats them with the
same batches: what then remains of the run's time is llama.cpp, and the difference is what this program adds. `save`
writes them down for a program in C (examples/floor.c), which shows what the calls cost without any Python.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import atomic_write
from ..llama.context import Batch, Context

TRACE_VERSION = 1
# How an operation is called, and its number in a trace; their arguments are whole numbers.
_CALLS = {"seq_rm": 1, "seq_cp": 2, "set_embeddings": 3}


@dataclass(frozen=True)
class Filled:
    """What a batch of n rows holds: ids [n] or embeddings [n, n_embd], and the rest as in Batch."""

    token: npt.NDArray[np.int32]
    embd: npt.NDArray[np.float32] | None
    pos: npt.NDArray[np.int32]
    n_seq: npt.NDArray[np.int32]
    seq: npt.NDArray[np.int32]
    output: npt.NDArray[np.int8]

    @classmethod
    def of(cls, batch: Batch) -> Filled:
        n = batch.n
        embd = None if batch.embd is None else batch.embd[:n].copy()
        arrays = (batch.pos, batch.n_seq, batch.seq, batch.output)
        return cls(batch.token[:n].copy(), embd, *(array[:n].copy() for array in arrays))

    def put(self, batch: Batch) -> None:
        n = batch.n = len(self.pos)
        batch.token[:n], batch.pos[:n], batch.n_seq[:n] = self.token, self.pos, self.n_seq
        batch.seq[:n], batch.output[:n] = self.seq, self.output
        if batch.embd is not None:
            batch.embd[:n] = self.embd

    def to_bytes(self) -> bytes:
        rows = self.token.astype("<i4") if self.embd is None else self.embd.astype("<f4")
        ids = [self.seq[i, :used] for i, used in enumerate(self.n_seq)]
        numbers: list[np.ndarray] = [self.pos, self.n_seq, self.output, *ids]
        return struct.pack("<i", len(self.pos)) + rows.tobytes() + b"".join(a.astype("<i4").tobytes() for a in numbers)


@dataclass(frozen=True)
class Op:
    """One call on the context with this number: `decode` of a filled batch, or another of `_CALLS`."""

    context: int
    name: str
    given: Any


class Recorder:
    def __init__(self, contexts: Sequence[Context]):
        self.contexts = contexts
        self.ops: list[Op] = []

    @property
    def rows(self) -> int:
        """Rows decoded."""
        return sum(len(op.given.pos) for op in self.ops if op.name == "decode")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While open, calls on the contexts are run and noted. What was noted before is dropped."""
        self.ops = []
        try:
            for index, context in enumerate(self.contexts):
                self._wrap(index, context)
            yield
        finally:
            for context in self.contexts:
                for name in ("decode", *_CALLS):
                    context.__dict__.pop(name, None)

    def _wrap(self, index: int, context: Context) -> None:
        for name in _CALLS:
            call = getattr(context, name)

            def noted(*args: Any, name: str = name, call: Callable[..., Any] = call) -> Any:
                self.ops.append(Op(index, name, args))
                return call(*args)

            context.__dict__[name] = noted
        decode = context.decode

        def decode_noted() -> None:
            self.ops.append(Op(index, "decode", Filled.of(context.batch)))
            decode()

        context.__dict__["decode"] = decode_noted

    def play(self) -> float:
        """Seconds for the noted calls. The caches must stand as they did when the recording began, or hold a
        continuation of it: a run that begins by forgetting what follows its prompt replays any number of times.
        """
        started = time.perf_counter()
        for op in self.ops:
            context = self.contexts[op.context]
            if op.name == "decode":
                op.given.put(context.batch)
                context.decode()
                context.synchronize()
            else:
                getattr(context, op.name)(*op.given)
        return time.perf_counter() - started

    def save(self, path: str | os.PathLike[str], start: int) -> None:
        """Writes contexts and calls to `path`; those from number `start` on are to be timed. Everything is int32 (and
        float32 embeddings), little endian, in the order examples/floor.c reads it.
        """
        with atomic_write(path, "wb") as out:
            out.write(b"SIAT" + struct.pack("<4i", TRACE_VERSION, len(self.contexts), len(self.ops), start))
            for context in self.contexts:
                o, embd = context.options, context.batch.embd
                numbers = [o.n_ctx, context.n_batch, o.n_seq_max, o.n_threads, *context.kv_types, context.flash]
                numbers += [context.hidden_only, 0 if embd is None else embd.shape[1]]
                out.write(struct.pack("<9i", *numbers))
                for file in (context.model.path, context.adapter and context.adapter.path):
                    name = os.fsencode(file.resolve()) if file else b""
                    out.write(struct.pack("<i", len(name)) + name)
            for op in self.ops:
                if op.name == "decode":
                    out.write(struct.pack("<2i", op.context, 0) + op.given.to_bytes())
                else:
                    # A missing end of a range is -1, "to the last".
                    out.write(struct.pack("<6i", op.context, _CALLS[op.name], *[*map(int, op.given), -1, 0, 0][:4]))
