"""/learn and /use: what is learned behind a chat, told between answers, ended with it or kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from loading import EXACT

from sia_local import SIA, Request, Setup, SiaConfig
from sia_local.chat import commands as commands_module
from sia_local.chat.commands import Commands
from sia_local.chat.learner import Learner, place_for
from sia_local.chat.session import Session
from sia_local.errors import ConfigError, SiaError
from sia_local.values.hidden import HiddenValues
from sia_local.views.trace import token_text

LOAD = Setup.of(EXACT, n_ctx=256)
FEW = ("--max-tokens", "8", "--hidden", "4", "--epochs", "1", "--ctx", "128", "--threshold", "0")
# Says a line for each one it reads, as `learn` says how far it is; the lines are its progress, the end its Ctrl-C.
SCRIPTED = """
import os, sys
out = sys.argv[sys.argv.index("--out") + 1]
print("0 of 2 texts", flush=True)
word = os.read(0, 16)
if word == b"keep\\n":
    open(out, "w").write("made")
    print(f"{out}: 0.0 MB\\nspread 0.5")
sys.exit(0 if word else 130)
"""

FAILING = (sys.executable, "-c", "import sys; sys.exit('Error: it cannot be')")
KEPT = (sys.executable, "-c", "import time; print('0 of 3 texts', flush=True); time.sleep(60)")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sia_local" / "learned"


def finish(learner: Learner) -> None:
    assert learner._process is not None
    learner._process.wait(60)


def scripted(words: str, out: Path, loading: Sequence[str]) -> Learner:
    return Learner(words, out, loading, (sys.executable, "-c", SCRIPTED))


def heard(learner: Learner, line: str) -> None:
    """Waits for a line of the log."""
    while not learner.log.exists() or line not in learner.log.read_text():
        assert learner.running


def test_what_is_learned_behind_a_chat_steers_it(
    base_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "p.txt").write_text("hello\none two\n")
    loading = ("--model", str(base_gguf), "--prompts", str(tmp_path / "p.txt"), *FEW)
    with SIA.load(base_gguf, setup=LOAD) as sia:
        session = Session(sia, Request("", SiaConfig(gate="off"), max_tokens=6), steering=False)
        said = Commands(session, token_text(sia.model), loading=loading)
        list(session.ask("hello"))
        with pytest.raises(ConfigError, match="nothing to learn yet; steer by words first"):
            said.run("/learn")
        said.run("/steer kindly")
        assert said.run("/learn 4").text.startswith("learning from 4 texts of the base")
        with pytest.raises(ConfigError, match=r"'Kindly\.' is being learned; /learn stop ends that"):
            said.run("/learn 9")
        with pytest.raises(ConfigError, match="nothing is learned yet"):
            said.run("/use")
        assert said.learner is not None
        out = place_for(base_gguf, "Kindly.", loading)
        assert said.learner.out == out and out.parent == cache and out.name.startswith("kindly-")
        finish(said.learner)
        news = said.news()
        assert news is not None and news.startswith(f"learned:\n{out}: 0.0 MB, from ")
        assert news.endswith(f"\n/use steers by it instead of the live pair; in another chat: -v {out}")
        assert said.news() is None and said.run("/learn").text == news
        config = session.config
        assert said.run("/use").text.startswith(f"steering by: {out.stem}\nsteering on: gate rate, rate 0.3, beta 2")
        assert isinstance(sia.value, HiddenValues) and session.config == config and session.words is None
        # The base was loaded, and had written, without the hidden states that such a file reads.
        list(session.retry())
        assert any(step.steered for step in session.steps)
        assert said.run("/steer off").text == "steering off: there is no value model"
        # More texts go on with those that are there.
        said.run("/steer kindly")
        said.run("/learn 6")
        finish(said.learner)
        assert "2 of" not in said.learner.log.read_text() and "6 of 6 texts" in said.learner.log.read_text()
        assert said.close() is None


def test_a_chat_ends_what_it_began_or_lets_it_go_on(
    base_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands_module, "Learner", scripted)
    with SIA.load(base_gguf, setup=LOAD) as sia:
        said = Commands(Session(sia, Request("", max_tokens=6)), token_text(sia.model), loading=("--model", "a b"))
        for word in ("keep", "stop"):
            with pytest.raises(ConfigError, match=f"/learn {word} is for what is being learned, and nothing is"):
                said.run(f"/learn {word}")
        with pytest.raises(ConfigError, match="takes a number of texts, keep or stop, '0' was given"):
            said.run("/learn 0")
        said.run("/steer kindly")
        said.run("/learn")
        assert said.learner is not None
        heard(said.learner, "0 of 2")
        assert said.news() == "learning: 0 of 2 texts" and said.news() is None
        assert said.run("/learn").text == "learning: 0 of 2 texts"
        assert said.run("/learn stop").text == "stopped: learning ended: 0 of 2 texts\n/learn goes on with what it has"
        said.run("/learn")
        out = said.learner.out
        assert said.close() == (
            "learning stopped, what it has is kept; this goes on with it: "
            f"sia-local learn --model 'a b' --out {out} -- Kindly."
        )
        assert not said.learner.running and not out.exists()
        said.run("/learn 2")
        said.run("/learn keep")
        finish(said.learner)
        assert said.news() == (
            f"learned:\n{out}: 0.0 MB\nspread 0.5\n"
            f"/use steers by it instead of the live pair; in another chat: -v {out}"
        )
        # One that was kept is told so again, and is stopped as any other.
        monkeypatch.setattr(commands_module, "Learner", lambda w, out, on: Learner(w, out, on, KEPT))
        said.run("/learn 3")
        assert said.run("/learn keep").text == said.run("/learn keep").text
        heard(said.learner, "0 of 3")
        assert said.run("/learn stop").text.startswith("stopped: learning ended: 0 of 3 texts")
        # Why one ended is told before it goes on.
        monkeypatch.setattr(commands_module, "Learner", lambda w, out, on: Learner(w, out, on, FAILING))
        said.run("/learn 3")
        finish(said.learner)
        assert said.run("/learn").text == "learning ended: Error: it cannot be"
        assert said.run("/learn").text.startswith("learning from 96 texts")
        finish(said.learner)
        monkeypatch.setattr(commands_module, "Learner", lambda w, out, on: Learner(w, out, on, ("/no/such/program",)))
        said.run("/steer sadly")
        with pytest.raises(SiaError, match=r"cannot be started .*; in another terminal: sia-local learn .* -- Sadly\."):
            said.run("/learn")


def test_what_is_learned_of_another_base_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    for folder, content in (("one", "a"), ("two", "a"), ("two", "bc")):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        Path("b.gguf").write_text(content)
        places.append(place_for(Path("b.gguf"), "Kindly.", ("--model", "b.gguf")))
    places.append(place_for(Path("b.gguf"), "Kindly.", ("--model", "b.gguf", "--chat-template", "chatml")))
    assert len(set(places)) == 4
    assert places[2] == place_for(tmp_path / "two" / "b.gguf", "Kindly.", ("--model", "b.gguf"))


def test_another_value_file_steers_from_the_next_answer_on(
    base_gguf: Path, value_gguf: Path, make_gguf: Callable[..., Path]
) -> None:
    with SIA.load(base_gguf, setup=LOAD) as sia:
        session = Session(sia, Request("", SiaConfig(gate="off"), max_tokens=6), steering=False)
        said = Commands(session, token_text(sia.model))
        assert said.run(f"/use {value_gguf}").text.startswith(f"steering by: {value_gguf.stem}\nsteering on")
        assert list(session.ask("hello")) and session.answered.gate == SiaConfig().gate
        # Values of 0.5 a spread and of 0.01: a beta of 3 for the one is 150 for the other.
        said.run("/beta 3")
        assert "beta 1.5 spreads" in said.run(f"/use {make_gguf('merged', seed=2, spread=0.01)}").text
        assert said.run("/steer off") and session.config == SiaConfig(gate="off")
