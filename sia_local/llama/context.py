"""A llama_context and its batch. Logits and hidden states are numpy views into llama.cpp's own buffers, never copies:
valid until the next decode of the same context.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import FLASH_ATTENTION, KV_FORMATS, Setup
from ..errors import ConfigError, IncompatibleError, SiaError
from .batch import Batch
from .ggml import ggml_base
from .library import MAX_SEQUENCES, C, FloatArray, Handle, default_threads, quietly, reason
from .model import LoraAdapter, Model

KV_TYPES = dict(zip(KV_FORMATS, (0, 1, 8, 7, 6, 3, 2), strict=True))  # enum ggml_type
_FLASH_ATTENTION = dict(zip(FLASH_ATTENTION, (-1, 0, 1), strict=True))  # enum llama_flash_attn_type


@dataclass(frozen=True)
class ContextOptions:
    """How a context is made.

    n_ctx: cells of the KV cache, shared by all sequences. n_seq_max: sequences (sizes the output buffer:
    n_seq_max × n_vocab floats). n_batch: most tokens a decode takes. type_k / type_v: KV cache types
    (config.KV_FORMATS). flash_attention: `on`, `off`, or `auto`: llama.cpp decides on a GPU; on the CPU it stays off
    unless the V cache is quantized, since there it rounds by batch shape and a token's logits would depend on
    which rows shared its decode. unified: all sequences share the cells, which branches need; otherwise each has its
    own stream of n_ctx / n_seq_max cells and attends over nothing else.
    """

    n_ctx: int = 4096
    n_seq_max: int = 1
    n_batch: int = 512
    n_threads: int = 0
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    offload_kqv: bool = True
    unified: bool = True

    def __post_init__(self) -> None:
        if self.n_ctx < 1:
            raise ConfigError(f"n_ctx is {self.n_ctx}; expected at least 1")
        if not 1 <= self.n_seq_max <= MAX_SEQUENCES:
            raise ConfigError(
                f"{self.n_seq_max} sequences are needed, llama.cpp holds at most {MAX_SEQUENCES}; use fewer "
                "parallel sequences or fewer candidates"
            )


def options_for(model: Model, setup: Setup, branches: int = 0, *, extra: int = 0) -> ContextOptions:
    """Context options for the slots of a set-up, each with room for `branches` open candidates; extra: tokens a slot
    holds beyond setup.n_ctx, where a model reads a longer prompt. Of a recurrent model every slot keeps one state more,
    that at the end of its prompt."""
    sequences = setup.slots * (1 + branches)
    marked = not model.rolls_back and sequences + setup.slots <= MAX_SEQUENCES
    return ContextOptions(
        n_ctx=setup.slots * (setup.n_ctx + extra + branches),
        n_seq_max=sequences + setup.slots * marked,
        n_threads=setup.n_threads,
        type_k=setup.type_k,
        type_v=setup.type_v,
        flash_attention=setup.flash_attention,
        unified=branches > 0 or setup.slots == 1 or not model.rolls_back,
    )


class _FinalNorm:
    """Takes a decode's final normed hidden states out of its graph; `stops`: and cancels the rest of it, the output
    layer.

    llama.h's cb_eval asks about every node before it is computed, and `False` for a computed one ends the graph
    (ggml-backend.h). What asking costs, half a microsecond a node, is little against a large vocabulary. It sees one
    micro-batch after another: their rows are those of the batch in order as long as every sequence in it has one
    output. raised: what Python raised while it was asked, a Ctrl-C most likely, which ctypes would only print.
    """

    NODE = b"result_norm"

    def __init__(self, n_embd: int, stops: bool):
        self.stops, self.on = stops, stops
        self._n_embd = n_embd
        self._parts: list[FloatArray] = []
        self.raised: BaseException | None = None
        self.callback = C.ggml_backend_sched_eval_callback(self._on_node)
        self._lib = ggml_base()

    def clear(self) -> None:
        """Forgets an earlier decode's rows, which must not pass for the next one's."""
        self._parts, self.raised = [], None

    @property
    def rows(self) -> FloatArray:
        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts or [np.empty((0, self._n_embd), np.float32)])]
        return self._parts[0]

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        try:
            return self._see(tensor, ask)
        except BaseException as error:
            self.raised = error
            return not ask  # the decode goes on to its end

    def _see(self, tensor: int, ask: bool) -> bool:
        if ask:
            return bool(self.on and self._lib.ggml_get_name(tensor) == self.NODE)
        rows = np.empty((self._lib.ggml_nelements(tensor) // self._n_embd, self._n_embd), np.float32)
        if len(rows):
            self._lib.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
            self._parts.append(rows)
        return not self.stops


class _View:
    """llama.cpp's floats as numpy sees them. Its buffer moves seldom, and a view of the same place is not made anew:
    that would take some 50 µs a token behind a decode, which empties the caches."""

    def __init__(self) -> None:
        self._of: tuple[int, int] | None = None

    def __call__(self, pointer: Any, n: int, width: int) -> FloatArray:
        of = ctypes.addressof(pointer.contents), n
        if of != self._of:
            self._of, self._array = of, np.ctypeslib.as_array(pointer, (n, width))
        return self._array


class Context:
    """One llama_context: a KV cache (unified over its sequences), one preallocated batch, output views.

    hidden_only: decodes give hidden states of the rows with output, no logits, and compute no output layer.
    copies_wait: a share between streams is not made yet.
    outputs_all: hidden states are had in llama.cpp's embeddings mode, where every row of a batch is an output. Of a
    hybrid model they are taken out of the graph: in that mode every sequence would be computed apart, and lfm2 gives
    no logits beside them.
    """

    _ptr, _memory = Handle(), Handle()

    def __init__(
        self,
        model: Model,
        options: ContextOptions,
        adapter: LoraAdapter | None = None,
        hidden_only: bool = False,
    ):
        params = C.llama_context_default_params()
        params.n_ctx = options.n_ctx
        params.n_batch = min(options.n_batch, options.n_ctx)
        params.n_ubatch = params.n_batch
        params.n_seq_max = options.n_seq_max
        params.n_threads = params.n_threads_batch = options.n_threads or default_threads()
        params.type_k = KV_TYPES[options.type_k]
        params.type_v = KV_TYPES[options.type_v]
        flash = options.flash_attention
        if flash == "auto" and model.n_gpu_layers == 0 and options.type_v in ("f16", "f32"):
            flash = "off"
        params.flash_attn_type = _FLASH_ATTENTION[flash]
        params.offload_kqv = options.offload_kqv
        params.pooling_type = C.LLAMA_POOLING_TYPE_NONE
        params.kv_unified = options.unified
        # Layers with a sliding window keep the whole context: they would pay window + micro-batch cells, but could not
        # go back beyond the window (retry, shared prefix, another branch). It costs Gemma 3 1B, 22 of whose 26 layers
        # have a window of 512, 22 MiB of f16 each 1000 tokens, where 4 MiB would do behind the window.
        params.swa_full = True
        params.no_perf = True
        self.hidden_only = hidden_only
        self._final_norm = _FinalNorm(model.n_embd, hidden_only) if hidden_only or model.hybrid else None
        self.outputs_all = self._final_norm is None
        if self._final_norm is not None:
            params.cb_eval = self._final_norm.callback
        with quietly(model.path):
            pointer = C.llama_init_from_model(model._ptr, params)
        if not pointer:
            raise SiaError(
                f"llama.cpp could not make a context of {options.n_ctx} tokens for {model.path.name}; lower the "
                f"context length or check the KV cache types{reason()}"
            )
        self._ptr = pointer
        self.model = model
        self.adapter = adapter
        self.options = replace(options, n_threads=params.n_threads)
        self.kv_types, self.flash = (params.type_k, params.type_v), params.flash_attn_type
        self.n_ctx = int(C.llama_n_ctx(self._ptr))
        self.n_batch = int(C.llama_n_batch(self._ptr))
        self.n_seq_max = options.n_seq_max
        self._memory = C.llama_get_memory(self._ptr)
        self.copies_wait = False
        self._embeddings = False
        self._logits, self._hidden = _View(), _View()
        self.batch = Batch(self.n_batch, options.n_seq_max, model.n_vocab)
        if adapter is not None:
            adapters = (C.llama_adapter_lora_p_ctypes * 1)(adapter._ptr)
            scales = (ctypes.c_float * 1)(1.0)
            with quietly():
                status = C.llama_set_adapters_lora(self._ptr, adapters, 1, scales)
            if status != 0:
                self.close()
                raise IncompatibleError(f"{adapter.path}: llama.cpp refused this adapter{reason()}")

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pointer = self.__dict__.get("_ptr")
        self._ptr = self._memory = None
        if pointer:
            with quietly():
                C.llama_free(pointer)

    def set_embeddings(self, on: bool) -> None:
        """Whether the following decodes give hidden states, beside logits (hidden_only: either way)."""
        if self._final_norm is not None:
            self._final_norm.on = on or self.hidden_only
        elif on != self._embeddings:
            with quietly():
                C.llama_set_embeddings(self._ptr, on)
            self._embeddings = on

    def set_threads(self, n: int) -> None:
        """CPU threads of the following decodes."""
        C.llama_set_n_threads(self._ptr, n, n)

    def decode(self) -> None:
        """Runs the filled batch. Raises SiaError when llama.cpp refuses it; the batch is empty afterwards."""
        batch = self.batch
        batch.struct.n_tokens = batch.n
        if batch.embd is not None and self.model.positions == 4:
            batch.spread_positions()
        batch.n = 0
        if self._final_norm is not None:
            self._final_norm.clear()
        with quietly(self.model.path):
            status = C.llama_decode(self._ptr, batch.struct)
        if self._final_norm is not None and self._final_norm.raised is not None:
            raise self._final_norm.raised
        if status == 1:
            raise SiaError(
                f"the KV cache of {self.n_ctx} cells is full; use a longer context (--ctx) or fewer sequences"
            )
        if status != 0:
            raise SiaError(f"llama_decode failed with {status} for {self.model.path.name}{reason()}")
        self.copies_wait = False

    def logits(self, n_outputs: int) -> FloatArray:
        """View [n_outputs, n_vocab] of the last decode's logits, in batch order; valid until the next decode."""
        return self._logits(C.llama_get_logits(self._ptr), n_outputs, self.model.n_vocab)

    def hidden(self, n_outputs: int) -> FloatArray:
        """[n_outputs, n_embd], the final normed hidden states: a view, after set_embeddings(True), or hidden_only."""
        if self._final_norm is not None:
            if len(self._final_norm.rows) != n_outputs:
                raise SiaError(f"{self.model.path.name}: llama.cpp's graph of this model has no final norm to read")
            return self._final_norm.rows
        return self._hidden(C.llama_get_embeddings(self._ptr), n_outputs, self.model.n_embd)

    def synchronize(self) -> None:
        C.llama_synchronize(self._ptr)

    def seq_rm(self, seq: int, p0: int, p1: int = -1) -> None:
        """Forgets positions [p0, p1) of a sequence. IncompatibleError if the model's memory cannot."""
        if not C.llama_memory_seq_rm(self._memory, seq, p0, p1):
            raise IncompatibleError(
                f"{self.model.path.name}: this architecture cannot forget single tokens (recurrent or hybrid "
                "memory); use a transformer model"
            )

    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> None:
        C.llama_memory_seq_cp(self._memory, src, dst, p0, p1)

    def seq_share(self, src: int, dst: int, p1: int) -> None:
        """Gives an empty sequence the positions [0, p1) of another; between streams that copies a whole one, at the
        next decode."""
        if self.options.unified:
            self.seq_cp(src, dst, 0, p1)
        else:
            self.copies_wait = True
            self.seq_cp(src, dst)
            self.seq_rm(dst, p1)

    def state_size(self, seq: int) -> int:
        """Bytes that the state of a sequence takes."""
        return int(C.llama_state_seq_get_size(self._ptr, seq))

    def state(self, seq: int, size: int) -> npt.NDArray[np.uint8]:
        """A copy of what a sequence has read, [size]; behind a sliding window of what its end still sees. Wrong, as
        set_state() is, while `copies_wait`."""
        data = np.empty(size, np.uint8)
        C.llama_state_seq_get_data(self._ptr, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), size, seq)
        return data

    def set_state(self, seq: int, data: npt.NDArray[np.uint8]) -> bool:
        """Makes a copied state that of an empty sequence. False, and it stays empty, where the state does not fit."""
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        with quietly():
            return bool(C.llama_state_seq_set_data(self._ptr, pointer, data.nbytes, seq))
