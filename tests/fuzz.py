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
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from architectures import ARCHITECTURES

import models
from sia_local import SIA, SiaConfig, errors
from sia_local.cli.inspection import inspect_file
from sia_local.errors import SiaError

SECONDS, BYTES = 20, 1 << 30
USED, REFUSED, TRACEBACK, GAVE_UP = 0, 1, 3, 4
# llama.cpp gives up where one of its assertions fails that no check foresees: the command ends, with a sentence.
GOOD = ("used", "refused", "gave up")
Rng = np.random.Generator
LOAD: dict[str, Any] = {"n_ctx": 96, "n_threads": 1}
DENSE = SiaConfig(gate="dense", k=4)


# ---- GGUF files, taken apart and put together again


@dataclass
class Gguf:
    """kvs: [key, type, bytes of the value]; tensors: [name, dims, ggml type, offset]; data: all of theirs."""

    kvs: list[list[Any]]
    tensors: list[list[Any]]
    data: bytes
    align: int = 32

    @classmethod
    def of(cls, whole: bytes) -> Gguf:
        at = 8
        n_tensors, n_kvs = struct.unpack_from("<QQ", whole, at)
        at += 16
        kvs, tensors = [], []
        for _ in range(n_kvs):
            key, at = _string(whole, at)
            (kind,) = struct.unpack_from("<I", whole, at)
            end = _value_end(whole, at + 4, kind)
            kvs.append([key, kind, whole[at + 4 : end]])
            at = end
        for _ in range(n_tensors):
            name, at = _string(whole, at)
            (n,) = struct.unpack_from("<I", whole, at)
            dims = list(struct.unpack_from(f"<{n}Q", whole, at + 4))
            kind, offset = struct.unpack_from("<IQ", whole, at + 4 + 8 * n)
            tensors.append([name, dims, kind, offset])
            at += 16 + 8 * n
        at += -at % cls.align
        return cls(kvs, tensors, whole[at:])

    def bytes(self) -> bytes:
        out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.kvs)))
        for key, kind, value in self.kvs:
            out += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
        for name, dims, kind, offset in self.tensors:
            out += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            out += struct.pack("<IQ", kind, offset)
        return bytes(out + bytes(-len(out) % self.align) + self.data)


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    (n,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + n], at + 8 + n


def _value_end(data: bytes, at: int, kind: int) -> int:
    if kind == 8:
        return _string(data, at)[1]
    if kind != 9:
        return at + SIZES[kind]
    element, n = struct.unpack_from("<IQ", data, at)
    at += 12
    if element != 8:
        return at + int(n) * SIZES[element]
    for _ in range(n):
        at = _string(data, at)[1]
    return at


NAMES = [
    b"",
    b"\x1b[2J\x1b]0;x\x07",
    b"\xff\xfe",
    b"{{ 1 / 0 }}",
    b"{% for",
    b"x" * 70_000,
    b"a\x00b",
    "ſİ\u2028".encode(),
]
WORDS = [
    *(b"gpt2", b"llama", b"bert", b"t5", b"rwkv", b"plamo2", b"no_vocab", b"none", b"hybriddna", b"gemma4", b"default"),
    *(b"qwen2", b"llama-bpe", b"yarn", b"longrope", b"linear", b"lora", b"adapter", b"model", b"merged", b"lean"),
    *(b"value", b"value-head", b"value-adapter", b"value-qhead", b"relu", b"gelu", b"silu"),
    *(arch.encode() for arch in (*ARCHITECTURES, "llama", "qwen2", "qwen3", "t5", "bert", "clip", "gemma3n", "phi3")),
    *(b"deepseek2", b"rwkv7", b"gpt-oss", b"falcon", b"gemma4", b"jamba", b"qwen3vl", b"whisper", b"dflash"),
]
NUMBERS = [0, 1, 2, 3, 5, 7, 15, 63, 65, 127, 255, 512, 513, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40]
NUMBERS += [(1 << 63) - 1, 1 << 63, (1 << 64) - 1]
FLOATS = [0.0, -0.0, -1.0, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), -float("inf")]


def text(value: bytes) -> bytes:
    """A text as a value of metadata."""
    return struct.pack("<Q", len(value)) + value


def _packed(rng: Rng, kind: int) -> bytes:
    if kind == 8:
        return text(NAMES[rng.integers(len(NAMES))] if rng.random() < 0.5 else WORDS[rng.integers(len(WORDS))])
    if kind in (6, 12):
        return struct.pack("<" + CODES[kind], FLOATS[rng.integers(len(FLOATS))])
    bits = 8 * SIZES[kind]
    return (NUMBERS[rng.integers(len(NUMBERS))] & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _elements(value: bytes) -> tuple[int, list[bytes]]:
    element, n = struct.unpack_from("<IQ", value)
    if element != 8:
        return element, [value[12 + i * SIZES[element] :][: SIZES[element]] for i in range(n)]
    at, out = 12, []
    for _ in range(n):
        end = _string(value, at)[1]
        out.append(value[at:end])
        at = end
    return element, out


def change_value(file: Gguf, rng: Rng) -> None:
    kv = file.kvs[rng.integers(len(file.kvs))]
    if kv[1] != 9:
        kv[2] = _packed(rng, kv[1])
        return
    element, items = _elements(kv[2])
    for _ in range(int(rng.integers(1, 4))):
        if items and rng.random() < 0.6:
            i, other = int(rng.integers(len(items))), items[int(rng.integers(len(items)))]
            items[i] = other if rng.random() < 0.5 else _packed(rng, element)
        elif items and rng.random() < 0.5:
            items = items[: rng.integers(len(items))]
        else:
            items += [_packed(rng, element) for _ in range(int(rng.integers(1, 9)))]
    kv[2] = struct.pack("<IQ", element, len(items)) + b"".join(items)


def change_type(file: Gguf, rng: Rng) -> None:
    kv = file.kvs[rng.integers(len(file.kvs))]
    kv[1] = int(rng.choice([*SIZES, 8]))
    kv[2] = _packed(rng, kv[1])


def drop_key(file: Gguf, rng: Rng) -> None:
    del file.kvs[rng.integers(len(file.kvs))]


def double_key(file: Gguf, rng: Rng) -> None:
    file.kvs.append(list(file.kvs[rng.integers(len(file.kvs))]))


def rename_key(file: Gguf, rng: Rng) -> None:
    file.kvs[rng.integers(len(file.kvs))][0] = NAMES[rng.integers(len(NAMES))] or b"general.alignment"


def change_tensor(file: Gguf, rng: Rng) -> None:
    if not file.tensors:
        return change_value(file, rng)
    tensor = file.tensors[rng.integers(len(file.tensors))]
    what = rng.integers(6)
    if what == 0:
        tensor[0] = [*NAMES, file.tensors[0][0], b"blk.99.attn_q.weight", b"rope_freqs.weight"][rng.integers(11)]
    elif what == 1:
        tensor[1][rng.integers(len(tensor[1]))] = NUMBERS[rng.integers(len(NUMBERS))]
    elif what == 2:
        tensor[1] = [*tensor[1], 1, 2][: rng.integers(1, 5)]
    elif what == 3:
        tensor[2] = int(rng.integers(0, 45))
    elif what == 4:
        tensor[3] = NUMBERS[rng.integers(len(NUMBERS))]
    else:
        file.tensors.remove(tensor)


def noise(file: Gguf, rng: Rng) -> None:
    """Numbers of the tensors that no model has."""
    data = bytearray(file.data)
    for _ in range(int(rng.integers(1, 200))):
        if len(data) > 8:
            at = int(rng.integers(len(data) - 4)) & ~3
            data[at : at + 4] = struct.pack("<f", FLOATS[rng.integers(len(FLOATS))])
    file.data = bytes(data)


STRUCTURAL = [
    change_value,
    change_value,
    change_value,
    change_type,
    drop_key,
    double_key,
    rename_key,
    change_tensor,
    noise,
]


def damage(data: bytes, rng: Rng) -> bytes:
    """Bits flipped, cut, zeroed, enlarged, inserted, doubled; more often near the beginning, where headers are."""
    out = bytearray(data)
    end = len(out) if rng.random() < 0.3 else min(len(out), 4096)
    if end < 2:
        return bytes(rng.integers(0, 256, 16, np.uint8))
    at, n = int(rng.integers(end)), int(2 ** rng.integers(0, 9))
    what = rng.integers(6)
    if what == 0:
        for i in rng.integers(0, end, int(rng.integers(1, 20))):
            out[i] ^= 1 << int(rng.integers(8))
    elif what == 1:
        del out[int(rng.integers(len(out))) :]
    elif what == 2:
        out[at : at + n] = bytes([0 if rng.random() < 0.5 else 255]) * n
    elif what == 3:
        out[at : at + 8] = NUMBERS[rng.integers(len(NUMBERS))].to_bytes(8, "little")
    elif what == 4:
        out[at:at] = bytes(rng.integers(0, 256, n, np.uint8))
    else:
        out[at:at] = out[at : at + n]
    return bytes(out)


def damaged_gguf(data: bytes, rng: Rng) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.65:
            try:
                file = Gguf.of(data)
                STRUCTURAL[rng.integers(len(STRUCTURAL))](file, rng)
                data = file.bytes()
                continue
            except (struct.error, KeyError, IndexError, MemoryError, OverflowError, ValueError):
                pass
        data = damage(data, rng)
    return data


# ---- texts

ODD = [
    *("null", "true", "-1", "0", "1e999", "NaN", "-Infinity", "1.5", '""', "[]", "{}", '"\\ud800"', '"\\u0000"', "'x'"),
    *(
        "[" * 3000,
        '{"a":' * 3000,
        '"' + "x" * 5000 + '"',
        "9" * 5000,
        "[1, [2, [3]]]",
        '{"role": 1}',
        "\u2028",
        "\x1b[2J",
    ),
    *('"dense"', '"rate"', "inf", "nan", "2026-01-01", "0x10", "#", "=", ",", '"""', "\ufeff", "\r\n", "\x00"),
]


def damaged_text(data: bytes, rng: Rng) -> bytes:
    import re

    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.3:
            data = damage(data, rng)
            continue
        spans = [m.span() for m in re.finditer(rb'"(?:[^"\\\n]|\\.)*"|[-\w.]+|[\[\]{}:,=]', data)]
        if not spans:
            return data
        a, b = spans[rng.integers(len(spans))]
        what = rng.random()
        if what < 0.6:
            new = ODD[rng.integers(len(ODD))].encode("utf-8", "surrogatepass")
        elif what < 0.8:
            other = spans[rng.integers(len(spans))]
            new = data[other[0] : other[1]]
        else:
            new = b""
        data = data[:a] + new + data[b:]
    return data


# ---- what is tried


@dataclass
class Target:
    """seeds: whole files to damage; damage: how; tries: what reads them, given the damaged file."""

    name: str
    seeds: list[Path]
    damage: Callable[[bytes, Rng], bytes]
    tries: Callable[[Path], None]
    share: float = 1.0

    def files(self, seed: int, n: int, folder: Path) -> Iterator[Path]:
        for i in range(n):
            rng = np.random.default_rng([seed, i, *self.name.encode()])
            source = self.seeds[rng.integers(len(self.seeds))]
            made = folder / f"{self.name}-{seed}-{i}{source.suffix}"
            made.write_bytes(self.damage(source.read_bytes(), rng))
            yield made


def gguf_targets(folder: Path) -> list[Target]:
    def made(arch: str, kind: str, **over: Any) -> Path:
        return models.write(folder / f"{arch}-{kind}-{len(over)}.gguf", arch, kind, **over)

    base = made("qwen3", "base")

    def as_base(path: Path) -> None:
        inspect_file(path)
        with SIA.load(path, **LOAD) as sia:
            list(sia.generate("hello there", max_tokens=3))

    def as_value(path: Path) -> None:
        inspect_file(path)
        with SIA.load(base, path, **LOAD) as sia:
            list(sia.generate("hello there", DENSE, max_tokens=3))

    def as_guide(path: Path) -> None:
        from sia_local import Guides

        with SIA.load(base, Guides(path), **LOAD) as sia:
            list(sia.generate("hello there", DENSE, max_tokens=3))

    bases = [made(arch, "base") for arch in ("llama", *ARCHITECTURES)] + [base, base, base]
    values = [made("qwen3", kind) for kind in ("merged", "lean", "adapter", "head")] + [made("lfm2", "lean")]
    hidden = np.random.default_rng(3).standard_normal((8, models.N_EMBD))
    values.append(made("qwen3", "head", head=np.ones(8), hidden=hidden))
    return [
        Target("base", bases, damaged_gguf, as_base, 0.45),
        Target("value", values, damaged_gguf, as_value, 0.35),
        Target("qhead", [made("qwen3", "qhead")], damaged_gguf, as_value, 0.15),
        Target("guide", [made("qwen3", "base", padding=8)], damaged_gguf, as_guide, 0.05),
    ]


def text_targets(folder: Path) -> list[Target]:
    from sia_convert.data.outputs import Appender
    from sia_convert.data.preferences import read_pairs
    from sia_convert.data.trajectories import Trajectory, check_rewards, read_trajectories
    from sia_convert.plan import read_plan

    from sia_local.chat.session import Session
    from sia_local.evaluation.profile import Profile
    from sia_local.prompts import read_prompt_items

    root = Path(__file__).parent.parent
    base = models.write(folder / "base.gguf", "qwen3", "base", template="")

    def wrote(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    lines = [
        Trajectory(f"{i}-0", i, "hello", "<hello>", [1, 2, 3], "there", "stop", 0.1 * i, 2).to_json() for i in range(3)
    ]
    pairs = '{"prompt": "hello", "chosen": "a", "rejected": "b"}\n{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", '
    pairs += '"rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}\n'
    prompts = '{"instruction": "Say", "input": "it", "output": "it", "id": 3}\n'
    prompts += '{"messages": [{"role": "user", "content": "hello"}]}\n{"prompt": "hello"}\n'
    chat = '{"version": 1, "system": "Be kind.", "turns": [{"role": "user", "content": "a"}, {"role": "assistant", '
    chat += '"content": "b"}], "steering": true, "settings": {"beta": 1.0, "gate": "rate", "rate": 0.2}}\n'

    def trajectories(path: Path) -> None:
        list(read_trajectories([path]))
        check_rewards(read_trajectories([path]))

    def resumed(path: Path) -> None:
        with Appender(path, {"temperature": 1.0}) as out:
            out(lines[0].replace("0-0", "9-9"))

    def loaded_chat(path: Path) -> None:
        with SIA.load(base, **LOAD) as sia:
            Session(sia).load(path)

    def chosen_pairs(path: Path) -> None:
        read_pairs(path, 2)

    def prompt_items(path: Path) -> None:
        read_prompt_items(path)

    def profile(path: Path) -> None:
        Profile.read(path)

    def plan(path: Path) -> None:
        read_plan(path)

    tables = [wrote("p.jsonl", prompts), wrote("p.json", f"[{prompts.splitlines()[0]}]"), wrote("p.txt", "a\nb\n")]
    tables += [wrote("p.csv", 'prompt,input\n"a, b",c\n'), wrote("p.tsv", "prompt\tinput\na\tc\n")]
    return [
        Target("profile", sorted((root / "models").glob("*.profile.toml")), damaged_text, profile),
        Target("plan", [*sorted((root / "models").glob("*.toml")), root / "examples/qwen3.toml"], damaged_text, plan),
        Target("prompts", tables, damaged_text, prompt_items),
        Target("trajectories", [wrote("t.jsonl", "\n".join(lines) + "\n")], damaged_text, trajectories),
        Target("resumed", [wrote("r.jsonl", "\n".join(lines) + "\n")], damaged_text, resumed),
        Target("pairs", [wrote("pairs.jsonl", pairs)], damaged_text, chosen_pairs),
        Target("chat", [wrote("chat.json", chat)], damaged_text, loaded_chat),
    ]


# ---- requests to a server

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


# ---- one file in a process of its own


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
    """Tries n files of each target (times its share); prints what is bad. Returns the outcomes by target and kind."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            for i, path in enumerate(target.files(seed, round(n * target.share), Path(folder))):
                if i < first:
                    path.unlink()
                    continue
                outcome = attempt(target, path)
                counts[f"{target.name} {outcome.kind}"] += 1
                if outcome.bad:
                    print(f"{path.name}: {outcome.kind}: {outcome.said.strip()[-400:]}", flush=True)
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / path.name).write_bytes(path.read_bytes())
                path.unlink(missing_ok=True)
    return counts


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
        counts = campaign([t for t in models_of if args.only in t.name], args.files, args.seed, args.keep, args.first)
        counts += campaign([t for t in texts if args.only in t.name], args.files // 4, args.seed, args.keep, args.first)
        if args.only in "http":
            counts += requests(Path(folder), args.files // 4, args.seed)
    for name, count in sorted(counts.items()):
        print(f"{name:30} {count}")
    bad = sum(count for name, count in counts.items() if name.split(" ", 1)[1] not in GOOD)
    print(f"{counts.total()} files in {time.monotonic() - started:.0f} s, {bad} bad")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
