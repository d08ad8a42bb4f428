"""One sentence with exit code 2 for every bad input, and nothing on standard output."""

from __future__ import annotations

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
