"""What a batch of n rows costs in llama.cpp on this machine, which decides what a junction costs.

    python examples/row_costs.py BASE.gguf [VALUE.gguf]

Prints ms per decode of 1 to 16 sequences behind 64 shared tokens, with no logits but the last row's and with logits of
all; with a value model also the time to the first token behind 256 tokens that is steered, the prompt read by one model
after the other, or side by side (--overlap-prompts). Let nothing else run.
"""

import os
import statistics
import sys
import time
from contextlib import ExitStack

import numpy as np

from sia_local import SIA, SiaConfig
from sia_local.llama.context import Context, ContextOptions
from sia_local.llama.model import Model
from sia_local.records import Prompt

ROWS = (1, 2, 3, 4, 6, 8, 10, 12, 16)
SHARED = 64
THREADS = os.cpu_count() or 1


def timed_decode(context: Context, n: int, first_seq: int, start: int, step: int, logits: bool) -> float:
    """ms of one decode of n rows: of one sequence (step 1) or of a sequence each (step 0)."""
    batch = context.batch
    batch.token[:n] = range(100, 100 + n)
    batch.pos[:n] = [start + step * i for i in range(n)]
    batch.n_seq[:n] = 1
    batch.seq[:n, 0] = [first_seq + (1 - step) * i for i in range(n)]
    batch.output[:n] = logits
    batch.output[n - 1] = 1
    batch.n = n
    started = time.perf_counter()
    context.decode()
    context.synchronize()
    return (time.perf_counter() - started) * 1e3


def row_costs(model: Model) -> None:
    with Context(model, ContextOptions(n_ctx=512, n_batch=64, n_seq_max=max(ROWS) + 1, n_threads=THREADS)) as context:
        timed_decode(context, SHARED, 0, 0, 1, logits=False)
        for seq in range(1, max(ROWS) + 1):
            context.seq_cp(0, seq)
        print("rows   last row's logits   all logits   (ms)")
        for n in ROWS:
            medians = []
            for logits in (False, True):
                times = []
                for _ in range(9):
                    times.append(timed_decode(context, n, 1, SHARED, 0, logits))
                    for seq in range(1, n + 1):
                        context.seq_rm(seq, SHARED)
                medians.append(statistics.median(times))
            print(f"{n:4}   {medians[0]:17.1f}   {medians[1]:10.1f}")


def prompts_side_by_side(base: str, value: str, n: int = 256) -> None:
    rng = np.random.default_rng(0)
    times: dict[SIA, list[float]] = {}
    with ExitStack() as stack:
        ways = [stack.enter_context(SIA.load(base, value, n_ctx=2 * n, overlap_prompts=on)) for on in (False, True)]
        for _ in range(6):
            prompt = Prompt(tuple(rng.integers(256, 2000, n).tolist()))
            for sia in ways:
                started = time.perf_counter()
                list(sia.generate(prompt, SiaConfig(gate="dense"), max_tokens=1))
                times.setdefault(sia, []).append(time.perf_counter() - started)
    one, both = (statistics.median(seconds[1:]) for seconds in times.values())
    print(f"first steered token behind {n}: {one:.2f} s one model after the other, {both:.2f} s side by side")


if __name__ == "__main__":
    with Model(sys.argv[1]) as model:
        row_costs(model)
    if len(sys.argv) > 2:
        prompts_side_by_side(sys.argv[1], sys.argv[2])
