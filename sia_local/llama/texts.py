"""Arrays of texts in a GGUF's header, as they lie in the file. A vocabulary is one: 150,000 entries, which one call of
ggml each would take longer to read than all else of the file that is not weights. Imports numpy and nothing of
llama.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .gguf_write import ARRAY, SCALARS, STRING

_SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in SCALARS.items()}
_LENGTH, _TYPE, _ELEMENTS = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<IQ")
# The first n of eight bytes, and a number whose products mix them: 2^64 over the golden ratio.
_FIRST = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_START = 24  # magic, version, numbers of tensors and keys


@dataclass(frozen=True, eq=False)
class Texts:
    """stored: every entry's length (u64, little endian) and bytes. bounds: where each begins in it, int64 [n + 1]."""

    stored: bytes
    bounds: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def may_repeat(self) -> bool:
        """Whether two entries may be equal; if not, they are not. By hashes of lengths and of the first 64 bytes, in a
        fifth of the time that a set of all entries takes."""
        at, sizes = self.bounds[:-1] + 8, np.diff(self.bounds) - 8
        words = np.ndarray(len(self.stored) + 1, "<u8", self.stored + bytes(8), strides=(1,))
        hashes = sizes.astype(np.uint64)
        for done in range(0, min(64, int(sizes.max(initial=0))), 8):
            (longer,) = (sizes > done).nonzero()
            word = words[at[longer] + done] & _FIRST[np.minimum(sizes[longer] - done, 8)]
            mixed = (hashes[longer] ^ word) * _ODD
            hashes[longer] = mixed ^ mixed >> np.uint64(32)
        hashes.sort()
        return bool((hashes[1:] == hashes[:-1]).any())

    def entries(self) -> list[bytes]:
        sizes = (np.diff(self.bounds) - 8).tolist()
        forms = {size: f"8x{size}s" for size in set(sizes)}
        # One call for all of them; not struct.unpack, which would keep a form of this length.
        return list(struct.Struct("".join(map(forms.__getitem__, sizes))).unpack(self.stored))


def find_texts(header: bytes, key: str) -> Texts | None:
    """The array of texts under a key; None if there is none. header: the file up to its tensors, which ggml has read
    and found whole."""
    wanted, at = key.encode(), _START
    (n_keys,) = _LENGTH.unpack_from(header, 16)
    for _ in range(n_keys):
        (n,) = _LENGTH.unpack_from(header, at)
        name, at = header[at + 8 : at + 8 + n], at + 8 + n
        (kind,) = _TYPE.unpack_from(header, at)
        at += 4
        if kind == STRING:
            at += 8 + _LENGTH.unpack_from(header, at)[0]
        elif kind != ARRAY:
            at += _SIZES[kind]
        else:
            element, n = _ELEMENTS.unpack_from(header, at)
            at += _ELEMENTS.size
            if element != STRING:
                at += n * _SIZES[element]
                continue
            bounds = _bounds(header, at, n)
            if name == wanted:
                return Texts(header[at : int(bounds[-1])], bounds - at)
            at = int(bounds[-1])
    return None


def _bounds(header: bytes, at: int, n: int) -> npt.NDArray[np.int64]:
    """Where n texts from `at` on begin, and where the last ends, int64 [n + 1]."""
    data = np.frombuffer(header, np.uint8, offset=at)
    # The length of a text below 256 bytes is a byte and seven zeros; an entry that ends where the next such eight
    # begin, and so on from the first, is what reading one after another would find.
    near = data[: 32 * n + 8]  # twice what a vocabulary takes; longer texts are read one after another
    two = (near[:-1] | near[1:]) == 0
    four = two[:-2] & two[2:]
    starts = np.flatnonzero(four[:-3] & four[3:])[:n] - 1
    if n and len(starts) == n and starts[0] == 0:
        ends = starts + 8 + data[starts]
        if np.array_equal(ends[:-1], starts[1:]) and ends[-1] <= len(data):
            return np.append(starts, ends[-1]) + at
    bounds = np.empty(n + 1, np.int64)
    for i in range(n):
        bounds[i] = at
        at += 8 + _LENGTH.unpack_from(header, at)[0]
    bounds[n] = at
    return bounds
