"""The only file that touches llama.cpp: owns every pointer, its lifetime and its error codes.

Everything here is a thin shell over the low-level API of llama-cpp-python (struct layouts change between its
releases, so one exact version is pinned and checked at import). Logits and hidden states come out as numpy
views into llama.cpp's own buffers: they are valid until the next decode of the same context and never copied.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as _installed_version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import gguf_keys
from .errors import ConfigError, IncompatibleError, ModelFileError, SiaError

PINNED = "0.3.36"
if _installed_version("llama-cpp-python") != PINNED:
    raise SiaError(
        f"llama-cpp-python {_installed_version('llama-cpp-python')} is installed, {PINNED} is needed (struct "
        f"layouts differ between releases); run: pip install llama-cpp-python=={PINNED}"
    )

import llama_cpp  # noqa: E402
from llama_cpp import llama_cpp as C  # noqa: E402

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
MAX_SEQUENCES = int(C.llama_max_parallel_sequences())

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_LOG_ERROR = 4
_last_errors: list[str] = []


@C.llama_log_callback
def _on_log(level: int, text: bytes, _: Any) -> None:
    if level == _LOG_ERROR:
        _last_errors.append(text.decode("utf-8", "replace").strip())
        del _last_errors[:-8]


C.llama_log_set(_on_log, ctypes.c_void_p(0))
C.llama_backend_init()
# GCC drops the tile configuration of this release's AMX kernels, and the first decode is a segmentation fault
# (llama.cpp's pull request 26954). Without the extra buffer types the AVX-512 kernels run instead.
_AMX = b"AMX_INT8 = 1" in C.llama_print_system_info()


def _reason() -> str:
    """The last thing llama.cpp logged as an error, for the tail of a sentence."""
    said = next((line for line in _last_errors if line and "failed to load model" not in line), "")
    _last_errors.clear()
    return f" (llama.cpp: {said})" if said else ""


def versions() -> dict[str, str]:
    """Names and versions that identify a measurement."""
    return {
        "llama-cpp-python": llama_cpp.__version__,
        "numpy": np.__version__,
        "backend": backend_name(),
        "system": C.llama_print_system_info().decode().strip(),
    }


def backend_name() -> str:
    """The fastest backend this build of llama.cpp can use: CUDA, Metal, Vulkan … or CPU."""
    if not C.llama_supports_gpu_offload():
        return "CPU"
    info = C.llama_print_system_info().decode()
    return next((name for name in ("CUDA", "Metal", "MTL", "Vulkan", "ROCm", "SYCL") if name in info), "GPU")


def default_threads() -> int:
    """One thread a core this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def check_gguf(path: str | os.PathLike[str]) -> Path:
    """Raises ModelFileError for a file that is missing, empty or not GGUF, before llama.cpp looks at it."""
    file = Path(path)
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file; expected a GGUF model, check the path")
    if file.stat().st_size == 0:
        raise ModelFileError(f"{file}: the file is empty; expected a GGUF model, download or convert it again")
    with file.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise ModelFileError(
            f"{file}: starts with {magic!r}, a GGUF file starts with b'GGUF'; convert the model with "
            "`sia-convert hf-to-gguf`"
        )
    return file


class GgufMetadata:
    """Metadata of a GGUF file through ggml's own reader: all keys, arrays included, a few ms a file.

    Use as a context manager; values are copied out, so they outlive it.
    """

    _SCALARS = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool"} | {
        10: "u64",
        11: "i64",
        12: "f64",
    }
    _DTYPES = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8"} | {
        12: "f8"
    }

    def __init__(self, path: str | os.PathLike[str]):
        self.path = check_gguf(path)
        self._lib = _gguf_library()
        self._ctx = self._lib.gguf_init_from_file(os.fsencode(self.path), _GgufInit(True, None))
        if not self._ctx:
            raise ModelFileError(
                f"{self.path}: the GGUF header cannot be read, the file is probably truncated or damaged; "
                f"download or convert it again{_reason()}"
            )

    def __enter__(self) -> GgufMetadata:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._ctx:
            self._lib.gguf_free(self._ctx)
            self._ctx = None

    def keys(self) -> Iterator[str]:
        for i in range(self._lib.gguf_get_n_kv(self._ctx)):
            yield self._lib.gguf_get_key(self._ctx, i).decode()

    def __contains__(self, key: str) -> bool:
        return self._lib.gguf_find_key(self._ctx, key.encode()) >= 0

    def get(self, key: str, default: Any = None) -> Any:
        """Scalar, str, numpy array (numeric arrays) or list[bytes] (string arrays); `default` if absent."""
        i = self._lib.gguf_find_key(self._ctx, key.encode())
        if i < 0:
            return default
        kind = self._lib.gguf_get_kv_type(self._ctx, i)
        if kind == 8:
            return self._lib.gguf_get_val_str(self._ctx, i).decode("utf-8", "replace")
        if kind == 9:
            n, element = self._lib.gguf_get_arr_n(self._ctx, i), self._lib.gguf_get_arr_type(self._ctx, i)
            if element == 8:
                get, ctx = self._lib.gguf_get_arr_str, self._ctx
                return [get(ctx, i, j) for j in range(n)]
            dtype = np.dtype(self._DTYPES[element])
            if n == 0:
                return np.empty(0, dtype)
            data = self._lib.gguf_get_arr_data(self._ctx, i)
            return np.frombuffer(ctypes.string_at(data, n * dtype.itemsize), dtype).copy()
        return getattr(self._lib, f"gguf_get_val_{self._SCALARS[kind]}")(self._ctx, i)

    def array_length(self, key: str) -> int:
        """Entries of an array key without reading them; 0 if absent."""
        i = self._lib.gguf_find_key(self._ctx, key.encode())
        return self._lib.gguf_get_arr_n(self._ctx, i) if i >= 0 else 0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape by tensor name, ggml order (fastest dimension first)."""
        out = {}
        for i in range(self._lib.gguf_get_n_tensors(self._ctx)):
            ne = self._lib.gguf_get_tensor_ne(self._ctx, i)
            shape = [ne[d] for d in range(4)]
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            out[self._lib.gguf_get_tensor_name(self._ctx, i).decode()] = tuple(shape)
        return out

    def tensor_span(self, name: str) -> tuple[int, int, int]:
        """(ggml type, offset in the file, bytes) of one tensor. KeyError if there is none of that name."""
        i = self._lib.gguf_find_tensor(self._ctx, name.encode())
        if i < 0:
            raise KeyError(name)
        offset = self._lib.gguf_get_data_offset(self._ctx) + self._lib.gguf_get_tensor_offset(self._ctx, i)
        size = self._lib.gguf_get_tensor_size(self._ctx, i)
        return self._lib.gguf_get_tensor_type(self._ctx, i), offset, size

    def vocab_sha256(self) -> str | None:
        """Fingerprint of the token list, None for a file without one."""
        tokens = self.get("tokenizer.ggml.tokens")
        return gguf_keys.vocab_sha256(tokens) if tokens else None


class _GgufInit(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


class _TypeTraits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


def row_bytes(ggml_type: int, n: int) -> int:
    """Bytes of a row of n numbers in a ggml format."""
    return int(_gguf_library().ggml_row_size(ggml_type, n))


def dequantize(rows: npt.NDArray[np.uint8], ggml_type: int, n: int) -> FloatArray:
    """float32 [len(rows), n] of rows in any ggml format, by ggml's own conversion."""
    rows = np.ascontiguousarray(rows)
    if ggml_type == 0:
        return rows.view(np.float32).reshape(len(rows), n)
    out = np.empty((len(rows), n), np.float32)
    traits = _gguf_library().ggml_get_type_traits(ggml_type).contents
    traits.to_float(rows.ctypes.data, out.ctypes.data, out.size)
    return out


def _gguf_library() -> Any:
    """ggml-base with the prototypes of ggml/include/gguf.h, ggml.h and ggml-backend.h that are used here."""
    global _gguf_lib
    if _gguf_lib is None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
        lib: Any = ctypes.CDLL(str(next(folder / n for n in names if (folder / n).exists())))
        ptr, i64, string, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t
        prototypes: dict[str, tuple[Any, list[Any]]] = {
            "gguf_init_from_file": (ptr, [string, _GgufInit]),
            "gguf_free": (None, [ptr]),
            "gguf_get_n_kv": (i64, [ptr]),
            "gguf_find_key": (i64, [ptr, string]),
            "gguf_get_key": (string, [ptr, i64]),
            "gguf_get_kv_type": (ctypes.c_int, [ptr, i64]),
            "gguf_get_arr_type": (ctypes.c_int, [ptr, i64]),
            "gguf_get_arr_n": (size, [ptr, i64]),
            "gguf_get_arr_data": (ptr, [ptr, i64]),
            "gguf_get_arr_str": (string, [ptr, i64, size]),
            "gguf_get_val_str": (string, [ptr, i64]),
            "gguf_get_n_tensors": (i64, [ptr]),
            "gguf_find_tensor": (i64, [ptr, string]),
            "gguf_get_data_offset": (size, [ptr]),
            "gguf_get_tensor_offset": (size, [ptr, i64]),
            "gguf_get_tensor_size": (size, [ptr, i64]),
            "gguf_get_tensor_type": (ctypes.c_int, [ptr, i64]),
            "gguf_get_tensor_name": (string, [ptr, i64]),
            "gguf_get_tensor_ne": (ctypes.POINTER(i64), [ptr, i64]),
            "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), [ctypes.c_int]),
            "ggml_row_size": (size, [ctypes.c_int, i64]),
            "ggml_get_name": (string, [ptr]),
            "ggml_nelements": (i64, [ptr]),
            "ggml_backend_tensor_get": (None, [ptr, ptr, size, size]),
        }
        scalars: dict[str, Any] = {"u8": ctypes.c_uint8, "i8": ctypes.c_int8}
        scalars |= {"u16": ctypes.c_uint16, "i16": ctypes.c_int16}
        scalars |= {"u32": ctypes.c_uint32, "i32": ctypes.c_int32, "u64": ctypes.c_uint64, "i64": i64}
        scalars |= {"f32": ctypes.c_float, "f64": ctypes.c_double, "bool": ctypes.c_bool}
        prototypes |= {f"gguf_get_val_{name}": (kind, [ptr, i64]) for name, kind in scalars.items()}
        for name, (restype, argtypes) in prototypes.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = restype, argtypes
        _gguf_lib = lib
    return _gguf_lib


_gguf_lib: Any = None


class Model:
    """Weights and vocabulary of one GGUF file. Close it after every context made from it."""

    def __init__(self, path: str | os.PathLike[str], *, n_gpu_layers: int = 0, vocab_only: bool = False):
        self.path = check_gguf(path)
        params = C.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.vocab_only = vocab_only
        params.use_extra_bufts = not _AMX
        self.n_gpu_layers = n_gpu_layers
        self._ptr = C.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._ptr:
            raise ModelFileError(
                f"{self.path}: llama.cpp cannot load this file; it may be truncated, damaged, or of an "
                f"architecture this release does not know{_reason()}"
            )
        self._vocab = C.llama_model_get_vocab(self._ptr)
        self.n_vocab = int(C.llama_vocab_n_tokens(self._vocab))
        self.n_embd = int(C.llama_model_n_embd(self._ptr))
        self.n_ctx_train = int(C.llama_model_n_ctx_train(self._ptr))
        self._pieces: dict[int, bytes] = {}

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._ptr:
            C.llama_model_free(self._ptr)
            self._ptr = None

    @property
    def size_bytes(self) -> int:
        return int(C.llama_model_size(self._ptr))

    @property
    def description(self) -> str:
        """Architecture, size and quantization as llama.cpp names them, e.g. `qwen3 0.6B Q4_K - Medium`."""
        buffer = ctypes.create_string_buffer(128)
        C.llama_model_desc(self._ptr, buffer, len(buffer))
        return buffer.value.decode()

    @property
    def rolls_back(self) -> bool:
        """False for recurrent and hybrid models: their state cannot forget a single token."""
        return not (C.llama_model_is_recurrent(self._ptr) or C.llama_model_is_hybrid(self._ptr))

    def meta(self, key: str) -> str | None:
        """A scalar metadata value as llama.cpp prints it; None if absent. Arrays: GgufMetadata."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = C.llama_model_meta_val_str(self._ptr, key.encode(), buffer, size)
            if n < 0:
                return None
            if n < size:
                return buffer.value.decode("utf-8", "replace")
            size = n + 1

    @property
    def chat_template(self) -> str | None:
        text = C.llama_model_chat_template(self._ptr, None)
        return text.decode("utf-8", "replace") if text else None

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text has bytes that are not UTF-8 at character {error.start}; give it as UTF-8"
            ) from None
        size = len(data) + 8
        buffer = (ctypes.c_int32 * size)()
        n = C.llama_tokenize(self._vocab, data, len(data), buffer, size, add_special, parse_special)
        if n < 0:
            buffer = (ctypes.c_int32 * -n)()
            n = C.llama_tokenize(self._vocab, data, len(data), buffer, -n, add_special, parse_special)
        return list(buffer[:n])

    def piece(self, token: int) -> bytes:
        """The bytes one token adds to the text (a fraction of a character is possible); b'' for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(64)
            n = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            known = self._pieces[token] = buffer.raw[:n]
        return known

    def token_text(self, token: int) -> str:
        """A token as the vocabulary spells it, for display of control tokens."""
        return C.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (end of text, end of turn)."""
        return bool(C.llama_vocab_is_eog(self._vocab, token))

    @property
    def bos(self) -> int:
        """Beginning-of-sequence token, -1 if the vocabulary has none."""
        return int(C.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        return int(C.llama_vocab_eos(self._vocab))


class LoraAdapter:
    """A LoRA adapter over a loaded model; freed with the model by llama.cpp, or earlier by close()."""

    def __init__(self, model: Model, path: str | os.PathLike[str]):
        self.path = check_gguf(path)
        self._ptr = C.llama_adapter_lora_init(model._ptr, os.fsencode(self.path))
        if not self._ptr:
            raise IncompatibleError(
                f"{self.path}: this LoRA adapter does not fit {model.path.name}; it must be exported for that "
                f"very base model{_reason()}"
            )

    def close(self) -> None:
        if self._ptr:
            C.llama_adapter_lora_free(self._ptr)
            self._ptr = None


@dataclass(frozen=True)
class ContextOptions:
    """How a context is made.

    n_ctx: cells of the KV cache, shared by all sequences. n_seq_max: sequences (sizes the output buffer:
    n_seq_max × n_vocab floats). n_batch: most tokens a decode takes. type_k / type_v: KV cache types
    (KV_TYPES). flash_attention: `on`, `off`, or `auto`: llama.cpp decides on a GPU; on the CPU it stays off
    unless the V cache is quantized, since there it rounds by batch shape and a token's logits would depend on
    which rows shared its decode.
    """

    n_ctx: int = 4096
    n_seq_max: int = 1
    n_batch: int = 512
    n_threads: int = 0
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: str = "auto"
    offload_kqv: bool = True

    def __post_init__(self) -> None:
        if self.n_ctx < 1:
            raise ConfigError(f"n_ctx is {self.n_ctx}; expected at least 1")
        if not 1 <= self.n_seq_max <= MAX_SEQUENCES:
            raise ConfigError(
                f"{self.n_seq_max} sequences are needed, llama.cpp holds at most {MAX_SEQUENCES}; use fewer "
                "parallel sequences or fewer candidates"
            )
        for name in (self.type_k, self.type_v):
            if name not in KV_TYPES:
                raise ConfigError(f"unknown KV cache type {name!r}; expected one of {', '.join(KV_TYPES)}")
        if self.flash_attention not in FLASH_ATTENTION:
            raise ConfigError(
                f"unknown flash attention setting {self.flash_attention!r}; expected one of "
                f"{', '.join(FLASH_ATTENTION)}"
            )


class _FinalNorm:
    """Takes a decode's final normed hidden states out of its graph and cancels the rest of it: the output layer.

    llama.h's cb_eval asks about every node before it is computed, and `False` for a computed one ends the graph
    (ggml-backend.h). What asking costs, half a microsecond a node, is little against a large vocabulary.
    """

    NODE = b"result_norm"

    def __init__(self, n_embd: int):
        self.rows: FloatArray = np.empty((0, n_embd), np.float32)
        self.callback = C.ggml_backend_sched_eval_callback(self._on_node)
        self._lib = _gguf_library()

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        if ask:
            return bool(self._lib.ggml_get_name(tensor) == self.NODE)
        n_embd = self.rows.shape[1]
        self.rows = np.empty((self._lib.ggml_nelements(tensor) // n_embd, n_embd), np.float32)
        if len(self.rows):
            self._lib.ggml_backend_tensor_get(tensor, self.rows.ctypes.data, 0, self.rows.nbytes)
        return False


class Context:
    """One llama_context: a KV cache (unified over its sequences), one preallocated batch, output views.

    hidden_only: decodes give hidden states of the rows with output, no logits, and compute no output layer.
    """

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
        params.flash_attn_type = FLASH_ATTENTION[flash]
        params.offload_kqv = options.offload_kqv
        params.pooling_type = C.LLAMA_POOLING_TYPE_NONE
        params.kv_unified = True
        params.no_perf = True
        self.hidden_only = hidden_only
        self._final_norm = _FinalNorm(model.n_embd) if hidden_only else None
        if self._final_norm is not None:
            params.cb_eval = self._final_norm.callback
        self._ptr = C.llama_init_from_model(model._ptr, params)
        if not self._ptr:
            raise SiaError(
                f"llama.cpp could not make a context of {options.n_ctx} tokens for {model.path.name}; lower the "
                f"context length or check the KV cache types{_reason()}"
            )
        self.model = model
        self.adapter = adapter
        self.options = replace(options, n_threads=params.n_threads)
        self.kv_types, self.flash = (params.type_k, params.type_v), params.flash_attn_type
        self.n_ctx = int(C.llama_n_ctx(self._ptr))
        self.n_batch = int(C.llama_n_batch(self._ptr))
        self.n_seq_max = options.n_seq_max
        self._memory = C.llama_get_memory(self._ptr)
        self._embeddings = False
        self.batch = Batch(self.n_batch, options.n_seq_max)
        if adapter is not None:
            adapters = (C.llama_adapter_lora_p_ctypes * 1)(adapter._ptr)
            scales = (ctypes.c_float * 1)(1.0)
            if C.llama_set_adapters_lora(self._ptr, adapters, 1, scales) != 0:
                self.close()
                raise IncompatibleError(f"{adapter.path}: llama.cpp refused this adapter{_reason()}")

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._ptr:
            C.llama_free(self._ptr)
            self._ptr = None

    def set_embeddings(self, on: bool) -> None:
        """While on, every token of a batch is an output with logits and hidden state: only for such batches."""
        if on != self._embeddings:
            C.llama_set_embeddings(self._ptr, on)
            self._embeddings = on

    def set_threads(self, n: int) -> None:
        """CPU threads of the following decodes."""
        C.llama_set_n_threads(self._ptr, n, n)

    def decode(self) -> None:
        """Runs the filled batch. Raises SiaError when llama.cpp refuses it; the batch is empty afterwards."""
        batch = self.batch
        batch.struct.n_tokens = batch.n
        batch.n = 0
        if self._final_norm is not None:
            self._final_norm.rows = self._final_norm.rows[:0]  # those of an earlier decode must not pass for this one's
        status = C.llama_decode(self._ptr, batch.struct)
        if status == 1:
            raise SiaError(
                f"the KV cache of {self.n_ctx} cells is full; use a longer context (--ctx) or fewer sequences"
            )
        if status != 0:
            raise SiaError(f"llama_decode failed with {status} for {self.model.path.name}{_reason()}")

    def logits(self, n_outputs: int) -> FloatArray:
        """View [n_outputs, n_vocab] of the last decode's logits, in batch order; valid until the next decode."""
        ptr = C.llama_get_logits(self._ptr)
        return np.ctypeslib.as_array(ptr, (n_outputs, self.model.n_vocab))

    def hidden(self, n_outputs: int) -> FloatArray:
        """[n_outputs, n_embd], the final normed hidden states: a view, after set_embeddings(True), or hidden_only."""
        if self._final_norm is not None:
            if len(self._final_norm.rows) != n_outputs:
                raise SiaError(f"{self.model.path.name}: llama.cpp's graph of this model has no final norm to read")
            return self._final_norm.rows
        ptr = C.llama_get_embeddings(self._ptr)
        return np.ctypeslib.as_array(ptr, (n_outputs, self.model.n_embd))

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


class Batch:
    """A llama_batch whose arrays are numpy, allocated once.

    `token`, `pos`, `output` are [capacity]; `seq` is [capacity, n_seq_max] with `n_seq[i]` ids used in row i.
    `embd` ([capacity, n_embd]) replaces `token` after use_embeddings().
    """

    def __init__(self, capacity: int, n_seq_max: int):
        self.capacity = capacity
        self.n = 0
        self.token: IntArray = np.zeros(capacity, np.int32)
        self.pos: IntArray = np.zeros(capacity, np.int32)
        self.n_seq: IntArray = np.zeros(capacity, np.int32)
        self.output = np.zeros(capacity, np.int8)
        self.seq: IntArray = np.zeros((capacity, n_seq_max), np.int32)
        self.embd: FloatArray | None = None
        int32_p = ctypes.POINTER(ctypes.c_int32)
        rows = self.seq.ctypes.data + np.arange(capacity, dtype=np.uint64) * np.uint64(self.seq.strides[0])
        self._rows = rows.astype(np.uintp)
        self.struct = C.llama_batch(
            0,
            self.token.ctypes.data_as(int32_p),
            None,
            self.pos.ctypes.data_as(int32_p),
            self.n_seq.ctypes.data_as(int32_p),
            self._rows.ctypes.data_as(ctypes.POINTER(int32_p)),
            self.output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def use_embeddings(self, n_embd: int) -> None:
        """From now on rows are fed as vectors instead of ids (a model without a vocabulary)."""
        self.embd = np.zeros((self.capacity, n_embd), np.float32)
        self.struct.token = None  # type: ignore[assignment]
        self.struct.embd = self.embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))  # type: ignore[assignment]


class SamplerChain:
    """llama.cpp's own samplers over a candidate array; state (history, grammar) advances with accept()."""

    def __init__(self, samplers: Sequence[Any]):
        self._ptr = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for sampler in samplers:
            C.llama_sampler_chain_add(self._ptr, sampler)
        self._array = C.llama_token_data_array()
        # A chain lives as long as the job it filters, which a caller may drop, keep or never finish.
        self._free = weakref.finalize(self, C.llama_sampler_free, self._ptr)

    def close(self) -> None:
        self._free()

    def apply(self, ids: IntArray, logits: FloatArray) -> tuple[IntArray, FloatArray]:
        """Survivors (ids, logits) in the order llama.cpp leaves them; banned tokens (-inf) are dropped."""
        data = np.empty(len(ids), _TOKEN_DATA)
        data["id"], data["logit"], data["p"] = ids, logits, 0.0
        array = self._array
        array.data = data.ctypes.data_as(C.llama_token_data_p)  # type: ignore[assignment]
        array.size, array.selected, array.sorted = len(ids), -1, False
        C.llama_sampler_apply(self._ptr, ctypes.byref(array))
        kept = data[: array.size]
        kept = kept[np.isfinite(kept["logit"])]
        return kept["id"].copy(), kept["logit"].copy()

    def accept(self, token: int) -> None:
        C.llama_sampler_accept(self._ptr, token)


def render_chat(template: str, messages: Sequence[dict[str, str]], bos: str = "", eos: str = "") -> str:
    """A chat as `template` (jinja) spells it, ending in an opened assistant turn.

    Raises ConfigError when the template refuses the messages, as some do for a system turn.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    try:
        formatter = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)
        return formatter(messages=list(messages)).prompt  # type: ignore[arg-type]
    except Exception as error:
        raise ConfigError(
            f"the chat template cannot render this conversation ({error}); use --raw or another template"
        ) from error


def penalties(model: Model, last_n: int, repeat: float, frequency: float, presence: float) -> Any:
    return C.llama_sampler_init_penalties(model.n_vocab, last_n, repeat, frequency, presence)


def grammar(model: Model, text: str) -> Any:
    sampler = C.llama_sampler_init_grammar(model._vocab, text.encode(), b"root")
    if not sampler:
        raise ConfigError(
            f"the grammar cannot be parsed; expected GBNF with a rule named root{_reason()}"
        )
    return sampler


def top_p(p: float) -> Any:
    return C.llama_sampler_init_top_p(p, 1)


def min_p(p: float) -> Any:
    return C.llama_sampler_init_min_p(p, 1)


def quantization_types() -> tuple[str, ...]:
    """Names llama_model_quantize takes, e.g. Q4_K_M."""
    return tuple(sorted(_FTYPES))


_FTYPES = {
    name.removeprefix("LLAMA_FTYPE_MOSTLY_").removeprefix("LLAMA_FTYPE_ALL_"): int(value)
    for name, value in vars(C).items()
    if name.startswith(("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"))
}


def quantization_name(file_type: int) -> str:
    """Name of a GGUF's `general.file_type`, e.g. Q4_K_M; the number itself if this release does not know it."""
    return next((name for name, value in _FTYPES.items() if value == file_type), f"type {file_type}")


def quantize(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], ftype: str, n_threads: int = 0
) -> None:
    """Writes `src` quantized as `ftype` to `dst` (whole or not at all). Metadata, the value head included,
    passes through untouched."""
    check_gguf(src)
    if ftype.upper() not in _FTYPES:
        raise ConfigError(
            f"unknown quantization {ftype!r}; expected one of {', '.join(quantization_types())}"
        )
    params = C.llama_model_quantize_default_params()
    params.ftype = _FTYPES[ftype.upper()]
    params.nthread = n_threads or default_threads()
    params.allow_requantize = True
    target = Path(dst)
    aside = target.with_name(f".{target.name}.tmp")
    try:
        if C.llama_model_quantize(os.fsencode(src), os.fsencode(aside), ctypes.byref(params)) != 0:
            raise ModelFileError(f"{src}: llama.cpp could not quantize this file to {ftype}{_reason()}")
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
