"""Quantizes a GGUF and takes the embedding rows of a lean value model along."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sia_local.errors import ConfigError, IncompatibleError
from sia_local.files import aside
from sia_local.llama import keys
from sia_local.llama.embeddings import EmbeddingRows, write_trailer

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

    from sia_local.llama.quantize import quantize

    check_quantizable(src, ftype)
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


def check_quantizable(src: str | os.PathLike[str], ftype: str) -> None:
    """IncompatibleError for an adapter or a head, ConfigError for an unknown type."""
    from sia_local.llama.gguf import GgufMetadata
    from sia_local.llama.quantize import quantization_types

    with GgufMetadata(src) as meta:
        if meta.get("general.type") == "adapter" or meta.get(keys.KIND) == "value-head":
            raise IncompatibleError(f"{src} is an adapter or a head: there is nothing in it to quantize")
    if ftype.upper() not in (known := quantization_types()):
        raise ConfigError(f"unknown quantization {ftype!r}; expected one of {', '.join(known)}")


def rows_hint(path: str | os.PathLike[str]) -> str | None:
    """A sentence where float32 embedding rows are much of a quantized lean file; None elsewhere."""
    size = Path(path).stat().st_size
    if EmbeddingRows.from_trailer(path) is None:
        return None
    ggml_type, n_embd, n_rows = _footer(Path(path))
    rows = n_rows * n_embd * 4
    if ggml_type != 0 or rows < size / 4:
        return None
    return (
        f"{Path(path).name}: {rows / 1e6:.1f} of its {size / 1e6:.1f} MB are embedding rows in float32; in f16 they "
        "are half that and change V less than quantization does (quantize_rows in a plan, --rows of quantize)"
    )


def _footer(path: Path) -> tuple[int, int, int]:
    """(ggml type, width, rows) of a lean file's embedding rows."""
    footer = keys.TRAILER_FOOTER
    with path.open("rb") as source:
        source.seek(path.stat().st_size - footer.size)
        ggml_type, n_embd, n_rows = footer.unpack(source.read(footer.size))[:3]
    return ggml_type, n_embd, n_rows


def _copy_trailer(src: Path, table: EmbeddingRows, handle: object) -> None:
    write_trailer(handle, table.stored(), _footer(src)[0], table.n_embd)
