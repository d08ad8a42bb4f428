"""Two replicas behind balancer.py, one of them killed under load: python examples/replica_loss.py [--clients 12]

Counts how every request ended, and fails if one of them got neither an answer nor an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def until_up(client: httpx.AsyncClient, url: str) -> None:
    for _ in range(600):
        try:
            if (await client.get(f"{url}/health")).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit(f"{url} does not come up")


async def one(client: httpx.AsyncClient, url: str, i: int, stream: bool, ends: Counter[str]) -> None:
    body = {"messages": [{"role": "user", "content": f"Tell me of dog {i}."}], "max_tokens": 200, "n": 4, "seed": i}
    kind = "stream" if stream else "whole"
    while True:
        try:
            if not stream:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                if answer.status_code == 503:
                    ends["503, asked again"] += 1
                    await asyncio.sleep(1)
                    continue
                ends[f"{kind}: {'answered' if answer.status_code == 200 else f'error {answer.status_code}'}"] += 1
                return
            said = ""
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and "error" in json.loads(line[6:]):
                        said = "error event"
                    said = "answered" if line == "data: [DONE]" else said
            ends[f"{kind}: {said or 'NOTHING'}"] += 1
            return
        except httpx.HTTPError as error:
            ends[f"{kind}: NOTHING ({type(error).__name__})"] += 1
            return


async def run(clients: int, each: int) -> Counter[str]:
    ports = [free_port() for _ in range(3)]
    serve = [sys.executable, "-m", "sia_local", "serve", "-m", "story", "--threads", "1", "--slots", "4", "--port"]
    replicas = [subprocess.Popen([*serve, str(port)], stdout=subprocess.DEVNULL) for port in ports[:2]]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    balancer = subprocess.Popen([sys.executable, str(HERE / "balancer.py"), *urls[:2], "--port", str(ports[2])])
    ends: Counter[str] = Counter()
    try:
        async with httpx.AsyncClient(timeout=300) as client:
            await asyncio.gather(*(until_up(client, url) for url in urls))
            await asyncio.sleep(1.5)  # until the balancer has looked

            async def person(i: int) -> None:
                for turn in range(each):
                    await one(client, urls[2], i * each + turn, bool(i % 2), ends)

            async def killer() -> None:
                while sum(ends.values()) < clients * each // 4:
                    await asyncio.sleep(0.05)
                replicas[0].kill()

            began = time.perf_counter()
            await asyncio.gather(killer(), *map(person, range(clients)))
            took = time.perf_counter() - began
            print(f"{clients * each} requests, one of two replicas killed after a quarter, {took:.0f} s")
    finally:
        for process in (balancer, *replicas):
            process.kill()
            process.wait()
    return ends


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--each", type=int, default=4)
    given = parser.parse_args()
    counted = asyncio.run(run(given.clients, given.each))
    print("\n".join(f"{count:5} {what}" for what, count in sorted(counted.items())))
    ended = sum(count for what, count in counted.items() if "again" not in what)
    assert ended == given.clients * given.each and not any("NOTHING" in what for what in counted)
