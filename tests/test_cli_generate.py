"""sia-local generate: what it prints where, and that options reach the sampler."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from calling import FEW, Make, generate, refused, run, start

pytestmark = pytest.mark.usefixtures("no_models")


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


def test_a_threshold_that_no_entropy_reaches_is_told(base_gguf: Path, value_gguf: Path) -> None:
    """ln 2 is less than a nat, ln 3 is more; another gate beside, or another entropy, may steer all the same."""
    said = "no token is steered: the entropy of 2 candidates is at most 0.69 nats, and the threshold is 1; lower"
    assert said in generate(base_gguf, value_gguf, "-p", "hello", "-k", 2).stderr
    for args in (["-k", 3], ["-k", 2, "--gate", "entropy+first-n"], ["-k", 2, "--entropy", "full"]):
        assert "no token" not in generate(base_gguf, value_gguf, "-p", "hello", *args).stderr


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
        return float(stats["values_asked"] / stats["junctions"])

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

    def config(*args: object) -> dict[str, Any]:
        whole = json.loads(run("generate", "-p", "x", *FEW, "--json", *args).stdout)["config"]
        return {name: whole[name] for name in ("gate", "threshold", "beta", "beta_unit")}

    profile = '[steering]\ngate = "gain"\nrate = 0.4\nbeta = 0.5\nbeta_unit = "spread"\n'
    (tmp_path / "demo-value.profile.toml").write_text(profile)
    shipped = {"gate": "gain", "threshold": 1.0, "beta": 0.5, "beta_unit": "spread"}
    assert config("--beta", 2) == {**shipped, "beta": 2.0}
    assert config("--beta", 2, "--beta-unit", "raw") == {**shipped, "beta": 2.0, "beta_unit": "raw"}
    assert config("--threshold", 0.5) == {**shipped, "gate": "entropy", "threshold": 0.5}
    assert config("--threshold", 0.5, "--rate", 0.3) == {**shipped, "gate": "rate", "threshold": 0.5}


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


def test_a_reader_that_goes_away_ends_it_quietly(base_gguf: Path, endless: list[object]) -> None:
    process = start("generate", "-m", base_gguf, "-p", "x", *endless)
    assert process.stdout is not None and process.stderr is not None and process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=30) == 1 and b"Traceback" not in err
