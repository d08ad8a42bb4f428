"""What is damaged is refused with a sentence: files, before llama.cpp sees what it only asserts, and texts."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import damage
import fuzz
import pytest
from click.testing import CliRunner
from targets import gguf_targets, text_targets

from sia_local import SIA
from sia_local.cli import main
from sia_local.errors import ConfigError, DataError, IncompatibleError, ModelFileError
from sia_local.files import parse_json, parse_toml
from sia_local.llama.model import Model

Make = Callable[..., Path]


def changed(source: Path, target: Path, key: str, value: bytes) -> Path:
    """A copy whose metadata `key`, of the type it has, is `value`."""
    file = damage.Gguf.of(source.read_bytes())
    kv = next(kv for kv in file.kvs if kv[0] == key.encode())
    kv[2] = value
    target.write_bytes(file.bytes())
    return target


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_count", 0, "block_count is 0, expected 1 to 512"),
        ("attention.layer_norm_rms_epsilon", 0xBF800000, "rms_epsilon is -1.0, expected a small number, 0 or more"),
        ("block_count", 1 << 31, "block_count is 2147483648, expected 1 to 512"),
        ("embedding_length", 0, "embedding_length is 0, expected 1 or more"),
        ("expert_used_count", 5, "expert_used_count is 5, expected 1 to the 4 experts there are"),
        ("expert_used_count", 0, "expert_used_count is 0, expected 1 to the 4 experts there are"),
        ("rope.dimension_count", 15, "rope.dimension_count is 15, expected an even number of at most 16"),
        ("rope.dimension_count", 0, "rope.dimension_count is 0, expected 2 or more"),
        ("rope.dimension_count", 8, "rope.dimension_count is 8, expected 16, as wide as the keys"),
        ("attention.value_length", 8, "attention.value_length is 8, expected 16, as wide as the keys"),
        ("attention.head_count_kv", 3, "attention.head_count_kv is 3, expected a divisor of the 4 heads"),
    ],
)
def test_what_llama_cpp_only_asserts_is_refused(
    make_gguf: Make, tmp_path: Path, key: str, value: int, said: str
) -> None:
    path = changed(make_gguf("base", "qwen3moe"), tmp_path / "bad.gguf", f"qwen3moe.{key}", u32(value))
    with pytest.raises(ModelFileError, match=said):
        Model(path)


def test_two_equal_tokens_are_named(make_gguf: Make, tmp_path: Path) -> None:
    path = make_gguf("base", renamed={300: "hello\x1b[2J", 7: "hello\x1b[2J"})
    with pytest.raises(
        ModelFileError, match=r"the token 'hello.*' stands twice in the vocabulary, at 7 and 300;"
    ) as said:
        Model(path)
    assert "\x1b" not in str(said.value)
    # Empty ones have names of their own in llama.cpp.
    with Model(make_gguf("base", renamed={300: "", 7: ""})) as model:
        assert model.n_vocab == 320


def test_a_key_of_another_type_is_named(make_gguf: Make, tmp_path: Path) -> None:
    file = damage.Gguf.of(make_gguf("base").read_bytes())
    kv = next(kv for kv in file.kvs if kv[0] == b"tokenizer.ggml.tokens")
    kv[2] = struct.pack("<IQ", 5, 3) + bytes(12)
    (tmp_path / "bad.gguf").write_bytes(file.bytes())
    with pytest.raises(ModelFileError, match="tokens holds an array of whole numbers, expected an array of texts"):
        Model(tmp_path / "bad.gguf")


def test_what_no_check_foresees_ends_the_command_with_a_sentence(make_gguf: Make, tmp_path: Path) -> None:
    """What one architecture asks of another number of its own is asserted where its tensors are made."""
    path = changed(make_gguf("base", "granitehybrid"), tmp_path / "bad.gguf", "granitehybrid.ssm.inner_size", u32(64))
    command = [sys.executable, "-m", "sia_local", "generate", "-m", str(path), "-p", "hello", "-n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert f"{path}: llama.cpp gave up on this file (GGML_ASSERT(2 * n_embd == d_inner) failed)" in done.stderr


def test_nothing_of_a_file_steers_the_terminal(make_gguf: Make, tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\x1b[2J"
    path = changed(make_gguf("base"), tmp_path / "a.gguf", "general.architecture", damage.text(name.encode()))
    said = CliRunner().invoke(main, ["generate", "-m", str(path), "-p", "hello", "-n", "2"])
    assert said.exit_code == 2 and not {"\x1b", "\x07"} & set(said.output)
    template = changed(
        make_gguf("base"),
        tmp_path / "b.gguf",
        "tokenizer.chat_template",
        damage.text(b"{{ raise_exception('\x1b[2J') }}"),
    )
    with SIA.load(template, n_ctx=64, n_threads=1) as sia, pytest.raises(ConfigError) as refused:
        sia.generate("hello")
    assert "\x1b" not in str(refused.value)


def test_what_llama_cpp_quotes_of_a_file_stays_on_one_line(base_gguf: Path, tmp_path: Path) -> None:
    """A key with a line break in it, of a type that there is not, is in the error that ggml logs."""
    whole = base_gguf.read_bytes()
    key = b"general.architecture"
    at = whole.index(key) + len(key)
    damaged = tmp_path / "a.gguf"
    damaged.write_bytes(whole[: at - 3] + b"\n\tx" + b"\xff" * 4 + whole[at + 4 :])
    with pytest.raises(ModelFileError) as refused:
        Model(damaged)
    assert "invalid GGUF type" in str(refused.value)
    assert not any(c in str(refused.value) for c in "\n\t")


def test_a_base_without_a_tokenizer_reads_no_text(base_gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "a.gguf"
    damaged.write_bytes(base_gguf.read_bytes().replace(b"gpt2", b"none", 1))
    with pytest.raises(IncompatibleError, match="names no tokenizer"), SIA.load(damaged, n_ctx=64, n_threads=1) as sia:
        sia.generate("hello")


def test_json_and_toml_have_one_reader() -> None:
    """What is nested too deeply ends json.loads otherwise than what is no JSON, so nobody else calls it; a copy by way
    of JSON, and processes of their own, aside."""
    root = Path(__file__).parents[1]
    apart = {"files.py", "template_worker.py", "llamacpp_worker.py"}
    for path in [*(root / "sia_local").rglob("*.py"), *(root / "convert").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name not in apart and isinstance(node, ast.Call):
                said = ast.unparse(node)
                reads = said.startswith(("json.load(", "json.loads(", "tomllib.load"))
                copies = ("json.loads(json.dumps(", "json.loads(dumps(", "json.loads(found[", "json.loads(answer")
                assert not reads or said.startswith(copies), f"{path}: {said}"


def test_text_nested_too_deeply_is_a_value_error() -> None:
    for parse, text in ((parse_json, b"[" * 100_000), (parse_toml, b"a = " + b"[" * 5_000)):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse(text)


def test_a_line_nested_too_deeply_is_named(tmp_path: Path) -> None:
    from sia_convert.data.trajectories import read_trajectories

    (tmp_path / "t.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"line 1: not valid JSON \(it is nested too deeply\)"):
        list(read_trajectories([tmp_path / "t.jsonl"]))


def test_what_is_damaged_was_whole(tmp_path: Path) -> None:
    """What is refused undamaged finds nothing."""
    for target in [*gguf_targets(tmp_path), *text_targets(tmp_path)]:
        for path in target.seeds:
            assert (outcome := fuzz.attempt(target, path)).kind == "used", (path.name, outcome.said)


def test_a_few_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command's own loop, for a few files of every kind."""
    targets = [*gguf_targets(tmp_path), *text_targets(tmp_path)]
    counts = fuzz.campaign(targets, 8, seed=1000, keep=None)
    counts += fuzz.requests(tmp_path, 30, seed=1000)
    bad = {name for name in counts if name.split(" ", 1)[1] not in fuzz.GOOD}
    assert not bad, capfd.readouterr().out
    assert counts.total() > 60
