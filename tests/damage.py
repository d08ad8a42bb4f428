"""Damage: GGUF files taken apart and put together otherwise, bytes and texts changed at random."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from architectures import ARCHITECTURES

Rng = np.random.Generator


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
