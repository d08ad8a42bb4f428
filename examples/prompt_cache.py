"""What a turn costs whose conversation lost its slot: read again, or taken from the prompt cache.

    python examples/prompt_cache.py [-m base.gguf] [--depths 250 500 1000]

Two conversations take turns in one slot. For each depth: ms to the first token of a turn that adds eight tokens, with
the cache and without, and the bytes that one conversation takes there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sia_local import SIA, Request
from sia_local.records import Prompt

MODELS = Path(__file__).resolve().parents[1] / "models"


def turns(model: str, depth: int, room: int, threads: int, rounds: int = 2) -> tuple[float, int]:
    """ms to the first token of a follow-up turn, median; bytes of a conversation in the cache."""
    rng = np.random.default_rng(depth)
    with SIA.load(model, n_ctx=depth + 8 * rounds + 16, n_threads=threads, prompt_cache=room) as sia:
        talks = [rng.integers(50, sia.model.n_vocab // 2, depth).tolist() for _ in range(2)]
        took = []
        for turn in range(rounds + 1):
            for talk in talks:
                text = sia.write(Request(Prompt(tuple(talk)), max_tokens=1))
                list(text)
                took += [text.stats.wall_ms] if turn else []
                talk += rng.integers(50, sia.model.n_vocab // 2, 8).tolist()
        return float(np.median(took)), sia.store.used if sia.store is not None else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default=str(MODELS / "demo-base.gguf"))
    parser.add_argument("--depths", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    for depth in args.depths:
        anew, _ = turns(args.model, depth, 0, args.threads)
        kept, size = turns(args.model, depth, 1 << 30, args.threads)
        print(f"{depth} tokens: {anew:.0f} ms read again, {kept:.0f} ms from the cache, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
