"""sia-local chat: messages in, answers out, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calling import FEW, run, start

from sia_local.chat.commands import Commands

pytestmark = pytest.mark.usefixtures("no_models")


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


def test_what_is_asked_for_beside_a_saved_chat_wins(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    both = ["chat", "-m", base_gguf, "-v", value_gguf, *FEW]
    saved = tmp_path / "chat.json"
    run(*both, "--rate", 0.3, "--beta", 2, input=f"/system be brief\n/save {saved}\n")
    plain = run(*both, "--load", saved, input="/stats\n/system\n").stdout
    assert "rate 0.3, beta 2," in plain and "system prompt: be brief" in plain
    asked = ("--beta", 3, "--beta-unit", "spread", "--system", "be long")
    over = run(*both, "--load", saved, *asked, input="/stats\n/system\n").stdout
    assert "rate 0.3, beta 3 spreads," in over and "system prompt: be long" in over
    for option, told in (
        (("--first-n", 5), "gate first-n, first n 5, beta 2,"), (("--gain", 0.5), "gain, gain threshold 0.5, beta 2,"),
        (("--preset", "args"), "gate dense, beta 1.5, candidates 10, temperature 0"),
    ):  # fmt: skip
        assert told in run(*both, "--load", saved, *option, input="/stats\n").stdout
    # What was not steered says nothing of what is.
    run("chat", "-m", base_gguf, *FEW, input=f"hello\n/save {saved}\n")
    assert run(*both, "--load", saved, input="/stats\n").stdout.startswith("steering on")


def test_ctrl_c_in_a_command_ends_the_command(base_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Commands, rest: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Commands, "_load", slow)
    result = run("chat", "-m", base_gguf, *FEW, input="/load chat.json\n/system be brief\n")
    assert result.exit_code == 0 and "[stopped]" in result.stderr and result.stdout == "system prompt: be brief\n"


@pytest.mark.parametrize("colour", [True, False])
def test_a_chat_in_a_terminal_begins_with_what_is_needed_and_marks_steered_words(
    base_gguf: Path, value_gguf: Path, tmp_path: Path, colour: bool
) -> None:
    import pty

    (tmp_path / "demo-base.gguf").symlink_to(base_gguf)
    (tmp_path / "demo-value.gguf").symlink_to(value_gguf)
    (tmp_path / "g.gbnf").write_text("root ::= [a-z]+")
    master, slave = pty.openpty()
    # What a model or a file wrote must not steer the terminal.
    saved = tmp_path / "chat.json"
    saved.write_text('{"turns": [{"role": "user", "content": "\\u001b]0;title\\u0007"}]}')
    asked = [*FEW, "--gate", "dense", "--grammar-file", str(tmp_path / "g.gbnf"), "--load", str(saved)]
    over = {
        "SIA_MODELS": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **over, "NO_COLOR": "" if colour else "1"}
    command = [sys.executable, "-m", "sia_local", "chat", *asked]
    said = b""

    def read_prompts(count: int) -> None:
        """Reads until so many prompts wait for input: pasting is made known, and the cursor shown."""
        nonlocal said
        while said.count(b"\x1b[?2004h") < count or not said.endswith(b"\x1b[?25h"):
            said += os.read(master, 4096)

    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        read_prompts(1)
        os.write(master, b"/undo\r")
        read_prompts(2)
        os.write(master, b"hello\r")
        read_prompts(3)
        os.write(master, b"\x04")
    os.close(master)
    screen = said.decode().replace("\r", "")
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen)
    assert process.returncode == 0 and "demo-base.gguf, steered by demo-value\n" in plain
    assert "At every token, the value model makes the better\ncandidates likelier" in plain and "/why explains" in plain
    assert "Try: Tell me a story" in plain
    assert "forgotten: \ufffd]0;title\ufffd\n" in plain
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


def test_ctrl_c_in_a_chat_stops_the_answer_and_keeps_the_session(
    base_gguf: Path, value_gguf: Path, endless: list[object]
) -> None:
    process = start("chat", "-m", base_gguf, "-v", value_gguf, *endless)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/undo\n", timeout=30)
    assert process.returncode == 0 and b"[stopped]" in err and out.endswith(b"forgotten: hello\n")


def test_use_takes_what_v_takes(
    base_gguf: Path, value_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIA_MODELS", str(tmp_path))
    shutil.copy(base_gguf, tmp_path / "demo-base.gguf")
    shutil.copy(value_gguf, tmp_path / "demo-value.gguf")
    told = run("chat", "-m", "story", "-v", "none", *FEW, input="/use happy\n/use joy=happy:2\n/use nothing\n")
    assert [line for line in told.stdout.splitlines() if line.startswith("steering by")] == [
        "steering by: demo-value", "steering by: 2 joy",
    ]  # fmt: skip
    assert "Error: nothing: " in told.stderr
