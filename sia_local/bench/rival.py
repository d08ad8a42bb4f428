"""What a user would run instead: llama-cpp-python's own generation, timed by `bench`.

The one place beside `runtime` that imports llama_cpp. It is the competitor, not a part of the program: nothing
but `bench` imports it, and it uses the public class `Llama` and none of the structures `runtime` guards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from llama_cpp import Llama

# Prints nothing; loads what it is given and samples one token of the first: the start-up to compare with.
STARTUP_SCRIPT = """
import sys
from llama_cpp import Llama
n_ctx, n_threads, *paths = sys.argv[1:]
loaded = [Llama(p, n_ctx=int(n_ctx), n_threads=int(n_threads), verbose=False) for p in paths]
tokens = loaded[0].tokenize(b"Hello", add_bos=False)
next(loaded[0].generate(tokens, top_k=10, top_p=1.0, min_p=0.0, temp=1.0))
"""


class Rival:
    """`Llama.generate` at temperature 1 over the top ten, which is as little sampling work as it can be asked."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int, n_gpu_layers: int = 0, flash_attention: bool = False):
        self._llama = Llama(
            str(path),
            n_ctx=n_ctx,
            n_batch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_gpu_layers=n_gpu_layers,
            flash_attn=flash_attention,
            verbose=False,
        )

    def generate(self, prompt: Sequence[int], n: int) -> float:
        """Seconds for n tokens after the prompt; the part of it seen in the last call is not read again."""
        started = time.perf_counter()
        stream = self._llama.generate(list(prompt), top_k=10, top_p=1.0, min_p=0.0, temp=1.0)
        for _ in range(n):
            next(stream)
        return time.perf_counter() - started

    def close(self) -> None:
        self._llama.close()
