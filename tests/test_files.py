"""Models in several files, rows in every ggml format, and what a sequence costs in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
from architectures import ARCHITECTURES, RECURRENT, WINDOW, WINDOWED
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sia_local import SIA, Setup, SiaConfig
from sia_local.cli import main
from sia_local.cli.inspection import inspect_file
from sia_local.errors import IncompatibleError, ModelFileError
from sia_local.llama.context import Context, ContextOptions
from sia_local.llama.costs import memory_cost
from sia_local.llama.embeddings import EmbeddingRows
from sia_local.llama.ggml import dequantize
from sia_local.llama.gguf import GgufMetadata
from sia_local.llama.gguf_write import boolean, i32_array, text, text_array, write_metadata
from sia_local.llama.keys import vocab_sha256
from sia_local.llama.library import C
from sia_local.llama.model import Model
from sia_local.llama.vocabulary import Vocabulary

Make = Callable[..., Path]
LOAD = Setup(n_ctx=96, n_threads=1)
DENSE = SiaConfig(gate="dense", k=4)


def texts(base: Path, value: Path) -> list[int]:
    with SIA.load(base, value, setup=LOAD) as sia:
        return [step.token for step in sia.generate("hello", DENSE, max_tokens=8, seed=3)]


def test_a_model_in_several_files_is_read_whole(make_gguf: Make) -> None:
    whole, first = make_gguf("base"), make_gguf("base", split=5)
    assert first.name.endswith("-00001-of-00005.gguf")
    one, several = inspect_file(whole), inspect_file(first)
    assert (one.parameters, one.vocab_sha256, one.n_embd) == (several.parameters, several.vocab_sha256, several.n_embd)
    files = list(first.parent.glob(first.name.replace("-00001-", "-*-")))
    assert several.parts == 5 == len(files) and several.size_bytes == sum(file.stat().st_size for file in files)
    for rows in (EmbeddingRows.output_of, EmbeddingRows.from_model):
        np.testing.assert_array_equal(rows(whole)[[3, 0, 319]], rows(first)[[3, 0, 319]])
        for outside in ([-1], [3, 320]):
            with pytest.raises(IndexError, match="of 320"):
                rows(whole)[outside]
    words, all_words = Vocabulary.read(first), Vocabulary.read(whole)
    assert words is not None and all_words is not None and words.tokens == all_words.tokens
    for kind in ("merged", "lean", "adapter", "head", "qhead"):
        assert texts(first, make_gguf(kind)) == texts(whole, make_gguf(kind))
    assert texts(whole, make_gguf("merged", split=5)) == texts(whole, make_gguf("merged"))
    assert " in 5 files" in CliRunner().invoke(main, ["inspect", str(first)]).output


def test_another_part_or_a_missing_one_is_named(make_gguf: Make, tmp_path: Path) -> None:
    first = make_gguf("base", split=9)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    for read in (Model, inspect_file, EmbeddingRows.output_of, Vocabulary.read):
        with pytest.raises(ModelFileError, match=rf"part 2 of \d .*give the first, {first.name}"):
            read(second)
    alone = tmp_path / first.name
    alone.write_bytes(first.read_bytes())
    for read in (Model, inspect_file, EmbeddingRows.output_of):
        with pytest.raises(ModelFileError, match=f"{second.name}: no such file"):
            read(alone)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    for read in (Model, inspect_file):
        with pytest.raises(ModelFileError, match="first of 3 parts under another name"):
            read(renamed)


def test_a_lean_model_in_several_files_has_lost_its_rows(make_gguf: Make) -> None:
    with pytest.raises(IncompatibleError, match="leaves out its embedding rows"):
        SIA.load(make_gguf("base"), make_gguf("lean", split=5), setup=LOAD)


ENTRY = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\0" * 7, b"\1" + bytes(7) + b"a", b"x" * 255, b"x" * 256, b"y" * 700]),
)


@given(st.lists(ENTRY, max_size=8), st.lists(ENTRY, max_size=8), st.booleans())
@settings(max_examples=60)
def test_arrays_of_texts_are_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, before: list[bytes], tokens: list[bytes], clean: bool
) -> None:
    if clean:
        tokens = [b"t%d" % i for i in range(len(tokens))]
    path = tmp_path_factory.mktemp("texts") / "a.gguf"
    fields = {"general.tags": text_array(before), "a.numbers": i32_array([1, 2, 3]), "a.flag": boolean(True)}
    write_metadata(path, "none", {**fields, "tokenizer.ggml.tokens": text_array(tokens), "a.last": text("end")})
    with GgufMetadata(path) as meta:
        assert meta.get("general.tags") == before and meta.get("tokenizer.ggml.tokens") == tokens
        assert meta.texts("a.last") is None and meta.texts("a.numbers") is None and meta.texts("no.such") is None
        assert meta.vocab_sha256() == (vocab_sha256(tokens) if tokens else None)
        found = meta.texts("tokenizer.ggml.tokens")
        assert found is not None
        # Of texts beyond 64 bytes only those count, and the length.
        assert found.may_repeat() == (len({(t[:64], len(t)) for t in tokens}) < len(tokens))


FORMATS = (
    "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_every_format_are_read_as_gguf_reads_them(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(1).integers(0, 60, (3, 512 // block * size), np.uint8)
    np.testing.assert_allclose(dequantize(rows, int(kind), 512), gguf.quants.dequantize(rows, kind), rtol=1e-5)


def test_rows_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="format i32 were given"):
        dequantize(np.zeros((1, 64), np.uint8), int(gguf.GGMLQuantizationType.I32), 16)


@pytest.mark.parametrize("arch", (*ARCHITECTURES, "qwen3"))
def test_memory_is_what_llama_cpp_saves_of_a_sequence(make_gguf: Make, arch: str) -> None:
    """A saved sequence holds its state and the keys and values of its tokens, behind a window none, and little else."""
    path = make_gguf("base", arch)
    with GgufMetadata(path) as meta:
        cost = memory_cost(meta)
    assert cost is not None and (cost.state_bytes > 0) == (arch in RECURRENT)

    def saved(context: Context) -> int:
        return int(C.llama_state_seq_get_size(context._ptr, 0))

    with Model(path) as model, Context(model, ContextOptions(n_ctx=256, n_threads=1)) as context:
        from sia_local.llama.engine import Engine

        sizes = []
        for n in (20, 120):
            list(Engine(context, 1).trail(0, [], list(range(n))))
            sizes.append(saved(context))
            context.seq_rm(0, 0)
    # Every cell has a position and its sequences beside its keys and values, and those with M-RoPE more.
    assert (cost.window_bytes > 0) == (arch in WINDOWED)
    everywhere = cost.kv_bytes - cost.window_bytes
    assert 0 <= sizes[1] - sizes[0] - 100 * everywhere <= 100 * 32
    seen = 20 * everywhere + WINDOW * cost.window_bytes
    assert 0 <= sizes[0] - seen - cost.state_bytes <= 20 * 32 + 512


def test_layers_that_do_both_or_share_what_others_keep_are_counted() -> None:
    def cost(arch: str, **fields: Any) -> Any:
        usual = {"block_count": 4, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2}
        header = {f"{arch}.{name}": value for name, value in {**usual, **fields}.items()}
        return memory_cost(cast(GgufMetadata, {"general.architecture": arch, **header}))

    width = 2 * 2 * 16 * 2  # keys and values of two heads of 16, in f16
    ssm = {"ssm.inner_size": 8, "ssm.state_size": 4, "ssm.conv_kernel": 4, "ssm.group_count": 1}
    both = cost("falcon-h1", **ssm)
    assert (both.kv_bytes, both.state_bytes) == (4 * width, 4 * 4 * (3 * (8 + 2 * 4) + 8 * 4))
    windows = {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, False, True, False]}
    shared = cost("gemma4", **windows, **{"attention.shared_kv_layers": 1, "attention.key_length_swa": 8})
    assert (shared.kv_bytes, shared.window_bytes) == (width + 2 * (width * 3 // 4), 2 * (width * 3 // 4))
    assert cost("gemma3n", block_count=30).kv_bytes == 20 * width


def test_inspect_says_what_a_branch_costs(make_gguf: Make) -> None:
    said = CliRunner().invoke(main, ["inspect", str(make_gguf("base", "lfm2"))]).output
    assert "768 bytes of state for a sequence and each candidate; one decode a junction, two where tokens wait" in said
    said = CliRunner().invoke(main, ["inspect", str(make_gguf("base"))]).output
    assert "256 bytes of KV cache (f16)" in said and "one decode a junction" in said and "adapter, head" in said


def test_the_converter_reads_several_files_whole(make_gguf: Make, tmp_path: Path) -> None:
    from sia_convert.formats.gguf_io import read_gguf

    whole, first = make_gguf("base"), make_gguf("base", split=5)
    assert sorted(read_gguf(whole)[1]) == sorted(read_gguf(first)[1])
    with pytest.raises(ModelFileError, match=f"give the first, {first.name}"):
        read_gguf(first.with_name(first.name.replace("00001-of", "00003-of")))
