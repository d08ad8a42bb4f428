"""Random histories of an engine and its values: after them every number is that of the plain prefix, encoded afresh.

`python tests/histories.py 1000000 --seed 1` runs that many operations over every placement and class of architecture;
what fails is named by its class, seed and episode, and `--only CLASS` repeats it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from afresh import CANDIDATES, N_CTX, PLACEMENTS, Make, begin_fresh, fresh_values, load, tolerance
from architectures import ARCHITECTURES
from loading import source

from sia_local import SIA
from sia_local.errors import ContextFullError
from sia_local.records import Floats, IntArray, Prompt

SHORT_BATCH = 16
CLASSES = [(arch, kind) for arch in ("llama", "qwen2", "qwen3") for kind in (*PLACEMENTS, "qhead", "guides")]
CLASSES += [(arch, kind) for arch in ARCHITECTURES for kind in (*PLACEMENTS[:4], "qhead", "guides")]
CLASSES += [(arch, "pair") for arch in ("qwen3", *ARCHITECTURES)]
EPISODE, ROUND = 200, 2


class Fuse:
    """KeyboardInterrupt at the n-th call from now that a context makes to llama.cpp, before it or after."""

    CALLS = ("decode", "seq_rm", "seq_cp")

    def __init__(self, sia: SIA):
        self.left: int | None = None
        self.after = False
        self.blown = ""
        for engine in [sia.engine, *source(sia).engines]:
            for name in self.CALLS:
                setattr(engine.context, name, self._watched(name, getattr(engine.context, name)))

    def _watched(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        def watched(*given: int) -> None:
            if self.left is None:
                return call(*given)
            self.left -= 1
            if self.left >= 0:
                return call(*given)
            self.left, self.blown = None, name
            if self.after:
                call(*given)
            raise KeyboardInterrupt

        return watched


class History:
    """Operations at random on all slots of `sia`, compared with `mirror`: the same files, one slot, no past.

    worst: how far any number was off. done: operations by name. rounded: numbers that rounding alone moves by more than
    the tolerance: the same prefix read in other pieces, without a past, differs as much.
    """

    PIECES = (1, 2, 5, 9, 17)

    def __init__(self, sia: SIA, mirror: SIA, seed: Sequence[int], atol: float):
        self.sia, self.mirror, self.atol = sia, mirror, atol
        self.rng = np.random.default_rng(seed)
        self.texts: list[list[int] | None] = [None] * len(sia.engine.slots)
        self.worst, self.rounded = 0.0, 0
        self.done: Counter[str] = Counter()
        self.engines = [sia.engine, *source(sia).engines]
        self.fuse = Fuse(sia)
        self._touched: set[int] = set()
        self._operations: dict[Callable[[], None], float] = {
            self.begin: 1,
            self.share: 2,
            self.trim: 1.5,
            self.look: 4,
            self.junction: 8,
            self.write: 3,
            self.fill: 0.2,
            self.too_long: 0.3,
            self.flush: 1,
            self.trajectory: 0.5,
            self.release: 0.5,
            self.short_batches: 0.5,
        }

    def restart(self, seed: Sequence[int]) -> None:
        """As new, with another seed."""
        self.rng = np.random.default_rng(seed)
        for slot in range(len(self.texts)):
            self._release(slot)
        for engine in self.engines:
            engine.context.batch.capacity = engine.context.n_batch

    def run(self, n: int) -> None:
        weights = np.array(list(self._operations.values()))
        operations = list(self._operations)
        for i in self.rng.choice(len(operations), n, p=weights / weights.sum()):
            self._touched = set()
            if self.rng.random() < 0.04:
                self._interrupted(operations[i])
            else:
                operations[i]()
                self.done[operations[i].__name__] += 1

    def check(self) -> None:
        """Every slot that holds a text."""
        if live := self._live():
            self._score(live, [])
            self._compare_rows(live)

    def begin(self) -> None:
        length = int(self.rng.integers(1, 24)) if self.rng.random() < 0.9 else int(self.rng.integers(24, N_CTX - 2))
        self._begin(self._slot(), self._tokens(length))

    def share(self) -> None:
        if live := self._live():
            text = self._text(int(self.rng.choice(live)))
            text = text[: self.rng.integers(1, len(text) + 1)] if self.rng.random() < 0.5 else text
            self._begin(self._slot(), [*text, *self._tokens(int(self.rng.integers(0, 6)))][: N_CTX - 2])

    def trim(self) -> None:
        if live := self._live():
            slot = int(self.rng.choice(live))
            text = self._text(slot)[: self.rng.integers(1, len(self._text(slot)) + 1)]
            self._begin(slot, [*text, *self._tokens(int(self.rng.integers(0, 3)))][: N_CTX - 2])

    def look(self) -> None:
        if slots := self._some(self._live()):
            self._touched.update(slots)
            self._compare_rows(slots)

    def junction(self) -> None:
        """Candidates of some slots while others are sure; then one of them, another token, or none is taken."""
        slots = self._some(self._live())
        asked, others = slots[: len(slots) // 2 + 1], slots[len(slots) // 2 + 1 :]
        if not asked:
            return
        self._touched.update(slots)
        # A Q-head reads what the look left behind; the others may be asked without one.
        if not source(self.sia).engines or self.rng.random() < 0.5:
            self.sia.engine.logits(slots)
        # A slot whose text is full has ended; the others of a decode have a token waiting.
        others = [slot for slot in others if self._room(slot)]
        self._write(others)
        for slot, ids in self._score(asked, others).items():
            drawn = self.rng.random()
            if drawn < 0.85 and self._room(slot):
                self._accept(slot, int(self.rng.choice(ids)) if drawn < 0.7 else 7)

    def write(self) -> None:
        self._write([slot for slot in self._some(self._live()) if self._room(slot)], most=6)

    def fill(self) -> None:
        """To the last token that a slot takes."""
        if live := self._live():
            slot = int(self.rng.choice(live))
            while self._room(slot):
                self._accept(slot, self._tokens(1)[0])
            self._score([slot], [])
            self._compare_rows([slot])

    def too_long(self) -> None:
        slot = self._slot()
        with pytest.raises(ContextFullError):
            self.sia.engine.begin(slot, self._tokens(self.sia.engine.capacity))

    def flush(self) -> None:
        if live := self._live():
            slot = int(self.rng.choice(live))
            self._touched.add(slot)
            for engine in self.engines:
                engine.read_ahead(slot) if self.rng.random() < 0.5 else engine.read_piece(slot)

    def trajectory(self) -> None:
        slot = self._slot()
        prompt, tokens = self._tokens(int(self.rng.integers(1, 9))), self._tokens(int(self.rng.integers(1, 40)))
        self._touched.add(slot)
        values = source(self.sia).trajectory(slot, Prompt(tuple(prompt)), tokens)
        for engine in [self.mirror.engine, *source(self.mirror).engines]:
            engine.release(0)
        expected = source(self.mirror).trajectory(0, Prompt(tuple(prompt)), tokens)
        self._compare(values, lambda _=None: expected)
        self._begin(slot, [*prompt, *tokens])

    def release(self) -> None:
        self._release(self._slot())

    def short_batches(self) -> None:
        """What is queued no longer fits a batch, or does again."""
        for engine in self.engines:
            engine.context.batch.capacity = SHORT_BATCH if self.rng.random() < 0.5 else engine.context.n_batch

    def _interrupted(self, operation: Callable[[], None]) -> None:
        """Ctrl-C somewhere in it. A decode leaves every slot as it was; after anything else a text is begun again."""
        before = [None if text is None else list(text) for text in self.texts]
        self.fuse.left, self.fuse.after = int(self.rng.integers(0, 12)), bool(self.rng.random() < 0.5)
        self.fuse.blown = ""
        try:
            operation()
        except KeyboardInterrupt:
            self.done[f"interrupt in {self.fuse.blown}"] += 1
            decoding = self.fuse.blown == "decode" and operation in (self.look, self.flush)
            for slot in self._touched:
                if decoding and self.rng.random() < 0.5:
                    continue
                text = self.texts[slot] or before[slot]
                if text is None or self.rng.random() < 0.2:
                    self._release(slot)
                else:
                    self._begin(slot, text)
        else:
            self.done[operation.__name__] += 1
        finally:
            self.fuse.left = None

    def _slot(self) -> int:
        return int(self.rng.integers(len(self.texts)))

    def _live(self) -> list[int]:
        return [slot for slot, text in enumerate(self.texts) if text is not None]

    def _some(self, slots: list[int]) -> list[int]:
        chosen = [int(slot) for slot in self.rng.permutation(slots)]
        return chosen[: self.rng.integers(1, len(chosen) + 1)] if chosen else []

    def _text(self, slot: int) -> list[int]:
        text = self.texts[slot]
        assert text is not None
        return text

    def _tokens(self, n: int) -> list[int]:
        # Few different ones, so that texts begin alike without being told to.
        high = 4 if self.rng.random() < 0.3 else 200
        return [int(t) for t in self.rng.integers(0, high, n)]

    def _room(self, slot: int) -> int:
        return min(N_CTX - 2 - len(self._text(slot)), self.sia.engine.room(slot), source(self.sia).room(slot))

    def _begin(self, slot: int, tokens: list[int]) -> None:
        self._touched.add(slot)
        self.texts[slot] = tokens
        self.sia.engine.begin(slot, tokens)
        source(self.sia).begin(slot, Prompt(tuple(tokens)))

    def _release(self, slot: int) -> None:
        self._touched.add(slot)
        self.texts[slot] = None
        for engine in self.engines:
            engine.release(slot)

    def _accept(self, slot: int, token: int) -> None:
        self._touched.add(slot)
        self._text(slot).append(token)
        self.sia.engine.accept(slot, token)
        source(self.sia).accept(slot, token)

    def _write(self, slots: Sequence[int], most: int = 1) -> None:
        for slot in slots:
            for token in self._tokens(min(int(self.rng.integers(1, most + 1)), self._room(slot))):
                self._accept(slot, token)

    def _score(self, asked: list[int], others: list[int]) -> dict[int, IntArray]:
        """The values of some candidates of each slot, compared; the candidates."""
        if not source(self.sia).engines:
            rows = self.sia.engine.logits(asked)
            likely = [np.argsort(-row)[:CANDIDATES].astype(np.int32) for row in rows]
        else:
            likely = [self.rng.choice(200, CANDIDATES, replace=False).astype(np.int32) for _ in asked]
        ids = {slot: chosen[: self.rng.integers(1, CANDIDATES + 1)] for slot, chosen in zip(asked, likely, strict=True)}
        values = [v.copy() for v in source(self.sia).score(list(ids.items()), others)]
        for (slot, candidates), found in zip(ids.items(), values, strict=True):
            text = self._text(slot)
            self._compare(found, partial(fresh_values, self.mirror, 0, text, candidates))
        return ids

    def _compare_rows(self, slots: list[int]) -> None:
        rows = [row.copy() for row in self.sia.engine.logits(slots)]
        for slot, row in zip(slots, rows, strict=True):
            self._compare(row, partial(self._fresh_row, self._text(slot)))

    def _fresh_row(self, text: list[int], piece: int | None = None) -> Floats:
        begin_fresh(self.mirror, 0, text, piece)
        return self.mirror.engine.logits([0])[0].copy()

    def _compare(self, found: Floats, fresh: Callable[..., Floats]) -> None:
        expected = fresh()
        assert found.shape == expected.shape
        off = float(np.abs(found - expected).max(initial=0.0))
        if not off <= self.atol:  # true of NaN, too
            others = [fresh(piece) for piece in self.PIECES]
            moved = max(float(np.abs(other - expected).max(initial=0.0)) for other in others)
            # A router near a tie sends a token to another expert: then one of the readings is the same.
            nearest = min(float(np.abs(found - other).max(initial=0.0)) for other in others)
            fault = not (nearest <= self.atol or off <= min(3 * moved, 10 * self.atol))
            assert not fault, f"off by {off:.3g}; rounding moves it by {moved:.3g}"
            self.rounded += 1
            return
        self.worst = max(self.worst, off)


@contextmanager
def opened(make_gguf: Make, arch: str, kind: str, slots: int, seed: Sequence[int]) -> Iterator[History]:
    with load(make_gguf, kind, arch, slots) as sia, load(make_gguf, kind, arch) as mirror:
        yield History(sia, mirror, seed, tolerance(arch))


def main() -> None:
    import argparse
    import tempfile
    import time

    import models

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operations", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="classes whose name has this in it, such as 'lfm2 head'")
    parser.add_argument("--first", type=int, default=0, help="the first episode")
    args = parser.parse_args()
    classes = [(i, arch, kind) for i, (arch, kind) in enumerate(CLASSES) if args.only in f"{arch} {kind}"]
    total: Counter[str] = Counter()
    worst, failed, rounded, started = 0.0, 0, 0, time.perf_counter()
    by_class: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:

        def make(kind: str, arch: str, seed: int = 0) -> Path:
            path = Path(folder) / f"{arch}-{kind}-{seed}.gguf"
            return path if path.exists() else models.write(path, arch, kind, seed=seed)

        # A round over all classes at a time, so that a run that is cut short has seen each of them.
        at, wanted = args.first, args.first + -(-args.operations // (EPISODE * 2 * len(classes)))
        while at < wanted:
            episodes = range(at, min(at + ROUND, wanted))
            at = episodes.stop
            for (i, arch, kind), slots in product(classes, (1, 3)):
                with opened(make, arch, kind, slots, [args.seed, i, slots]) as history:
                    for episode in episodes:
                        history.restart([args.seed, i, slots, episode])
                        try:
                            history.run(EPISODE)
                            history.check()
                        except Exception as error:
                            failed += 1
                            said = " ".join(str(error).split())[:200]
                            print(
                                f"FAILED {arch} {kind}, {slots} slots, episode {episode}: {type(error).__name__} {said}"
                            )
                    total, worst = total + history.done, max(worst, history.worst)
                    rounded += history.rounded
                    by_class[f"{arch} {kind}"] = max(by_class[f"{arch} {kind}"], history.worst)
            clock = time.strftime("%Y-%m-%d %H:%M:%S")
            print(
                f"{clock} {total.total()} operations, {failed} failures, {rounded} rounded, worst {worst:.1e}",
                flush=True,
            )
    for name, off in by_class.items():
        print(f"{name:44} {off:.1e}")
    print(f"{total.total()} operations in {time.perf_counter() - started:.0f} s,", end=" ")
    print(f"{failed} failures, {rounded} rounded, worst {worst:.1e}")
    print(", ".join(f"{name} {n}" for name, n in sorted(total.items())))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
