"""The command line: what it prints where, and one sentence with exit code 2 for every bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result

from sia_local import SIA, SiaConfig
from sia_local.cli import COMMANDS, main

FEW = ["-n", "8", "--seed", "7", "--threads", "1", "--ctx", "128"]
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_demo_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIA_MODELS", str(tmp_path / "nowhere"))


def run(*args: object, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], input=input)


def generate(base: Path, value: Path | None, *args: object, input: str | None = None) -> Result:
    return run("generate", "-m", base, *(("-v", value) if value else ()), *FEW, *args, input=input)


def refused(result: Result, *parts: str) -> None:
    """One sentence on standard error, exit code 2, no traceback, nothing on standard output."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ") and "Traceback" not in result.output
    assert result.stdout.strip() == ""
    for part in parts:
        assert part in lines[-1]


def test_help_imports_neither_llama_cpp_nor_numpy() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner; from sia_local.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "heavy = {'llama_cpp', 'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", ["generate", "chat", "inspect", "eval", "calibrate"])
def test_the_help_of_a_command_needs_no_llama_cpp(name: str) -> None:
    script = (
        f"import sys; from click.testing import CliRunner; from sia_local.cli import main\n"
        f"r = CliRunner().invoke(main, ['{name}', '--help']); assert r.exit_code == 0, r.output\n"
        "assert not {'llama_cpp', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_text_goes_to_standard_output_and_the_closing_line_to_standard_error(base_gguf: Path, value_gguf: Path) -> None:
    result = generate(base_gguf, value_gguf, "-p", "hello")
    assert result.exit_code == 0 and result.stdout.endswith("\n")
    (line,) = result.stderr.splitlines()
    for part in ("8 tokens · ", " tokens/s · ", " % junctions (", " ms/junction · KL ", "steering", "truncation"):
        assert part in line
    assert line.endswith("seed 7")


def test_beta_0_threshold_99_and_gate_off_print_the_same_text(base_gguf: Path, value_gguf: Path) -> None:
    texts = [
        generate(base_gguf, value_gguf, "-p", "hello", *args)
        for args in (["--gate", "off"], ["--threshold", 99], ["--beta", 0], ["--beta", 0, "--gate", "dense"])
    ]
    assert len({t.stdout for t in texts}) == 1
    assert "0.0 % junctions (0, 0 turned)" in texts[0].stderr and "(0, 0 turned)" in texts[1].stderr
    assert "100.0 % junctions" in texts[3].stderr
    opposite = [generate(base_gguf, value_gguf, "-p", "hello", "--beta", b).stdout for b in (3, -3)]
    assert opposite[0] != opposite[1]


def test_the_prompt_comes_from_option_file_or_standard_input(base_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("hello\n")
    by_option = generate(base_gguf, None, "-p", "hello").stdout
    assert generate(base_gguf, None, "-f", tmp_path / "prompt.txt").stdout == by_option
    assert generate(base_gguf, None, input="hello\n").stdout == by_option
    assert generate(base_gguf, None, "-f", "-", input="hello\n").stdout == by_option
    assert generate(base_gguf, None, "-p", "hello", "--raw").stdout != by_option
    assert generate(base_gguf, None, "-p", "hello", "--system", "be kind").stdout != by_option


def test_json_is_one_object(base_gguf: Path, value_gguf: Path) -> None:
    result = generate(base_gguf, value_gguf, "-p", "hello", "--json")
    whole = json.loads(result.stdout)
    assert whole["text"] == generate(base_gguf, value_gguf, "-p", "hello").stdout.removesuffix("\n")
    assert len(whole["tokens"]) == 8 and whole["finish"] == "length" and whole["seed"] == 7
    assert whole["stats"]["tokens"] == 8 and whole["stats"]["kl"] > whole["stats"]["kl_truncation"]
    assert whole["versions"]["llama-cpp-python"] == "0.3.36" and whole["config"]["gate"] == "entropy"


def test_a_full_context_is_told(make_gguf: Make) -> None:
    endless = make_gguf("base", ascii=True)
    assert "context is full; raise --ctx" in generate(endless, None, "-p", "hello", "-n", 200).stderr
    assert "context is full" not in generate(endless, None, "-p", "hello").stderr


def test_a_head_scores_four_candidates_unless_asked_for_more(base_gguf: Path, head_gguf: Path) -> None:
    def scored(*options: object) -> float:
        stats = json.loads(generate(base_gguf, head_gguf, "-p", "hello", "--json", *options).stdout)["stats"]
        return stats["values_asked"] / stats["junctions"]

    assert (scored(), scored("-k", 10), scored("-k", 6)) == (4, 10, 6)


def test_a_lower_temperature_is_not_taken_for_steering(base_gguf: Path, value_gguf: Path) -> None:
    for options in (["--gate", "off", "--temp", "0.3"], ["--gate", "off", "--temp", "0"]):
        assert "nats (steering 0.00, truncation" in generate(base_gguf, value_gguf, "-p", "hello", *options).stderr
    result = generate(base_gguf, value_gguf, "-p", "hello", "--gate", "dense", "--temp", 0, "--best-of", 2, "--json")
    whole = json.loads(result.stdout, parse_constant=pytest.fail)
    assert whole["stats"]["kl_steering"] > 0 and whole["stats"]["flips"] > 0


def test_a_trace_has_one_line_a_token(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    result = generate(base_gguf, value_gguf, "-p", "hello", "--rate", 0.4, "--trace", path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["index"] for r in records] == list(range(8))
    assert "".join(r["text"] for r in records) == result.stdout.removesuffix("\n")
    for r in records:
        assert list(r) == ["index", "token", "text", "entropy", "steered", "kl", "candidates"]
        assert len(r["candidates"]) == 10 and r["token"] in [c["token"] for c in r["candidates"]]
        for c in r["candidates"]:
            assert list(c) == ["token", "text", "logit", "value", "p_base", "p_steered"]
            assert (c["value"] is not None) == r["steered"]
        assert sum(c["p_steered"] for c in r["candidates"]) == pytest.approx(1)


def test_a_report_is_a_page(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    assert generate(base_gguf, value_gguf, "-p", "hello", "--report", tmp_path / "r.html").exit_code == 0
    assert "</html>" in (tmp_path / "r.html").read_text()


def test_stop_strings_grammar_and_presets_reach_the_sampler(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "a\\n"+')
    grammar = ("--grammar-file", tmp_path / "g.gbnf", "-p", "x")
    assert generate(base_gguf, value_gguf, *grammar).stdout == "a\n" * 4
    assert generate(base_gguf, value_gguf, *grammar, "--stop", "\\n").stdout == "a\n"
    paper = json.loads(generate(base_gguf, value_gguf, "-p", "x", "--paper", "--json", "--beta", 2).stdout)["config"]
    assert (paper["k"], paper["threshold"], paper["gate"], paper["beta"]) == (10, 1.0, "entropy", 2.0)
    args = json.loads(generate(base_gguf, value_gguf, "-p", "x", "--preset", "args", "--json").stdout)["config"]
    assert args["gate"] == "dense" and args["sampling"]["temperature"] == 0


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        ([], "entropy"),
        (["--rate", "0.3"], "rate"),
        (["--first-n", "5"], "first-n"),
        (["--gate", "random", "--rate", "0.3"], "random"),
        (["--gate", "entropy", "--gate", "first-n"], "entropy+first-n"),
        (["--ratio", "2", "--varentropy", "1"], "ratio+varentropy"),
    ],
)
def test_a_gates_own_option_means_that_gate(base_gguf: Path, options: list[str], gate: str) -> None:
    result = generate(base_gguf, None, "-p", "x", "--json", *options)
    assert json.loads(result.stdout)["config"]["gate"] == gate


@pytest.mark.parametrize("kind", ["merged", "lean", "adapter", "head"])
def test_every_kind_of_value_file_steers_and_is_found_to_fit(make_gguf: Make, kind: str) -> None:
    base, value = make_gguf("base"), make_gguf(kind, seed=0 if kind == "head" else 1)
    result = generate(base, value, "-p", "hello", "--gate", "dense", "-k", "4")
    assert result.exit_code == 0 and "100.0 % junctions" in result.stderr
    told = run("inspect", base, "--value", value)
    assert told.exit_code == 0 and told.stdout.strip().endswith(f"{value.name} fits {base.name}")


def test_two_weighted_values_and_a_guide(base_gguf: Path, value_gguf: Path, lean_gguf: Path) -> None:
    result = generate(base_gguf, value_gguf, "-v", f"kind={lean_gguf}:0.5", "-p", "x", "--json")
    assert json.loads(result.stdout)["value"] == f"1 {value_gguf.stem} + 0.5 kind"
    assert generate(base_gguf, None, "--guide-plus", value_gguf, "-p", "x").exit_code == 0
    refused(generate(base_gguf, None, "--guide-minus", value_gguf, "-p", "x"), "--guide-plus")


def test_without_m_the_models_of_the_folder_are_used(
    base_gguf: Path, value_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("generate", "-p", "x"), "model story is not here", "demo-base.gguf", "-m", "SIA_MODELS")
    (tmp_path / "demo-base.gguf").symlink_to(base_gguf)
    (tmp_path / "demo-value.gguf").symlink_to(value_gguf)
    monkeypatch.setenv("SIA_MODELS", str(tmp_path))

    def models(*args: object) -> tuple[str, str | None]:
        whole = json.loads(run("generate", "-p", "x", *FEW, "--json", *args).stdout)
        return whole["model"], whole["value"]

    assert models() == ("demo-base.gguf", "demo-value")
    assert models("-v", "none") == ("demo-base.gguf", None)
    assert models("-m", base_gguf) == (base_gguf.name, None)

    def beta(*args: object) -> float:
        return float(json.loads(run("generate", "-p", "x", *FEW, "--json", *args).stdout)["config"]["beta"])

    (tmp_path / "demo-value.profile.toml").write_text("[steering]\nbeta = 7.5\n")
    assert (beta(), beta("--beta", 2), beta("--paper"), beta("-m", base_gguf)) == (7.5, 2.0, 1.0, 1.0)


def test_inspect_says_what_a_file_holds(base_gguf: Path, head_gguf: Path, lean_gguf: Path) -> None:
    text = run("inspect", base_gguf).stdout
    for part in ("base model", "qwen3", "320 tokens, gpt2", "2 × 64", "512 tokens", "chat template"):
        assert part in text
    assert "head on its base's hidden states" in run("inspect", head_gguf).stdout
    whole = json.loads(run("inspect", lean_gguf, "--json").stdout)
    template = whole["sia"]["sia.prompt_template"].replace("\n", "⏎")
    assert f"  {template[:99]}…\n" in run("inspect", lean_gguf).stdout
    assert whole["kind"] == "value" and whole["layout"] == "lean" and whole["sia"]["sia.head.weight"] == "64 numbers"
    assert whole["vocab_sha256"] == json.loads(run("inspect", base_gguf, "--json").stdout)["vocab_sha256"]


def write_mamba(path: Path, vocabulary_of: Path) -> Path:
    """A recurrent model: one tiny random mamba block, with a value head and the vocabulary of another file."""
    from models import N_EMBD, N_VOCAB, _contract, _tokenizer

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "mamba")
    inner, state, dt, conv = 2 * N_EMBD, 8, 4, 4
    writer.add_context_length(128)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(1)
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(dt)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    _tokenizer(writer, N_VOCAB, {"template": None})
    _contract(writer, "value", N_VOCAB, {})
    block = {
        "attn_norm.weight": (N_EMBD,),
        "ssm_in.weight": (2 * inner, N_EMBD),
        "ssm_conv1d.weight": (inner, conv),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (dt + 2 * state, inner),
        "ssm_dt.weight": (inner, dt),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state),
        "ssm_d": (inner,),
        "ssm_out.weight": (N_EMBD, inner),
    }
    writer.add_tensor("token_embd.weight", rng.standard_normal((N_VOCAB, N_EMBD), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for name, shape in block.items():
        weight = rng.standard_normal(shape, np.float32) / 4
        writer.add_tensor(f"blk.0.{name}", -abs(weight) if name == "ssm_a" else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_recurrent_base_reads_each_text_anew(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    mamba = write_mamba(tmp_path / "mamba.gguf", base_gguf)

    def texts(slots: int, prompts: list[str]) -> list[list[int]]:
        with SIA.load(mamba, value_gguf, n_ctx=96, slots=slots, n_threads=1) as sia:
            jobs = [sia.job(p, SiaConfig(gate="dense"), max_tokens=5, seed=9, id=i) for i, p in enumerate(prompts)]
            return [c.tokens for c in sorted(sia.complete(jobs), key=lambda c: c.job)]

    prompts = ["hello", "hello", "hello there", "bye"]
    alone = [texts(1, [prompt])[0] for prompt in prompts]
    assert texts(1, prompts) == texts(2, prompts) == alone
    assert alone[0] != alone[2]


class TestBadInput:
    def test_files_that_are_no_models(self, base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
        empty, text, cut, stub = (tmp_path / name for name in ("empty.gguf", "text.gguf", "cut.gguf", "stub.gguf"))
        empty.touch()
        text.write_text("once upon a time")
        cut.write_bytes(base_gguf.read_bytes()[:-5000])
        stub.write_bytes(base_gguf.read_bytes()[:3000])
        cases = {
            tmp_path / "missing.gguf": "no such file",
            tmp_path: "no such file",
            empty: "is empty",
            text: "starts with b'once'",
            cut: "truncated",
            stub: "truncated",
        }
        for path, part in cases.items():
            refused(generate(path, None, "-p", "x"), str(path), part)
            refused(run("inspect", path), str(path), part)
            refused(generate(base_gguf, path, "-p", "x"), str(path))
        cut.write_bytes(value_gguf.read_bytes()[:-5000])
        refused(generate(base_gguf, cut, "-p", "x"), str(cut), "truncated")

    def test_a_value_model_without_a_head(self, base_gguf: Path) -> None:
        for result in (generate(base_gguf, base_gguf, "-p", "x"), run("inspect", base_gguf, "-v", base_gguf)):
            assert result.exit_code == 2
            assert "holds no value head" in result.stderr and "sia-convert export" in result.stderr

    def test_vocabularies_that_differ(self, base_gguf: Path, make_gguf: Make) -> None:
        other = make_gguf("merged", seed=1, n_vocab=330)
        refused(generate(base_gguf, other, "-p", "x"), "different vocabularies", base_gguf.name, other.name)
        told = run("inspect", base_gguf, "-v", other)
        assert told.exit_code == 2 and "different vocabularies" in told.stderr and "fits" not in told.stdout
        for option in (["--guide-plus", other], ["--guide-plus", base_gguf, "--guide-minus", other]):
            refused(generate(base_gguf, None, "-p", "x", *option), "different vocabularies", other.name, "or --nudge")

    def test_a_recurrent_value_model(self, base_gguf: Path, tmp_path: Path) -> None:
        mamba = write_mamba(tmp_path / "mamba.gguf", base_gguf)
        assert "recurrent: a branch copies" in run("inspect", mamba).stdout
        result = generate(base_gguf, mamba, "-p", "x", "--gate", "dense")
        assert result.exit_code == 0, result.output

    def test_nan_logits_and_values(self, base_gguf: Path, value_gguf: Path, make_gguf: Make, tmp_path: Path) -> None:
        broken, trace = make_gguf("base", nan=True), tmp_path / "t.jsonl"
        refused(generate(broken, value_gguf, "-p", "x", "--trace", trace), "base model's logits", "NaN")
        broken = make_gguf("merged", nan=True, seed=1)
        refused(generate(base_gguf, broken, "-p", "x", "--gate", "dense", "--trace", trace), "value model", "NaN")
        broken = make_gguf("merged", seed=1, head=[float("nan")] * 64)
        refused(generate(base_gguf, broken, "-p", "x"), "value head contains NaN")
        assert list(tmp_path.iterdir()) == []

    def test_a_prompt_longer_than_the_context(self, base_gguf: Path) -> None:
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
    def test_options_out_of_range(self, base_gguf: Path, options: list[str], parts: list[str]) -> None:
        refused(generate(base_gguf, None, "-p", "x", *options), *parts)

    def test_prompts_that_are_none(self, base_gguf: Path, tmp_path: Path) -> None:
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

    def test_a_bad_grammar(self, base_gguf: Path, tmp_path: Path) -> None:
        (tmp_path / "g.gbnf").write_text("root ::= (")
        result = generate(base_gguf, None, "-p", "x", "--grammar-file", tmp_path / "g.gbnf")
        refused(result, "grammar cannot be parsed")

    def test_a_base_without_chat_template(self, make_gguf: Make) -> None:
        bare = make_gguf("base", template=None)
        refused(run("chat", "-m", bare, input="hi\n"), "has no chat template", "--raw")
        assert generate(bare, None, "-p", "hello").exit_code == 0

    def test_debug_shows_the_traceback(self, base_gguf: Path) -> None:
        for place in (["--debug", "inspect", "none.gguf"], ["inspect", "none.gguf", "--debug"]):
            done = subprocess.run(
                [sys.executable, "-m", "sia_local", *place], capture_output=True, text=True, check=False
            )
            assert done.returncode != 0 and "Traceback" in done.stderr


def test_a_piped_chat_answers_line_by_line(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text("root ::= [a-z]+")
    few = [*FEW, "--grammar-file", tmp_path / "g.gbnf"]
    lines = f'hello\n/why\n\n"""one\ntwo"""\nthree \\\nfour\n/bogus\n/save {tmp_path / "c.json"}\n/quit\nnot read\n'
    result = run("chat", "-m", base_gguf, "-v", value_gguf, *few, "--gate", "dense", input=lines)
    assert result.exit_code == 0
    assert "8 junctions in 8 tokens" in result.stdout and "\x1b" not in result.output
    assert "Error: unknown command /bogus" in result.stderr
    said = [t["content"] for t in json.loads((tmp_path / "c.json").read_text())["turns"] if t["role"] == "user"]
    assert said == ["hello", "one\ntwo", "three \nfour"]
    again = run("chat", "-m", base_gguf, *FEW, "--load", tmp_path / "c.json", input="/undo\n")
    assert again.stdout == "forgotten: three \nfour\n"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("one", "one"),
        ("one \\\ntwo", "one \ntwo"),
        ("one\\", "one"),
        ('"""one\n two\n"""', "one\n two"),
        ('"""one\ntwo', "one\ntwo"),
    ],
)
def test_the_end_of_input_ends_a_message(typed: str, message: str) -> None:
    from sia_local.cli.chat import _message

    lines = typed.split("\n")

    def line_after(_prompt: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    assert _message(line_after) == message and not lines
    with pytest.raises(EOFError):
        _message(line_after)


@pytest.mark.parametrize(
    ("pieces", "columns", "written"),
    [
        (["a fox", " ran ho", "me.\n\n", "It ", "was late"], 10, "a fox ran\nhome.\n\nIt was\nlate"),
        (["ab cd ", "\n", " ef"], 10, "ab cd \n ef"),
        (["exactly", " ten"], 11, "exactly ten"),
        (["exactly", " ten"], 10, "exactly\nten"),
        (["x" * 7, "y" * 7, "z"], 10, "x" * 7 + "y" * 7 + "z"),
        (["end "], 10, "end "),
    ],
)
def test_lines_in_a_terminal_break_between_words(pieces: list[str], columns: int, written: str) -> None:
    from sia_local.cli.terminal import Wrapped

    out: list[str] = []
    wrapped = Wrapped(out.append, lambda: columns)
    for piece in pieces:
        wrapped.put(piece, lambda part: f"<{part}>")
    wrapped.flush()
    assert re.sub("[<>]", "", "".join(out)) == written


def test_a_script_without_spaces_is_written_as_it_comes() -> None:
    from sia_local.cli.terminal import Wrapped

    out: list[str] = []
    wrapped = Wrapped(out.append, lambda: 80)
    for piece in ("昔々", "ある所に"):
        wrapped.put(piece, str)
    assert "".join(out) == "昔々ある所に"


@pytest.mark.parametrize("colour", [True, False])
def test_a_chat_in_a_terminal_begins_with_what_is_needed_and_marks_steered_words(
    base_gguf: Path, value_gguf: Path, tmp_path: Path, colour: bool
) -> None:
    import pty

    (tmp_path / "demo-base.gguf").symlink_to(base_gguf)
    (tmp_path / "demo-value.gguf").symlink_to(value_gguf)
    (tmp_path / "g.gbnf").write_text("root ::= [a-z]+")
    master, slave = pty.openpty()
    asked = [*FEW, "--gate", "dense", "--grammar-file", str(tmp_path / "g.gbnf")]
    over = {"SIA_MODELS": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **over, "NO_COLOR": "" if colour else "1"}
    command = [sys.executable, "-m", "sia_local", "chat", *asked]
    said = b""

    def read_until(ending: bytes) -> None:
        nonlocal said
        while not re.search(ending, said):
            said += os.read(master, 4096)

    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        read_until(rb"\n\S*> $")
        os.write(master, b"hello\r")
        read_until(rb"tokens/s[^>]*> $")
        os.write(master, b"\x04")
    os.close(master)
    screen = said.decode().replace("\r", "")
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen)
    assert process.returncode == 0 and "demo-base.gguf, steered by demo-value\n" in plain
    assert "unsure of its next word" in plain and "/why explains" in plain and "Try: Tell me a story" in plain
    assert re.search(r"\n8 tokens · 8 steered, \d turned · \d+ tokens/s · cut there, -n allows more\n", plain)
    marks = re.findall(r"\x1b\[((?:1;)?4(?:;[\d;]+)?)m[a-z]", screen)
    assert len(marks) == 8 + 2 and all(("38;5" in mark) == colour for mark in marks)


def test_weights_change_during_a_chat(base_gguf: Path, value_gguf: Path, lean_gguf: Path) -> None:
    values = ["-v", f"kind={value_gguf}:0.7", "-v", f"calm={lean_gguf}:0.3"]
    lines = "/beta kind 1.5\n/beta sharp 2\n/beta calm\n/beta 2\nhello\n"
    told = run("chat", "-m", base_gguf, *values, *FEW, "--kl-total", "0.5", input=lines + "/stats\n")
    assert told.exit_code == 0 and "values: 1.5 kind + 0.3 calm\n" in told.stdout
    assert "Error: no value is named 'sharp'; expected one of kind, calm" in told.stderr
    assert "Error: /beta takes a number, 'calm' was given" in told.stderr
    assert "beta 2" in told.stdout and "of 0.5 nats" in told.stdout
    weighed = [run("chat", "-m", base_gguf, *values, *FEW, input=start + "hello\n").stdout
               for start in ("", "/beta kind -40\n")]  # fmt: skip
    assert weighed[0] != weighed[1].split("\n", 1)[1]


def test_an_error_in_a_chat_does_not_end_it(base_gguf: Path) -> None:
    result = run("chat", "-m", base_gguf, *FEW, input="x" + " x" * 200 + "\n/why\n")
    assert result.exit_code == 0
    assert "Error: the prompt is" in result.stderr and "there is no answer yet" in result.stdout


def start(*args: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sia_local", *map(str, args)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


LONG = ["-n", "100000", "--seed", "7", "--threads", "1", "--ctx", "4000", "--grammar-file"]


@pytest.fixture
def endless(tmp_path: Path) -> list[object]:
    (tmp_path / "g.gbnf").write_text('root ::= [a-z ]+ "!"')
    return [*LONG, tmp_path / "g.gbnf"]


def test_ctrl_c_ends_a_generation_and_keeps_what_it_wrote(
    base_gguf: Path, value_gguf: Path, tmp_path: Path, endless: list[object]
) -> None:
    trace = tmp_path / "t.jsonl"
    process = start("generate", "-m", base_gguf, "-v", value_gguf, "-p", "x", "--trace", trace, *endless)
    assert process.stdout is not None and process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in err and b"tokens/s" in err
    assert len(trace.read_text().splitlines()) > 1


def test_ctrl_c_in_a_chat_stops_the_answer_and_keeps_the_session(
    base_gguf: Path, value_gguf: Path, endless: list[object]
) -> None:
    process = start("chat", "-m", base_gguf, "-v", value_gguf, *endless)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    out, err = process.communicate(b"/undo\n", timeout=30)
    assert process.returncode == 0 and b"[stopped]" in err and out.endswith(b"forgotten: hello\n")


def test_a_reader_that_goes_away_ends_it_quietly(base_gguf: Path, endless: list[object]) -> None:
    process = start("generate", "-m", base_gguf, "-p", "x", *endless)
    assert process.stdout is not None and process.stderr is not None and process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=30) == 1 and b"Traceback" not in err
