"""One sentence with exit code 2 for every bad input, and nothing on standard output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from calling import FEW, Make, generate, refused, run

pytestmark = pytest.mark.usefixtures("no_models")


def test_nan_logits_and_values(base_gguf: Path, value_gguf: Path, make_gguf: Make, tmp_path: Path) -> None:
    broken, trace = make_gguf("base", nan=True), tmp_path / "t.jsonl"
    refused(generate(broken, value_gguf, "-p", "x", "--trace", trace), "base model's logits", "NaN")
    broken = make_gguf("merged", nan=True, seed=1)
    refused(generate(base_gguf, broken, "-p", "x", "--gate", "dense", "--trace", trace), "value model", "NaN")
    broken = make_gguf("merged", seed=1, head=[float("nan")] * 64)
    refused(generate(base_gguf, broken, "-p", "x"), "value head contains NaN")
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_longer_than_the_context(base_gguf: Path) -> None:
    refused(generate(base_gguf, None, "-p", "x " * 200), "the context holds 128", "shorten", "--ctx")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--gate", "wide"], ["unknown gate 'wide'", "entropy, rate, dense"]),
        (["--entropy", "half"], ["unknown entropy 'half'", "topk, full"]),
        (["--preset", "mine"], ["unknown preset 'mine'", "paper"]),
        (["--paper", "--preset", "rad"], ["give one of them"]),
        (["-k", "0"], ["k is 0", "1 to 255"]),
        (["-k", "300"], ["k is 300"]),
        (["--rate", "20"], ["rate is 20.0", "0 to 1"]),
        (["--temp", "-1"], ["temperature is -1.0"]),
        (["--top-p", "0"], ["top_p is 0.0"]),
        (["--repeat-penalty", "0"], ["repeat_penalty is 0.0"]),
        (["--beta", "inf"], ["beta is inf"]),
        (["-n", "0"], ["max_tokens is 0"]),
        (["--presence-penalty", "nan"], ["presence_penalty is nan"]),
        (["--tail", "--top-p", "0.9"], ["tail", "top_p", "drop one"]),
        (["--stop", ""], ["stop string is empty"]),
        (["--kv-type", "f13"], ["unknown KV cache type 'f13'", "q8_0"]),
        (["--flash-attention", "maybe"], ["unknown flash attention setting 'maybe'"]),
        (["--grammar-file", "none.gbnf"], ["none.gbnf", "no such file", "GBNF"]),
        (["--raw", "--system", "kind"], ["--raw", "--system"]),
        (["-f", "prompt.txt"], ["both --prompt and --file"]),
        (["--trace", "/dev/null/t.jsonl"], ["/dev/null", "check the path"]),
    ],
)
def test_options_out_of_range(base_gguf: Path, options: list[str], parts: list[str]) -> None:
    refused(generate(base_gguf, None, "-p", "x", *options), *parts)


def test_prompts_that_are_none(base_gguf: Path, tmp_path: Path) -> None:
    refused(generate(base_gguf, None, "-p", "", "--raw"), "the prompt is empty")
    refused(generate(base_gguf, None, "-f", tmp_path / "no.txt"), "no such file")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    refused(generate(base_gguf, None, "-f", tmp_path / "latin.txt"), "is not UTF-8")
    refused(run("generate", "-m", base_gguf, *FEW, input=b"\xe9t\xe9"), "standard input is not UTF-8")
    refused(generate(base_gguf, None, "-p", "\udce9t"), "not UTF-8")
    refused(generate(base_gguf, None, "-p", "\udce9t", "--best-of", "2"), "not UTF-8")
    said = run("chat", "-m", base_gguf, *FEW, input=b"\xe9t\xe9\nhello\n/undo\n")
    assert said.exit_code == 0 and "Error: the text has bytes that are not UTF-8" in said.stderr
    assert said.stdout.endswith("forgotten: hello\n")


def test_a_bad_grammar(base_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text("root ::= (")
    result = generate(base_gguf, None, "-p", "x", "--grammar-file", tmp_path / "g.gbnf")
    refused(result, "grammar cannot be parsed")


def test_a_base_without_chat_template(make_gguf: Make) -> None:
    bare = make_gguf("base", template=None)
    refused(run("chat", "-m", bare, input="hi\n"), "has no chat template", "--raw")
    assert generate(bare, None, "-p", "hello").exit_code == 0


def test_what_ordinary_mistakes_are_told(base_gguf: Path, value_gguf: Path, make_gguf: Make, tmp_path: Path) -> None:
    models = ("-m", base_gguf, "-v", value_gguf)
    refused(generate(base_gguf, None, "-p", "x", "--trace", tmp_path), f"{tmp_path} is a folder; expected the path of")
    refused(run("quiz", *models, "--limit", 0), "--limit is 0; expected at least 1 question")
    refused(run("average", "none", "-m", base_gguf, "-o", tmp_path / "a.gguf"), "no Q-head was named; name two or more")
    for threads in (600, 99999999999):
        refused(run("generate", "-m", base_gguf, "-p", "x", "--threads", threads), "n_threads is", "at most 512")
    refused(run("generate", "-m", base_gguf, "-p", "x", "--ctx", 5 * 10**9), "n_ctx is 5000000000; expected")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve", "-m", base_gguf, "--port", port), f"127.0.0.1, port {port}: ", "choose another --port")
    refused(run("serve", "-m", base_gguf, "--host", "nosuch.invalid"), "nosuch.invalid, port 8080: ")
    refused(run("serve", "-m", base_gguf, "--grace", "inf"), "grace is inf; expected seconds")


def test_a_pipe_in_the_place_of_a_file_is_written_to(base_gguf: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    assert generate(base_gguf, None, "-p", "x", "--trace", pipe).exit_code == 0
    assert process.communicate(timeout=20)[0].count("\n") > 4 and not pipe.is_file()


def test_a_terminal_that_is_not_utf_8_gets_what_it_can_show(base_gguf: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "latin-1"}
    for command in (["chat", "--help"], ["inspect", str(base_gguf)]):
        done = subprocess.run([sys.executable, "-m", "sia_local", *command], env=environment, capture_output=True)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def test_json_has_no_infinity(base_gguf: Path) -> None:
    whole = generate(base_gguf, None, "-p", "x", "--threshold", "inf", "--json").stdout
    assert json.loads(whole, parse_constant=pytest.fail)["config"]["threshold"] is None
