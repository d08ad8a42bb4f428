"""Quantizes a GGUF and takes the embedding rows of a lean value model along."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sia_local.errors import ConfigError, IncompatibleError
from sia_local.llama import keys
from sia_local.llama.embeddings import EmbeddingRows, write_trailer

from ..aside import aside
from .gguf_io import encode


def quantize_gguf(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    ftype: str,
    rows: str | None = None,
    n_threads: int = 0,
) -> Path:
    """Writes `src` as `ftype` (any type of llama.cpp) to `dst`; the value head, metadata, is never quantized.

    `rows` re-encodes a lean file's embedding rows (f16, q8_0 or f32); None keeps their bytes. Raises
    ModelFileError for an unreadable file and ConfigError for an unknown type.
    """
    import gguf

    from sia_local.llama.gguf import GgufMetadata
    from sia_local.llama.quantize import quantize

    with GgufMetadata(src) as meta:
        if meta.get("general.type") == "adapter" or meta.get(keys.KIND) == "value-head":
            raise IncompatibleError(f"{src} is an adapter or a head: there is nothing in it to quantize")
    table = EmbeddingRows.from_trailer(src)
    target = Path(dst)
    with aside(target) as temporary:
        quantize(src, temporary, ftype, n_threads)
        if table is not None:
            with temporary.open("ab") as handle:
                if rows is None:
                    _copy_trailer(Path(src), table, handle)
                else:
                    if rows == "q8_0" and table.n_embd % 32:
                        raise IncompatibleError(f"Q8_0 rows need a width divisible by 32, not {table.n_embd}")
                    encoded = encode(table[np.arange(table.n_rows)], rows).reshape(table.n_rows, -1)
                    kind = int(gguf.GGMLQuantizationType[rows.upper()])
                    write_trailer(handle, encoded.view(np.uint8), kind, table.n_embd)
        elif rows is not None:
            raise ConfigError(f"--rows {rows}: {src} carries no embedding rows")
    return target


def _copy_trailer(src: Path, table: EmbeddingRows, handle: object) -> None:
    footer = keys.TRAILER_FOOTER
    with src.open("rb") as source:
        source.seek(src.stat().st_size - footer.size)
        ggml_type = footer.unpack(source.read(footer.size))[0]
    write_trailer(handle, np.asarray(table._data), ggml_type, table.n_embd)
