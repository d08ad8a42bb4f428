"""What the server costs: eight streams against the same eight texts by SIA.run, in one process, in turns.

    python examples/server_speed.py [-m base.gguf] [-v value.gguf] [--rounds 5]

Tokens a second of all texts together, and what a token costs in computing, which holds beside other programs, too; then
how much later the first token of a short request comes while seven others stream than when it is alone, in rounds of
the engine: what it takes alone, its prompt and the way there and back, is its own. Figures hold within one run.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from sia_local import SIA, SiaConfig
from sia_local.server.app import Server
from sia_local.server.asking import Defaults
from sia_local.server.settings import ServerConfig

TEXTS, TOKENS = 8, 96
MODELS = Path(__file__).resolve().parents[1] / "models"
# The readers are a process of their own, as clients are.
READERS = """
import json, sys, threading, time, urllib.request
url, bodies = sys.argv[1], json.loads(sys.argv[2])
counts, first = [0] * len(bodies), [0.0] * len(bodies)
def one(i, delay):
    time.sleep(delay)
    began = time.perf_counter()
    request = urllib.request.Request(url, json.dumps(bodies[i]).encode(), {"Content-Type": "application/json"})
    for line in urllib.request.urlopen(request):
        if b'"content":"' in line:
            counts[i] += 1
            first[i] = first[i] or time.perf_counter() - began
late = [0.0] * (len(bodies) - 1) + [float(sys.argv[3])]
threads = [threading.Thread(target=one, args=pair) for pair in enumerate(late)]
began = time.perf_counter()
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps([sum(counts), time.perf_counter() - began, first[-1]]))
"""


TOPICS = ("a dog", "a cat", "the sea", "rain", "a tree", "two friends", "a key", "a ball")


def message(i: int) -> str:
    return f"Tell me a story about {TOPICS[i]}."


def run(sia: SIA, config: SiaConfig) -> float:
    jobs = [sia.job(message(i), config, max_tokens=TOKENS, seed=i, id=i) for i in range(TEXTS)]
    began = time.perf_counter()
    steps = sum(1 for _ in sia.run(jobs))
    return steps / (time.perf_counter() - began)


def read(url: str, bodies: list[dict[str, Any]], delay: float = 0.0) -> tuple[int, float, float]:
    """Chunks of all streams, seconds, and seconds to the first token of the last one, which begins `delay` later."""
    command = [sys.executable, "-c", READERS, url, json.dumps(bodies), str(delay)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    count, seconds, first = json.loads(done.stdout)
    return int(count), float(seconds), float(first)


def body(i: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": message(i)}]
    return {"messages": messages, "max_tokens": TOKENS, "seed": i, "stream": True, **more}


def short(i: int) -> dict[str, Any]:
    """A request for one token of a prompt that nobody has read yet."""
    return body(7, max_tokens=1) | {
        "messages": [{"role": "user", "content": f"{i} is the number of a story. Tell it."}]
    }


def count_rounds(server: Server) -> list[int]:
    """A list that grows by the engine's rounds from taking a request to its first token, the running one among them."""
    engine, began, taken = server.engine, dict[int, int](), list[int]()
    submit, deliver = engine.submit, engine._deliver

    def submitted(order: Any) -> None:
        began[id(order)] = engine.totals.rounds
        submit(order)

    def delivered(order: Any, job: Any, step: Any) -> None:
        if step.index == 0:
            taken.append(1 + engine.totals.rounds - began[id(order)])
        deliver(order, job, step)

    engine.submit, engine._deliver = submitted, delivered  # type: ignore[method-assign]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default=MODELS / "demo-base.gguf")
    parser.add_argument("-v", "--value", default=MODELS / "demo-value.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    value = None if args.value == "none" else args.value
    config = SiaConfig(gate="rate", rate=0.2, threshold=1.8, beta=2.0, beta_unit="spread")
    config = config if value is not None else SiaConfig(gate="off")
    sia = SIA.load(args.model, value, slots=TEXTS, n_ctx=512, n_threads=args.threads)
    server = Server(ServerConfig(slots=TEXTS), lambda: sia, Defaults(config))
    listener = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(server.app, log_level="warning"))
    thread = threading.Thread(target=web.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    sys.setswitchinterval(0.0005)
    while server.engine.state == "loading":
        time.sleep(0.01)
    run(sia, config)
    alone, served, first, costs = [], [], [], []
    taken, waited = count_rounds(server), []
    try:
        for turn in range(args.rounds):
            computed = time.process_time()
            alone.append(run(sia, config))
            between, steps = time.process_time(), server.engine.totals.steps
            _, seconds, _ = read(url, [body(i) for i in range(TEXTS)])
            served.append((server.engine.totals.steps - steps) / seconds)
            costs.append((between - computed, time.process_time() - between))
            taken.clear()
            rounds = server.engine.totals.rounds
            _, seconds, beside = read(url, [*(body(i) for i in range(7)), short(2 * turn)], delay=0.3)
            waited.append(taken[-1])
            a_round = seconds / (server.engine.totals.rounds - rounds)
            _, _, own = read(url, [short(2 * turn + 1)])
            first.append((own, beside, (beside - own) / a_round))
    finally:
        web.should_exit = True
        thread.join()
    ratio = statistics.median(s / a for s, a in zip(served, alone, strict=True))
    print(
        f"SIA.run: {statistics.median(alone):.0f} tokens/s, served: {statistics.median(served):.0f}, ratio {ratio:.2f}"
    )
    work = [1e6 * statistics.median(column) / (TEXTS * TOKENS) for column in zip(*costs, strict=True)]
    print(f"computing a token, both threads: {work[0]:.0f} us, served: {work[1]:.0f}")
    own, beside, later = (statistics.median(column) for column in zip(*first, strict=True))
    print(f"first token of a short request: {1e3 * own:.0f} ms alone, {1e3 * beside:.0f} ms beside seven streams,")
    print(f"{later:.1f} rounds later; from the engine's taking the request at most {max(waited)} rounds")


if __name__ == "__main__":
    main()
