"""The tokens of a decode: what they are, where they stand, which sequences carry them, and which give a row."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from .embeddings import EmbeddingRows
from .library import C, FloatArray, IntArray


class Batch:
    """A llama_batch whose arrays are numpy, allocated once, of `n` rows so far.

    `token`, `pos`, `output` are [capacity]; `seq` is [capacity, n_seq_max] with `n_seq[i]` ids used in row i. `n_rows`
    tokens have a row; `embd` ([capacity, n_embd]) replaces `token` after feed_vectors().
    """

    def __init__(self, capacity: int, n_seq_max: int, n_vocab: int):
        self.capacity = capacity
        self.n_rows = n_vocab
        self.n = 0
        self.token: IntArray = np.zeros(capacity, np.int32)
        self._pos: IntArray = np.zeros(4 * capacity, np.int32)
        self.pos: IntArray = self._pos[:capacity]
        self.n_seq: IntArray = np.zeros(capacity, np.int32)
        self.output = np.zeros(capacity, np.int8)
        self.seq: IntArray = np.zeros((capacity, n_seq_max), np.int32)
        self.embd: FloatArray | None = None
        self._vectors: EmbeddingRows | None = None
        int32_p = ctypes.POINTER(ctypes.c_int32)
        rows = self.seq.ctypes.data + np.arange(capacity, dtype=np.uint64) * np.uint64(self.seq.strides[0])
        self._rows = rows.astype(np.uintp)
        self.struct = C.llama_batch(
            0,
            self.token.ctypes.data_as(int32_p),
            None,
            self._pos.ctypes.data_as(int32_p),
            self.n_seq.ctypes.data_as(int32_p),
            self._rows.ctypes.data_as(ctypes.POINTER(int32_p)),
            self.output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def feed_vectors(self, rows: EmbeddingRows) -> None:
        """From now on tokens are fed as these vectors instead of ids (a model without a vocabulary)."""
        self.n_rows, self._vectors = rows.n_rows, rows
        self.embd = np.zeros((self.capacity, rows.n_embd), np.float32)
        self.struct.token = None  # type: ignore[assignment]
        self.struct.embd = self.embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))  # type: ignore[assignment]

    def add(self, tokens: Sequence[int] | IntArray, position: int, sequences: IntArray) -> None:
        """Adds tokens from a position on, each carried by all of the sequences, without output."""
        rows = self._feed(tokens)
        self.pos[rows] = np.arange(position, position + len(tokens))
        self.n_seq[rows] = len(sequences)
        self.seq[rows, : len(sequences)] = sequences
        self.output[rows] = 0

    def add_candidates(self, tokens: Sequence[int] | IntArray, position: int, sequences: IntArray) -> None:
        """Adds tokens at one position, each on a sequence of its own, with output."""
        rows = self._feed(tokens)
        self.pos[rows] = position
        self.n_seq[rows] = 1
        self.seq[rows, 0] = sequences
        self.output[rows] = 1

    def _feed(self, tokens: Sequence[int] | IntArray) -> slice:
        # What another model of the family pads its vocabulary with has no row here; this one's padding stands for it.
        rows, known = slice(self.n, self.n + len(tokens)), np.minimum(tokens, self.n_rows - 1)
        if self._vectors is None:
            self.token[rows] = known
        else:
            assert self.embd is not None
            self.embd[rows] = self._vectors[known]
        self.n = rows.stop
        return rows

    def spread_positions(self) -> None:
        """The positions of vectors for a model with several a token (M-RoPE), as llama.cpp spreads those of ids: the
        same in three sections of n, zero in the fourth."""
        n = self.n
        self._pos[n : 3 * n] = np.tile(self._pos[:n], 2)
        self._pos[3 * n : 4 * n] = 0
