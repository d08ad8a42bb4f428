"""Weights and vocabulary of a GGUF file, and LoRA adapters over them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from ..errors import IncompatibleError, ModelFileError
from ..text import utf8
from .devices import local_gpus, remote
from .embeddings import tables_of
from .gguf import GgufMetadata, check_gguf
from .library import AMX, C, Handle, gpu_layers, quietly, reason
from .sound import check_sound
from .vocabulary import Vocabulary


class Model:
    """Weights and vocabulary of one GGUF file. Close it after every context made from it."""

    _ptr, _vocab = Handle(), Handle()

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        vocab_only: bool = False,
        rpc: Sequence[str] = (),
    ):
        """rpc: ggml-rpc-server programs, host:port, that hold its layers, beside the GPUs it may use here.

        template: what stands in for the file's own chat template, if anything does.
        """
        self.path = check_gguf(path)
        self.template: str | None = None
        params = C.llama_model_default_params()
        params.n_gpu_layers = gpu_layers(n_gpu_layers)
        devices: list[int] | None = None
        if rpc:
            devices = remote(rpc) + (local_gpus() if n_gpu_layers else [])
            params.n_gpu_layers = n_gpu_layers = -1
        elif C.llama_supports_rpc():
            # A model that was not told to leaves this machine no more than it did before the servers were named.
            devices = local_gpus()
        if devices is not None:
            listed = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
            params.devices = ctypes.cast(listed, ctypes.c_void_p)
        params.vocab_only = vocab_only
        params.use_extra_bufts = not AMX
        self.n_gpu_layers = n_gpu_layers
        with GgufMetadata(self.path) as meta:
            # A part that is not the first, or one that is missing, says so.
            meta.parts  # noqa: B018
            self.vocabulary = Vocabulary.of(meta)
            check_sound(meta, self.vocabulary.texts if self.vocabulary else None)
            self.tables = tables_of(meta)
        with quietly(self.path):
            pointer = C.llama_model_load_from_file(os.fsencode(self.path), params)
        if not pointer:
            raise ModelFileError(
                f"{self.path}: llama.cpp cannot load this file; it may be truncated, damaged, or of an "
                f"architecture this release does not know{reason()}"
            )
        self._ptr = pointer
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
        pointer = self.__dict__.get("_ptr")
        self._ptr = self._vocab = None
        if pointer:
            with quietly():
                C.llama_model_free(pointer)

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
        return not (C.llama_model_is_recurrent(self._ptr) or self.hybrid)

    @property
    def hybrid(self) -> bool:
        """Whether some layers have a recurrent state and others attention."""
        return bool(C.llama_model_is_hybrid(self._ptr))

    @property
    def window(self) -> int:
        """Tokens that layers with a sliding window see; 0 where every layer sees all."""
        return int(C.llama_model_n_swa(self._ptr))

    @property
    def positions(self) -> int:
        """Positions a token of input takes: 4 with M-RoPE, whose sections of a text are the same, else 1."""
        return 4 if C.llama_model_rope_type(self._ptr) in (C.LLAMA_ROPE_TYPE_MROPE, C.LLAMA_ROPE_TYPE_IMROPE) else 1

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
        if self.template is not None:
            return self.template
        text = C.llama_model_chat_template(self._ptr, None)
        return text.decode("utf-8", "replace") if text else None

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of a text. add_special: as the beginning of a sequence, its token once, whoever spells it, and
        without the one that ends a sequence. parse_special: control tokens in the text count as such. Raises
        IncompatibleError for a model without a tokenizer."""
        data = utf8(text, "the text")
        if C.llama_vocab_type(self._vocab) == C.LLAMA_VOCAB_TYPE_NONE:  # llama.cpp would end the process
            raise IncompatibleError(
                f"{self.path} names no tokenizer (tokenizer.ggml.model), so it reads no text; it may be a lean value "
                "model, which -v takes, or damaged: download or convert it again"
            )
        size = len(data) + 8
        buffer = (ctypes.c_int32 * size)()
        n = C.llama_tokenize(self._vocab, data, len(data), buffer, size, add_special, parse_special)
        if n < 0:
            buffer = (ctypes.c_int32 * -n)()
            n = C.llama_tokenize(self._vocab, data, len(data), buffer, -n, add_special, parse_special)
        tokens = list(buffer[:n])
        if add_special:
            if len(tokens) > 1 and tokens[0] == tokens[1] == self.bos:
                del tokens[0]
            if tokens and C.llama_vocab_get_add_eos(self._vocab) and tokens[-1] == self.eos:
                del tokens[-1]
        return tokens

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with the begin-of-sequence token without spelling it."""
        return self.bos >= 0 and self.tokenize("a", add_special=True)[:1] == [self.bos]

    def spelled(self, mark: str) -> list[int]:
        """The tokens that spell a mark; control tokens count as such."""
        return self.tokenize(mark, parse_special=True)

    def control_token(self, text: str) -> int | None:
        """The id of the control token that `text` spells, None if it is anything else."""
        tokens = self.tokenize(text, parse_special=True)
        return tokens[0] if len(tokens) == 1 and text and not self.piece(tokens[0]) else None

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
        # Of a byte-level vocabulary that names none, llama.cpp says 11, an ordinary token.
        byte_level = C.llama_vocab_type(self._vocab) == C.LLAMA_VOCAB_TYPE_BPE
        if byte_level and self.meta("tokenizer.ggml.bos_token_id") is None:
            return -1
        return int(C.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        return int(C.llama_vocab_eos(self._vocab))


class LoraAdapter:
    """A LoRA adapter over a loaded model; freed with the model by llama.cpp, or earlier by close()."""

    def __init__(self, model: Model, path: str | os.PathLike[str]):
        self.path = check_gguf(path)
        with quietly(self.path):
            self._ptr = C.llama_adapter_lora_init(model._ptr, os.fsencode(self.path))
        if not self._ptr:
            raise IncompatibleError(
                f"{self.path}: this LoRA adapter does not fit {model.path.name}; it must be exported for that "
                f"very base model{reason()}"
            )

    def close(self) -> None:
        if self._ptr:
            with quietly():
                C.llama_adapter_lora_free(self._ptr)
            self._ptr = None
