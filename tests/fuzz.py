"""Damaged files and requests: each is used, or refused with a sentence; none ends, hangs or fills the process.

`python tests/fuzz.py 10000 --seed 1` makes that many GGUF files, a quarter as many texts of every other kind, and tries
each in a process of its own. What fails is kept in --keep, named by target, seed and number.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from damage import Rng, damaged_text
from targets import Target, gguf_targets, text_targets

import models
from sia_local import errors
from sia_local.errors import SiaError

SECONDS, BYTES = 20, 1 << 30
TURN = 20
USED, REFUSED, TRACEBACK, GAVE_UP = 0, 1, 3, 4
# llama.cpp gives up where one of its assertions fails that no check foresees: the command ends, with a sentence.
GOOD = ("used", "refused", "gave up")


REQUESTS = {
    "/v1/chat/completions": {
        **{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}], "n": 1},
        **{"max_tokens": 3, "temperature": 1.0, "top_p": 0.9, "seed": 3, "stop": ["x"], "stream": False, "top_k": 5},
        **{"logit_bias": {"5": 1.0}, "logprobs": True, "top_logprobs": 2, "response_format": {"type": "text"}},
        **{"sia": {"beta": 1.0, "gate": "entropy", "threshold": 0.5, "k": 4, "why": True}, "presence_penalty": 0.1},
    },
    "/v1/completions": {
        "prompt": ["hello", "there"],
        "max_tokens": 3,
        "logprobs": 2,
        "echo": True,
        "stop": "x",
        "n": 1,
    },
    "/tokenize": {"content": "hello", "add_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/apply-template": {"messages": [{"role": "user", "content": "hello"}]},
}
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    0.5,
    1e308,
    -1e308,
    1 << 63,
    "",
    "x",
    "x" * 5000,
    "\ud800",
    "\x00",
    [],
    {},
    [1],
    ["x"],
]
ANSWERS = (200, 400, 404, 413, 422, 429, 503)


def _another(body: Any, rng: Rng) -> Any:
    """The same with one value of it, at any depth, replaced."""
    if not isinstance(body, dict | list) or not body or rng.random() < 0.2:
        return VALUES[rng.integers(len(VALUES))]
    changed: Any = body.copy()
    key = list(body)[rng.integers(len(body))] if isinstance(body, dict) else int(rng.integers(len(body)))
    changed[key] = _another(body[key], rng)
    return changed


def requests(folder: Path, n: int, seed: int) -> Counter[str]:
    """n damaged bodies, to a server in a fork of this process. An answer is one of ANSWERS, JSON or events, in time."""
    from serving import running

    base = models.write(folder / "served.gguf", "qwen3", "base")
    value = models.write(folder / "served-value.gguf", "qwen3", "merged", seed=1)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        counts: Counter[str] = Counter()
        try:
            with running(base, value, slots=2) as server:
                for i in range(n):
                    rng = np.random.default_rng([seed, i, 7])
                    path = list(REQUESTS)[rng.integers(len(REQUESTS))]
                    if rng.random() < 0.7:
                        body = json.dumps(_another(REQUESTS[path], rng)).encode()
                    else:
                        body = damaged_text(json.dumps(REQUESTS[path]).encode(), rng)
                    answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
                    good = answer.status_code in ANSWERS and (answer.text.startswith("data:") or bool(answer.json()))
                    counts[f"http {'used' if answer.status_code == 200 else 'refused' if good else 'bad'}"] += 1
                    if not good:
                        print(f"http-{seed}-{i}: {path} {answer.status_code}: {body[:300]!r} {answer.text[:300]}")
                assert server.http.get("/health").status_code == 200
        except BaseException:
            counts["http traceback"] += 1
            traceback.print_exc()
        sys.stdout.flush()
        os.write(write, json.dumps(counts).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return Counter(json.loads(said)) if said else Counter({f"http ended with {status}": 1})


@dataclass
class Outcome:
    kind: str
    said: str

    @property
    def bad(self) -> bool:
        return self.kind not in GOOD


def attempt(target: Target, path: Path, seconds: float = SECONDS) -> Outcome:
    """Tries a file in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(target, path, write)
    os.close(write)
    handle = os.pidfd_open(child)
    hung = not select.select([handle], [], [], seconds)[0]
    os.close(handle)
    if hung:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read(100_000).decode("utf-8", "replace")
    if hung:
        return Outcome("hang", said)
    if os.WIFSIGNALED(status):
        return Outcome(signal.Signals(os.WTERMSIG(status)).name, said)
    code = os.WEXITSTATUS(status)
    if code in (REFUSED, GAVE_UP) and (bad := not_a_sentence(said)):
        return Outcome(bad, said)
    return Outcome(
        {USED: "used", REFUSED: "refused", TRACEBACK: "traceback", GAVE_UP: "gave up"}.get(code, f"exit {code}"), said
    )


def not_a_sentence(said: str) -> str:
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in said):
        return "control characters"
    return "too long a sentence" if len(said) > 2000 else ""


def _give_up(said: str) -> NoReturn:
    os.write(2, said.encode("utf-8", "replace"))
    os._exit(GAVE_UP)


def _child(target: Target, path: Path, pipe: int) -> None:
    code = USED
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    errors.give_up = _give_up
    try:
        target.tries(path)
    except SiaError as error:
        os.write(pipe, str(error).encode("utf-8", "surrogateescape"))
        code = REFUSED
    except BaseException:
        os.write(pipe, traceback.format_exc()[-4000:].encode("utf-8", "replace"))
        code = TRACEBACK
    os._exit(code)


def campaign(targets: list[Target], n: int, seed: int, keep: Path | None, first: int = 0) -> Counter[str]:
    """Tries n files of each target (times its share), in turns, so that a run that is cut short has seen each; prints
    what is bad, and now and then how far it is. Returns the outcomes by target and kind, at Ctrl-C those so far."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt):
        folder = Path(name)
        waiting = [(target, target.files(seed, first, round(n * target.share), folder)) for target in targets]
        while waiting:
            for target, files in waiting:
                # As many of each a turn as its share says, so that all end together.
                for path in islice(files, max(1, round(TURN * target.share))):
                    outcome = attempt(target, path)
                    counts[f"{target.name} {outcome.kind}"] += 1
                    if outcome.bad:
                        print(f"{path.name}: {outcome.kind}: {outcome.said.strip()[-400:]}", flush=True)
                        if keep is not None:
                            keep.mkdir(parents=True, exist_ok=True)
                            (keep / path.name).write_bytes(path.read_bytes())
                    path.unlink(missing_ok=True)
                    if counts.total() % 500 == 0:
                        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {counts.total()} files", flush=True)
            waiting = [(t, files) for t, files in waiting if counted(counts, t) < round(n * t.share) - first]
    return counts


def counted(counts: Counter[str], target: Target) -> int:
    return sum(n for name, n in counts.items() if name.startswith(f"{target.name} "))


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--again", type=Path, nargs="*", help="try these files, named as --keep names them")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        models_of, texts = gguf_targets(Path(folder)), text_targets(Path(folder))
        for path in args.again or []:
            target = next(t for t in [*models_of, *texts] if path.name.startswith(t.name + "-"))
            outcome = attempt(target, path)
            print(f"{path.name}: {outcome.kind}: {outcome.said.strip()[-3000:]}")
        if args.again:
            return
        chosen = [t for t in (*models_of, *(replace(t, share=0.25) for t in texts)) if args.only in t.name]
        counts = campaign(chosen, args.files, args.seed, args.keep, args.first)
        if args.only in "http":
            counts += requests(Path(folder), args.files // 4, args.seed)
    for name, count in sorted(counts.items()):
        print(f"{name:30} {count}")
    bad = sum(count for name, count in counts.items() if name.split(" ", 1)[1] not in GOOD)
    print(f"{counts.total()} files in {time.monotonic() - started:.0f} s, {bad} bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
