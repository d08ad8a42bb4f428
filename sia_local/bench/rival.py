"""What a user would run instead: llama-cpp-python's own generation, timed by `bench`.

The one place beside `runtime` that imports llama_cpp. It is the competitor, not a part of the program: nothing
but `bench` imports it, and it uses the public class `Llama` and none of the structures `runtime` guards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_cpp import Llama

from ..llama.context import KV_TYPES

if TYPE_CHECKING:
    from .settings import BenchOptions

# Prints nothing; loads what it is given and samples one token of the first: the start-up to compare with.
STARTUP_SCRIPT = """
import json, sys
from llama_cpp import Llama
options, *paths = sys.argv[1:]
loaded = [Llama(p, verbose=False, **json.loads(options)) for p in paths]
tokens = loaded[0].tokenize(b"Hello", add_bos=False)
next(loaded[0].generate(tokens, top_k=10, top_p=1.0, min_p=0.0, temp=1.0))
"""


def llama_options(options: BenchOptions) -> dict[str, Any]:
    """Arguments of `Llama` that mean the same as the benchmark's own."""
    setup = options.setup
    quantized = setup.type_v not in ("f16", "f32")
    return {
        "n_ctx": setup.n_ctx,
        "n_batch": 512,
        "n_threads": options.threads,
        "n_threads_batch": options.threads,
        "n_gpu_layers": setup.n_gpu_layers,
        "type_k": KV_TYPES[setup.type_k],
        "type_v": KV_TYPES[setup.type_v],
        # `Llama` knows no `auto`.
        "flash_attn": {"on": True, "off": False}.get(setup.flash_attention, quantized or setup.n_gpu_layers != 0),
    }


class Rival:
    """`Llama.generate` at temperature 1 over the top ten, which is as little sampling work as it can be asked."""

    def __init__(self, path: Path, options: Mapping[str, Any]):
        self._llama = Llama(str(path), verbose=False, **options)

    def generate(self, prompt: Sequence[int], n: int) -> float:
        """Seconds for n tokens after the prompt; the part of it seen in the last call is not read again."""
        started = time.perf_counter()
        stream = self._llama.generate(list(prompt), top_k=10, top_p=1.0, min_p=0.0, temp=1.0)
        for _ in range(n):
            next(stream)
        return time.perf_counter() - started

    def close(self) -> None:
        self._llama.close()
