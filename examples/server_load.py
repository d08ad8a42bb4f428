"""Load and faults against `sia-local serve`, on this machine alone: python examples/server_load.py [--clients 64]

Starts a server of its own with the demo models, counts what comes back, and fails if a text is lost or an unsteered one
differs from the same made alone, if memory grows once the prompt cache is full, or if /health takes longer than it may.
(A value model's numbers depend a little on what else is in its context: steered texts that differ are counted.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

MODELS = Path(__file__).resolve().parents[1] / "models"
TOPICS = ("a dog", "a cat", "the sea", "a red ball", "two friends", "a lost key", "rain", "a tree")

STRENGTHS = (0, -2, 0, 1, 0, 2, 0, 4)


def body(i: int, tokens: int = 24, **more: Any) -> dict[str, Any]:
    """The request of client i: one of eight, each with a strength and a seed of its own."""
    i %= len(TOPICS)
    messages = [{"role": "user", "content": f"Tell me a story about {TOPICS[i]}."}]
    return {"messages": messages, "max_tokens": tokens, "seed": i, "sia": {"beta": STRENGTHS[i]}, **more}


async def text_of(client: httpx.AsyncClient, i: int, stream: bool) -> str:
    """The text of one request, tried again for as long as the server is full."""
    while True:
        if not stream:
            answer = await client.post("/v1/chat/completions", json=body(i))
            if answer.status_code == 200:
                return str(answer.json()["choices"][0]["message"]["content"])
        else:
            out, done = "", False
            async with client.stream("POST", "/v1/chat/completions", json=body(i, stream=True)) as answer:
                if answer.status_code == 200:
                    async for line in answer.aiter_lines():
                        done = done or line == "data: [DONE]"
                        if line.startswith("data: {"):
                            out += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    assert done, "a stream ended without [DONE]"
                    return out
        assert answer.status_code == 503 and answer.headers["retry-after"], answer.status_code
        TALLY["503"] += 1
        await asyncio.sleep(random.random())


TALLY: Counter[str] = Counter()


async def crowd(client: httpx.AsyncClient, clients: int, each: int) -> None:
    """Many clients at once; every text must be the one that is made alone."""
    alone = [await text_of(client, i, stream=False) for i in range(len(TOPICS))]

    async def one(i: int) -> None:
        for turn in range(each):
            text, which = await text_of(client, i + turn, stream=i % 4 > 1), (i + turn) % len(TOPICS)
            kind = "steered" if STRENGTHS[which] else "unsteered"
            TALLY[f"{kind}, {'the same text' if text == alone[which] else 'another text'}"] += 1

    await asyncio.gather(*(one(i) for i in range(clients)))


async def rude(client: httpx.AsyncClient, port: int, limit: int) -> None:
    """Readers that are slow, readers that leave, bodies that are no JSON, and bodies that are too large."""

    async def leaves(i: int) -> None:
        with suppress(httpx.HTTPError):
            async with client.stream("POST", "/v1/chat/completions", json=body(i, 400, stream=True)) as answer:
                async for _ in answer.aiter_lines():
                    if random.random() < 0.2:
                        break
        TALLY["left"] += 1

    async def slow(i: int) -> None:
        data = json.dumps(body(i, 64, stream=True)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        got = b""
        while b"[DONE]" not in got and (part := await asyncio.wait_for(reader.read(512), 60)):
            got += part
            await asyncio.sleep(0.02)
        TALLY["slow reader served" if b"[DONE]" in got or b" 503 " in got else "slow reader lost"] += 1
        writer.close()

    async def nonsense(i: int) -> None:
        data = (b'{"messages": [', b"\xff\xfe\x00", b"[]", b'{"messages": [{"role": "user"}], "n": 1e99}', b"")[i % 5]
        TALLY[f"nonsense: {(await client.post('/v1/chat/completions', content=data)).status_code}"] += 1

    async def huge(_: int) -> None:
        async def parts() -> Any:
            for _ in range(64):
                yield b"x" * (limit // 16)

        try:
            TALLY[f"huge: {(await client.post('/v1/chat/completions', content=parts())).status_code}"] += 1
        except httpx.HTTPError:
            TALLY["huge: closed"] += 1

    jobs = [*map(leaves, range(24)), *map(slow, range(8)), *map(nonsense, range(20)), *map(huge, range(6))]
    await asyncio.gather(*jobs)


def waited(pid: int) -> float:
    """Seconds that the main thread of a process, where the server's event loop runs, has waited for a core."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def probe(port: int, pid: int, stop: Any, out: Any) -> None:
    """A process of its own that asks for /health every 25 ms: seconds of each answer, and of them those in which
    neither side waited for other programs to leave it a core."""
    took = []
    while not stop.is_set():
        before = waited(pid) + waited(os.getpid())
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert one.recv(64).startswith(b"HTTP/1.1 200")
        seconds = time.perf_counter() - began
        took.append((seconds, seconds - (waited(pid) + waited(os.getpid()) - before)))
        time.sleep(0.025)
    out.put(took)


def memory(pid: int) -> float:
    """Resident memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def in_a_row(client: httpx.AsyncClient, count: int, pid: int) -> tuple[float, float, float, float]:
    """Short requests one after another on four connections, each a conversation of its own: memory and bytes of the
    prompt cache after a tenth of them, and at the end."""
    asked = iter(range(count))

    async def some(n: int) -> None:
        for i in (next(asked) for _ in range(n)):
            whole = body(i, 2, logprobs=True, top_logprobs=3)
            # Another beginning each, and more behind it than is thrown away without a thought.
            told = f"{i} is the number of a story about {', '.join(TOPICS)}, and what became of them all."
            whole["messages"] = [{"role": "user", "content": told}]
            answer = await client.post("/v1/chat/completions", json=whole)
            TALLY[f"in a row: {answer.status_code}"] += 1

    async def kept() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("sia_prompt_cache_bytes "))

    await asyncio.gather(*(some(count // 40) for _ in range(4)))
    before = memory(pid), await kept()
    await asyncio.gather(*(some(count // 4 - count // 40) for _ in range(4)))
    return *before, memory(pid), await kept()


async def terminated(client: httpx.AsyncClient, server: subprocess.Popen[bytes]) -> float:
    """SIGTERM while eight streams run: each must end, and the server with them. Seconds it took."""

    async def one(i: int) -> None:
        last = ""
        async with client.stream("POST", "/v1/chat/completions", json=body(i, 800, stream=True)) as answer:
            async for line in answer.aiter_lines():
                last = line or last
        ended = last == "data: [DONE]"
        TALLY["stream ended" if ended else "told to come again" if "stopping" in last else "stream broken"] += 1

    streams = [asyncio.create_task(one(i)) for i in range(8)]
    await asyncio.sleep(1)
    began = time.perf_counter()
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*streams)
    await asyncio.to_thread(server.wait, 30)
    return time.perf_counter() - began


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--each", type=int, default=4, help="requests of each client")
    parser.add_argument("--in-a-row", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-cache", type=int, default=16 << 20, help="small, so that it is full early; 0: none")
    parser.add_argument(
        "--health-ms", type=float, default=100, help="longest that /health may take, waiting for a core aside"
    )
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limit = 1 << 20
    options = ["-m", MODELS / "demo-base.gguf", "-v", MODELS / "demo-value.gguf", "--port", port, "--grace", 2]
    options += ["--slots", args.slots, "--threads", args.threads, "--max-body", limit]
    options += ["--prompt-cache", args.prompt_cache]
    server = subprocess.Popen([sys.executable, "-m", "sia_local", "serve", *map(str, options)])
    context = multiprocessing.get_context("spawn")
    stop, out = context.Event(), context.Queue()
    try:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:
            for _ in range(600):
                with suppress(httpx.HTTPError):
                    if (await client.get("/health")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
            watcher = context.Process(target=probe, args=(port, server.pid, stop, out), daemon=True)
            watcher.start()
            began = time.perf_counter()
            await crowd(client, args.clients, args.each)
            print(f"crowd: {time.perf_counter() - began:.0f} s")
            await asyncio.gather(rude(client, port, limit), crowd(client, 8, 2))
            before, early, after, late = await in_a_row(client, args.in_a_row, server.pid)
            stop.set()
            took = out.get(timeout=20)
            busy = [slot for slot in (await client.get("/slots")).json() if slot["is_processing"]]
            seconds = await terminated(client, server)
    finally:
        server.kill()
    whole, own = (sorted(column) for column in zip(*took, strict=True))
    p99 = int(0.99 * len(took))
    print(*(f"{name}: {count}" for name, count in sorted(TALLY.items())), sep="\n")
    for name, column in (("", whole), (" without the time that it waited for a core", own)):
        say = f"/health{name}: {len(took)} times, 99 % within {1e3 * column[p99]:.0f} ms"
        print(f"{say}, longest {1e3 * column[-1]:.0f} ms")
    print(f"memory: {before:.0f} MB after a tenth of {args.in_a_row} requests, {after:.0f} MB at the end;", end=" ")
    print(f"of it for conversations {early / 1e6:.1f} and {late / 1e6:.1f} MB of {args.prompt_cache / 1e6:.1f}")
    print(f"SIGTERM with eight streams: over in {seconds:.1f} s, exit code {server.returncode}")
    wrong = [name for name in ("unsteered, another text", "slow reader lost", "stream broken") if TALLY[name]]
    wrong += ["the prompt cache was not full in time to judge"] * (early < 0.9 * args.prompt_cache)
    wrong += ["the prompt cache overflows"] * (max(early, late) > args.prompt_cache)
    wrong += ["a slot is held"] * bool(busy) + ["memory grows"] * (after > 1.1 * before + 5)
    wrong += ["/health is slow"] * (1e3 * own[-1] > args.health_ms) + ["no clean exit"] * (server.returncode != 0)
    print("wrong: " + ", ".join(wrong) if wrong else "nothing lost")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
