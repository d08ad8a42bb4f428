"""The Q-head: its formula, its file, the rows it reads. PyTorch is the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from qheads import FORMS, made

from sia_local.errors import ConfigError, IncompatibleError, ModelFileError, NumericError
from sia_local.llama import gguf_write, keys
from sia_local.llama.embeddings import EmbeddingRows
from sia_local.llama.gguf import GgufMetadata
from sia_local.values.qhead import ACTIVATIONS, Bilinear, Joint, Sum
from sia_local.values.qhead_file import Distillation, QHeadFile, QHeadMeta, write_qhead

META = QHeadMeta(
    name="kinder",
    base_name="story",
    vocab_sha256="ab" * 32,
    reward_name="vader",
    reward_mean=0.25,
    reward_std=0.5,
    distillation=Distillation("demo-value", 88_600, 10, 0.625, 0.75, 0.875),
)


def array(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def test_golden_linear() -> None:
    qhead = Bilinear(
        weight=array([1, 2, 0], [0, 1, -1]),
        bias=array(0.5, -1),
        token_weight=array([1, 0, 1], [0, 2, 0]),
        token_bias=array(0.25, 0, -0.5),
        scale=2.0,
        level_weight=array(1, 1, 1),
        level_bias=0.5,
    )
    hidden = array(1, 2, 3)
    # f = [1 + 4 + .5, 2 - 3 - 1] = [5.5, -2]; w = 2 * ([5.5, -4, 5.5] + [.25, 0, -.5]) = [11.5, -8, 10]
    q = qhead(hidden, array([1, 0, 0], [0, 1, 0], [2, 1, 0.5]))
    assert q.dtype == np.float64
    assert q.tolist() == [11.5, -8.0, 20.0]
    assert qhead.level(hidden) == 6.5
    assert (qhead.n_embd, qhead.width, qhead.n_hidden) == (3, 3, 0)


def test_golden_hidden_layer() -> None:
    qhead = Bilinear(
        weight=array([2.0, 1.0]),
        bias=array(0.5),
        token_weight=array([1.0, -1.0]),
        token_bias=array(0.0, 1.0),
        hidden_weight=array([1.0, 1.0], [1.0, -1.0]),
        hidden_bias=array(0.0, 0.5),
        activation="relu",
    )
    # hidden = relu([3, -1 + .5]) = [3, 0]; f = 6.5
    assert qhead(array(1, 2), array([1, 0], [0, 1])).tolist() == [6.5, -5.5]
    assert qhead.level(array(1, 2)) is None


def test_golden_joint() -> None:
    qhead = Joint(
        weight=array(2.0, -1.0),
        token_weight=array([1.0, -1.0], [0.0, 3.0]),
        token_bias=array(0.0, 1.0),
        hidden_weight=array([1.0, 1.0], [1.0, -1.0]),
        hidden_bias=array(0.0, 0.5),
        activation="relu",
        scale=0.5,
    )
    # A h + c = [3, -.5]. e = [1, 0]: relu([4, -.5]) = [4, 0], 8 + 0. e = [0, 1]: relu([2, 2.5]), 4 - 2.5, and u e = 1.
    assert qhead(array(1, 2), array([1, 0], [0, 1])).tolist() == [4.0, 1.25]
    np.testing.assert_array_equal(qhead.project(array([1, 0], [0, 1])), array([1, 0, 0], [-1, 3, 1]))
    assert (qhead.n_embd, qhead.width, qhead.n_hidden) == (2, 3, 2)


@pytest.mark.parametrize("form, activation", [("linear", "silu"), *((f, a) for f in FORMS[:2] for a in ACTIVATIONS)])
def test_torch_computes_the_same(form: str, activation: str) -> None:
    qhead = made(form, 96, 40, activation)
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((3, 96)).astype(np.float32)
    rows = 0.1 * rng.standard_normal((3, 7, 96)).astype(np.float32)
    t = {f.name: torch.tensor(v) for f in fields(qhead) if isinstance(v := getattr(qhead, f.name), np.ndarray)}
    acts = {
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "gelu": lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
    }
    act, e, x = acts[activation], torch.tensor(rows), torch.tensor(hidden)
    of_token = e @ t["token_weight"].T
    if form != "linear":
        x = x @ t["hidden_weight"].T + t["hidden_bias"]
    if form == "joint":
        q = act(x[:, None] + of_token) @ t["weight"]
    else:
        f = (x if form == "linear" else act(x)) @ t["weight"].T + t["bias"]
        q = (of_token * f[:, None]).sum(-1)
    expected = (qhead.scale * (q + e @ t["token_bias"])).double().numpy()
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(qhead.of(hidden, qhead.project(rows)), expected, atol=tolerance)
    for i in range(3):
        np.testing.assert_allclose(qhead(hidden[i], rows[i]), expected[i], atol=tolerance)
    level = qhead.level(hidden)
    assert level is not None and qhead.level_weight is not None
    np.testing.assert_allclose(
        level, hidden.astype(np.float64) @ qhead.level_weight.astype(np.float64) - 1.5, atol=1e-4
    )


@pytest.mark.parametrize("form", FORMS)
def test_one_of_a_batch_is_what_it_is_alone(form: str) -> None:
    qhead = made(form, 576, 33)
    rng = np.random.default_rng(2)
    hidden = rng.standard_normal((9, 576)).astype(np.float32)
    rows = rng.standard_normal((9, 10, 576)).astype(np.float32)
    projected = qhead.project(rows)
    together = qhead.of(hidden, projected)
    for i in range(9):
        np.testing.assert_array_equal(together[i], qhead.of(hidden[i], projected[i]))
        np.testing.assert_array_equal(projected[i], np.stack([qhead.project(row) for row in rows[i]]))


def test_a_key_of_a_term_holds_what_that_of_a_whole_head_does() -> None:
    for key in (keys.QHEAD_FORM, keys.QHEAD_RANK, keys.QHEAD_WEIGHT):
        assert keys.expected(keys.of_term(key, 12)) == keys.expected(key) is not None


def test_a_qhead_without_a_single_unit_is_refused() -> None:
    none = np.zeros((0, 3), np.float32)
    with pytest.raises(IncompatibleError, match=r"the Q-head's token_weight is \[0, 3\]"):
        Bilinear(weight=none, bias=none[:, 0], token_weight=none, token_bias=array(1, 2, 3))


def test_activations_do_not_overflow() -> None:
    far = array(-3e4, -100, 100, 3e4)
    with np.errstate(all="raise", under="ignore"):
        assert ACTIVATIONS["silu"](far).tolist() == [0, 0, 100, 30000]


@pytest.mark.parametrize("form, version", [("joint", 3), ("bilinear", 2), ("linear", 2)])
def test_file_keeps_float32_bit_for_bit(tmp_path: Path, form: str, version: int) -> None:
    qhead = made(form, activation="gelu")
    write_qhead(tmp_path / "q.gguf", qhead, META, "f32")
    file = QHeadFile.read(tmp_path / "q.gguf")
    assert file.meta == META
    assert type(file.qhead) is type(qhead)
    with GgufMetadata(tmp_path / "q.gguf") as written:
        assert written.get(keys.VERSION) == version
    for f in fields(qhead):
        before, after = getattr(qhead, f.name), getattr(file.qhead, f.name)
        if isinstance(before, np.ndarray):
            assert after.dtype == np.float32
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after, f.name


def test_file_of_halves_is_half_as_large_and_close(tmp_path: Path) -> None:
    qhead = made("bilinear", 64, 32)
    for dtype in ("f32", "f16"):
        write_qhead(tmp_path / f"{dtype}.gguf", qhead, META, dtype)
    sizes = [(tmp_path / f"{dtype}.gguf").stat().st_size for dtype in ("f32", "f16")]
    weights = 4 * (32 * 64 + 32 + 5 * 32 + 5 + 5 * 64 + 64)
    assert sizes[0] - sizes[1] == pytest.approx(weights / 2, abs=64)
    rng = np.random.default_rng(3)
    hidden, rows = (rng.standard_normal(shape).astype(np.float32) for shape in (64, (10, 64)))
    exact = qhead(hidden, rows)
    near = QHeadFile.read(tmp_path / "f16.gguf").qhead(hidden, rows)
    assert 0 < np.abs(exact - near).max() < 3e-3 * exact.std()


def test_a_sum_is_its_parts_and_keeps_every_bit(tmp_path: Path) -> None:
    halves = [replace(p, weight=p.weight.astype(np.float16).astype(np.float32)) for p in map(made, FORMS)]
    parts = (*halves, made("bilinear", activation="relu", seed=3))
    whole = Sum(parts=parts, spread=0.5, level_weight=parts[0].level_weight, level_bias=2.0)
    write_qhead(tmp_path / "q.gguf", whole, META, "kept")
    file = QHeadFile.read(tmp_path / "q.gguf")
    assert isinstance(file.qhead, Sum) and (file.qhead.spread, file.qhead.level_bias) == (0.5, 2.0)
    assert file.meta == META
    with GgufMetadata(tmp_path / "q.gguf") as written:
        kinds = [written.get(f"sia.qhead.{i}.f.weight").dtype for i in range(4)]
        assert written.get(keys.VERSION) == 4 and keys.QHEAD_WEIGHT not in written
    assert kinds == [np.uint16, np.uint16, np.uint16, np.float32]
    for before, after in zip(parts, file.qhead.parts, strict=True):
        assert type(before) is type(after) and before.activation == after.activation
        for f in fields(before):
            if isinstance(array := getattr(before, f.name), np.ndarray) and f.name != "level_weight":
                np.testing.assert_array_equal(array, getattr(after, f.name))
    rng = np.random.default_rng(4)
    hidden, rows = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 24), (3, 5, 24)))
    together = file.qhead.of(hidden, file.qhead.project(rows))
    assert file.qhead.width == sum(part.width for part in parts) == file.qhead.project(rows).shape[-1]
    for i in range(3):
        np.testing.assert_array_equal(together[i], sum(part(hidden[i], rows[i]) for part in parts))
    with pytest.raises(IncompatibleError, match=r"sum of 2 terms of the widths \[24, 25\]"):
        Sum(parts=(made(), made(n_embd=25)))


def test_what_is_left_out_stays_out(tmp_path: Path) -> None:
    bare = replace(made(), spread=None, level_weight=None, level_bias=0.0)
    write_qhead(tmp_path / "q.gguf", bare, QHeadMeta(), "f32")
    file = QHeadFile.read(tmp_path / "q.gguf")
    assert (file.qhead.spread, file.qhead.level_weight, file.meta) == (None, None, QHeadMeta())


def test_gguf_package_reads_the_file(tmp_path: Path) -> None:
    qhead = made()
    write_qhead(tmp_path / "q.gguf", qhead, META, "f16")
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    assert reader.tensors == []
    assert reader.fields[keys.KIND].contents() == "value-qhead"
    assert reader.fields[keys.VERSION].contents() == 3
    bits = np.array(reader.fields[keys.QHEAD_TOKEN_BIAS].contents(), np.uint16)
    np.testing.assert_array_equal(bits.view(np.float16), qhead.token_bias.astype(np.float16))


def test_every_type_of_metadata_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf_write.write_metadata(
        path,
        "toy",
        {
            "a": gguf_write.text("größer"),
            "b": gguf_write.u32(7),
            "c": gguf_write.u64(1 << 40),
            "d": gguf_write.f32(0.5),
            "e": gguf_write.boolean(True),
            "f": gguf_write.i32_array([-1, 2]),
            "g": gguf_write.text_array([b"x", b"\xff"]),
            "h": gguf_write.f16_array([1.0]),
            "i": gguf_write.f32_array([]),
        },
    )
    with GgufMetadata(path) as meta:
        assert meta.tensors() == {}
        assert [meta.get(key) for key in ("general.architecture", *"abcde")] == ["toy", "größer", 7, 1 << 40, 0.5, True]
        assert meta.get("f").tolist() == [-1, 2]
        assert meta.get("g") == [b"x", b"\xff"]
        assert meta.get("h").tolist() == [0x3C00]
        assert meta.get("i").tolist() == []


def tampered(path: Path, **over: gguf_write.KV | None) -> Path:
    """A Q-head's file with some of its metadata replaced, or left out (None). `_` in a name stands for `.`."""
    qhead = made("bilinear", 4, 3)
    assert isinstance(qhead, Bilinear) and qhead.hidden_weight is not None and qhead.hidden_bias is not None
    parts = {
        keys.VERSION: gguf_write.u32(2),
        keys.KIND: gguf_write.text("value-qhead"),
        keys.QHEAD_RANK: gguf_write.u32(5),
        keys.QHEAD_N_EMBD: gguf_write.u32(4),
        keys.QHEAD_WEIGHT: gguf_write.f32_array(qhead.weight),
        keys.QHEAD_BIAS: gguf_write.f32_array(qhead.bias),
        keys.QHEAD_HIDDEN_WEIGHT: gguf_write.f32_array(qhead.hidden_weight),
        keys.QHEAD_HIDDEN_BIAS: gguf_write.f32_array(qhead.hidden_bias),
        keys.QHEAD_TOKEN_WEIGHT: gguf_write.f32_array(qhead.token_weight),
        keys.QHEAD_TOKEN_BIAS: gguf_write.f32_array(qhead.token_bias),
    }
    for name, value in over.items():
        key = getattr(keys, name)
        parts.pop(key, None)
        if value is not None:
            parts[key] = value
    gguf_write.write_metadata(path, "sia-qhead", parts)
    return path


REFUSALS: list[tuple[dict[str, gguf_write.KV | None], type[Exception], str]] = [
    ({"KIND": None}, IncompatibleError, "holds no Q-head"),
    ({"VERSION": gguf_write.u32(9)}, IncompatibleError, "version 9, this program reads versions 1, 2, 3, 4"),
    ({"VERSION": gguf_write.u32(1)}, IncompatibleError, "expected 'value-qhead' of version 2"),
    ({"KIND": gguf_write.text("value")}, IncompatibleError, "kind 'value'"),
    ({"QHEAD_RANK": gguf_write.u32(0)}, IncompatibleError, "rank 0 and width 4"),
    ({"QHEAD_BIAS": None}, IncompatibleError, "has 0 entries, expected 5 = 5"),
    ({"QHEAD_WEIGHT": gguf_write.f32_array([1.0] * 8)}, IncompatibleError, r"has 8 entries, expected 5 \* 3 = 15"),
    ({"QHEAD_HIDDEN_BIAS": None}, IncompatibleError, "has 12 entries, expected 0 \\* 4"),
    ({"QHEAD_BIAS": gguf_write.i32_array([1] * 5)}, IncompatibleError, "array of int32; expected float32"),
    ({"QHEAD_BIAS": gguf_write.f32_array([1.0] * 4 + [math.nan])}, NumericError, "bias has NaN or infinite weights"),
    ({"QHEAD_BIAS": gguf_write.f16_array([1.0] * 4 + [math.inf])}, NumericError, "bias has NaN or infinite weights"),
    ({"QHEAD_SCALE": gguf_write.f32(math.nan)}, NumericError, "scale is nan"),
    ({"QHEAD_ACTIVATION": gguf_write.text("tanh")}, IncompatibleError, "'tanh'; expected one of relu, silu, gelu"),
    ({"QHEAD_FORM": gguf_write.text("cubic")}, IncompatibleError, "the form 'cubic'; expected one of joint, bilinear"),
    ({"QHEAD_FORM": gguf_write.text("sum")}, IncompatibleError, "a sum of 0 terms"),
    (
        {"QHEAD_FORM": gguf_write.text("sum"), "QHEAD_TERMS": gguf_write.u32(1 << 31)},
        IncompatibleError,
        "term 0 of the sum: rank 0 and width 4",
    ),
    ({"QHEAD_FORM": gguf_write.text("joint")}, IncompatibleError, r"token.weight has 20 entries, expected 3 \* 4 = 12"),
]


@pytest.mark.parametrize("over, error, words", REFUSALS, ids=lambda x: "" if isinstance(x, type) else str(x)[:24])
def test_refusals(tmp_path: Path, over: dict, error: type[Exception], words: str) -> None:
    path = tampered(tmp_path / "q.gguf", **over)
    with pytest.raises(error, match=words) as caught:
        QHeadFile.read(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).count(str(path)) == 1


def test_unharmed_file_of_the_refusals_is_read(tmp_path: Path) -> None:
    assert QHeadFile.read(tampered(tmp_path / "q.gguf")).qhead.terms[0].n_hidden == 3


def test_files_that_are_none(tmp_path: Path, base_gguf: Path, head_gguf: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        QHeadFile.read(tmp_path / "absent.gguf")
    with pytest.raises(IncompatibleError, match="holds no Q-head"):
        QHeadFile.read(base_gguf)
    with pytest.raises(IncompatibleError, match="kind 'value-head' of contract version 1"):
        QHeadFile.read(head_gguf)


def test_refuses_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype 'q4'"):
        write_qhead(tmp_path / "q.gguf", made(), META, "q4")
    with pytest.raises(NumericError, match="more than a half can hold"):
        write_qhead(tmp_path / "q.gguf", replace(made(), token_bias=np.full(24, 1e5, np.float32)), META, "f16")
    assert list(tmp_path.iterdir()) == []


def test_refuses_sizes_that_do_not_fit() -> None:
    good = made("bilinear")
    with pytest.raises(IncompatibleError, match=r"weight is \[5, 6\], expected \[5, 7\]"):
        replace(good, weight=good.weight[:, :6])
    with pytest.raises(IncompatibleError, match=r"weight is \[6\], expected \[7\]"):
        replace(made(), weight=made().weight[:6])
    with pytest.raises(IncompatibleError, match="joint Q-head has no hidden layer"):
        replace(made(), hidden_weight=None, hidden_bias=None)
    with pytest.raises(IncompatibleError, match="only one of weight and bias"):
        replace(good, hidden_bias=None)
    with pytest.raises(NumericError, match="spread is inf"):
        replace(good, spread=math.inf)


def test_fits_its_base_only(tmp_path: Path) -> None:
    file = QHeadFile(tmp_path / "q.gguf", made(), META)
    file.check_fits(24, "story")
    with pytest.raises(IncompatibleError, match="width 24, other has 32"):
        file.check_fits(32, "other")


def test_output_rows_of_a_base(base_gguf: Path, tmp_path: Path, make_gguf: Callable[..., Path]) -> None:
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(base_gguf).tensors}
    rows = EmbeddingRows.output_of(base_gguf)
    np.testing.assert_array_equal(rows[[3, 0, 319]], tensors["output.weight"][[3, 0, 319]])
    np.testing.assert_array_equal(EmbeddingRows.from_model(base_gguf)[[5]], tensors["token_embd.weight"][[5]])
    writer = gguf.GGUFWriter(tmp_path / "tied.gguf", "qwen3")
    writer.add_tensor("token_embd.weight", tensors["token_embd.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_array_equal(
        EmbeddingRows.output_of(tmp_path / "tied.gguf")[[7]], tensors["token_embd.weight"][[7]]
    )
    with pytest.raises(IncompatibleError, match="holds neither output"):
        EmbeddingRows.output_of(tampered(tmp_path / "q.gguf"))
