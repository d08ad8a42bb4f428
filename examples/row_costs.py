"""What a batch of n rows costs in llama.cpp on this machine, which decides what a junction costs.

    python examples/row_costs.py BASE.gguf [VALUE.gguf]

Prints ms per decode of 1 to 16 sequences behind 64 shared tokens, with no logits but the last row's and with logits of
all; with a second model also the time to read 256 tokens with both, one after the other on all cores and side by side
on half of them each. Let nothing else run.
"""

import os
import statistics
import sys
import threading
import time

from sia_local.runtime import Context, ContextOptions, Model

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


def prompts_side_by_side(models: list[Model], n: int = 256) -> None:
    def read(context: Context) -> None:
        context.seq_rm(0, 0)
        timed_decode(context, n, 0, 0, 1, logits=False)

    def contexts(threads: int) -> list[Context]:
        return [Context(model, ContextOptions(n_ctx=512, n_batch=512, n_threads=threads)) for model in models]

    whole, half = contexts(THREADS), contexts(max(1, THREADS // 2))
    after, beside = [], []
    for _ in range(6):
        started = time.perf_counter()
        for context in whole:
            read(context)
        after.append(time.perf_counter() - started)
        started = time.perf_counter()
        readers = [threading.Thread(target=read, args=(context,)) for context in half]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        beside.append(time.perf_counter() - started)
    for context in whole + half:
        context.close()
    a, b = statistics.median(after[1:]), statistics.median(beside[1:])
    print(f"{n} tokens with both models: {a:.2f} s one after the other, {b:.2f} s side by side")


if __name__ == "__main__":
    loaded = [Model(path) for path in sys.argv[1:3]]
    row_costs(loaded[0])
    if len(loaded) == 2:
        prompts_side_by_side(loaded)
    for one in loaded:
        one.close()
