"""Chat sessions on a scripted model: transcripts, context, interruption, files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loading import EXACT
from scripted import WORDS, Scripted, commands, read

from sia_local import Setup, SiaConfig
from sia_local.chat.commands import Commands
from sia_local.chat.session import Session
from sia_local.errors import ConfigError, ContextFullError, DataError, NumericError, SiaError
from sia_local.records import Request
from sia_local.text import Written
from sia_local.views import why

LOAD = Setup.of(EXACT, n_ctx=256)


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def session(scripted: Scripted) -> Session:
    return Session(scripted, Request("", SiaConfig(beta=2.0)))


TRANSCRIPT = """\
> Tell me a story
 the happy dog .
> /why
1 junction in 4 tokens: where the base was unsure of the next word (entropy 1
nats or more, as among 2.7 equally likely words). There the value model scored
the candidates for the next word (more is better), and steering made the better
ones likelier. At 1 (*) it changed the favourite.

  #   after  base wanted  values said             chosen  its chance
  1*  the    sad 60 %     happy +0.81, sad -0.35  happy   40 % → 80 %

/why 1 shows every candidate of junction 1, /report page.html all of them.
> /why 1
Junction 1, after “the”
entropy 1.25 nats, beta 2, KL 0.200 nats

     candidate  base alone   value  steered
     sad              60 %  -0.350     20 %
  →  happy            40 %  +0.810     80 %

steered is base alone × e^(beta · value), scaled to 100 %; → was drawn.
> /why 2
there is no junction 2; the last answer has 1 to 1
> /sia off
steering off; /sia on: gate entropy, threshold 1, beta 2, candidates 10, temperature 1
> Another
 the happy dog .
> /why
the last answer was not steered: steering is off (/sia on)
> /sia on
steering on: gate entropy, threshold 1, beta 2, candidates 10, temperature 1
> /beta -3
steering on: gate entropy, threshold 1, beta -3, candidates 10, temperature 1
> /rate 0,4
steering on: gate rate, rate 0.4, beta -3, candidates 10, temperature 1
> /threshold 1.5
steering on: gate entropy, threshold 1.5, beta -3, candidates 10, temperature 1
> /beta much
Error: /beta takes a number, 'much' was given
> /beta kind 2
Error: /beta kind 2 names a value, but there is one value model; expected /beta 2
> /nonsense
Error: unknown command /nonsense; /help lists the commands
> /system Be kind.
system prompt: Be kind.
> /undo
forgotten: Another
> /retry
 the happy dog .
> /clear
the chat is empty
> /undo
Error: there is nothing to undo; ask something first
> /retry
Error: there is nothing to retry; ask something first
> /quit
"""


def test_an_empty_answer_leaves_a_chat_that_any_template_takes(scripted: Scripted, session: Session) -> None:
    read(session.ask("hello"))
    before = [dict(turn) for turn in session.turns]
    scripted.says = []
    said = "[the model had nothing to say and the chat stays as it was; /retry asks it again]"
    assert read(session.ask("and then?")) == said
    assert session.turns == before and read(session.retry()) == said and session.turns == before
    scripted.says = [4, 1, 2, 5]
    assert read(session.retry()) == " the happy dog ."
    assert [turn["content"].strip() for turn in session.turns] == [
        "hello", "the happy dog .", "and then?", "the happy dog ."
    ]  # fmt: skip
    scripted.says = []
    read(session.retry())  # of an answer that there is: it stays
    assert [turn["role"] for turn in session.turns] == ["user", "assistant", "user", "assistant"]
    assert session.unanswered is None


def test_the_transcript_of_a_chat(session: Session) -> None:
    from sia_local.errors import SiaError

    run, out = commands(session).run, []
    for line in [text[2:] for text in TRANSCRIPT.splitlines() if text.startswith("> ")]:
        out.append(f"> {line}")
        try:
            if line.startswith("/"):
                reply = run(line)
                out += [reply.text] if reply.text else []
                out += [read(session.retry())] if reply.action == "retry" else []
                quits = reply.action == "quit"
            else:
                out.append(read(session.ask(line)))
        except SiaError as error:
            out.append(f"Error: {error}")
    assert quits
    assert "\n".join(out) + "\n" == TRANSCRIPT


def test_why_tells_of_a_token_from_a_kept_tail(session: Session) -> None:
    run = commands(session).run
    read(session.ask("a"))
    session.steps[1] = replace(session.steps[1], token=3)
    assert "happy +0.81, sad -0.35  ran     not scored" in run("/why").text
    assert "\n  →  ran\n" in run("/why 1").text


def test_why_shows_the_words_that_owe_most_to_steering(session: Session, scripted: Scripted) -> None:
    config = SiaConfig(beta=2.0)
    after = {0: (0.5, 0.5), 1: (0.1, 0.9), 2: (0.9, 0.1), 3: (0.2, 0.8)}  # of a likelier and a less likely candidate
    steps = []
    for i, chances in after.items():
        step = scripted.step(i, 1, True)
        assert step.candidates is not None
        steps.append(replace(step, candidates=replace(step.candidates, p_steered=np.array(chances))))
    told = why.overview(steps, config, lambda token: f" {WORDS[token]}", most=2)
    numbers = [line.split()[0].rstrip("*") for line in told.splitlines() if "→" in line]
    assert numbers == ["2", "4"] and "/why 2 shows" in told
    assert "Below, the 2 words that owe most to it." in " ".join(told.split())


def test_why_says_where_a_gate_opened() -> None:
    gain = SiaConfig(gate="gain", rate=0.4)
    assert why._where(gain) == "about the 40 % where steering changes most"
    assert why._where(replace(gain, gain_threshold=0.05)) == "where steering changes 0.05 nats or more"


def test_why_fits_the_terminal(session: Session) -> None:
    said = Commands(session, lambda token: f" {WORDS[token]}", width=lambda: 60)
    read(session.ask("a"))
    session.steps[0] = replace(session.steps[0], text=" a long beginning of a story about the")
    assert said.run("/why").text.splitlines()[-5:-2] == [
        "  1*  after “…ing of a story about the”",
        "      base: sad 60 %; values: happy +0.81, sad -0.35",
        "      chosen: happy, chance 40 % → 80 %",
    ]
    said.width = lambda: 80
    assert said.run("/why").text.splitlines()[-3] == (
        "  1*  …story about the  sad 60 %     happy +0.81, sad -0.35  happy   40 % → 80 %"
    )
    said.width = lambda: 120
    assert "…ing of a story about the  sad" in said.run("/why").text


def test_steering_needs_a_value_model_and_a_gate(session: Session, scripted: Scripted) -> None:
    run = commands(session).run
    session.config, session.steering = SiaConfig(gate="off"), False
    assert run("/sia").text == "steering off"
    assert run("/sia on").text.startswith("steering on: gate entropy") and session.active.gate == "entropy"
    scripted.value = None
    assert run("/beta 3").text == "steering off: there is no value model"
    with pytest.raises(ConfigError, match="start chat, or its server, with -v"):
        run("/sia on")


def test_every_answer_and_retry_has_its_own_seed_and_the_retry_no_old_answer(
    session: Session, scripted: Scripted
) -> None:
    session.request = replace(session.request, seed=7)
    read(session.ask("a"))
    read(session.retry())
    read(session.ask("b"))
    assert [seed for _, _, seed in scripted.calls] == [7, 8, 9]
    assert [len(m) for m, _, _ in scripted.calls] == [1, 1, 3]


def test_off_means_gate_off_and_on_brings_the_settings_back(session: Session) -> None:
    session.steering = False
    assert session.active.gate == "off" and session.active.beta == 2.0
    session.steering = True
    assert session.active == session.config


def test_an_answer_broken_off_stays_as_far_as_it_came(session: Session) -> None:
    stream = session.ask("a story")
    next(stream), next(stream)
    stream.close()
    asked, answered = session.turns
    assert asked == {"role": "user", "content": "a story"}
    assert answered == {"role": "assistant", "content": " the happy"}
    assert isinstance(answered["content"], Written) and answered["content"].tokens == (4, 1)


def test_an_error_before_the_first_token_leaves_the_session_as_it_was() -> None:
    sia = Scripted()
    session = Session(sia)
    read(session.ask("first"))
    before = list(session.turns)
    sia.fail_at = 0
    with pytest.raises(NumericError):
        read(session.ask("second"))
    assert session.turns == before
    with pytest.raises(NumericError):
        read(session.retry())
    assert session.turns == before


def test_the_oldest_turns_go_when_the_context_fills_and_the_system_prompt_stays() -> None:
    session = Session(Scripted(), Request("", max_tokens=4), system="be kind")
    for word in "abc":
        assert read(session.ask(f"{word} " * 7)) == " the happy dog ."
    # 2 + 3 × (7 + 4) + 7 words and an answer of 4 are 46 tokens of 40.
    said = read(session.ask("d " * 7))
    assert said == "[the context is full: the 2 oldest turns are forgotten, the system prompt stays] the happy dog ."
    assert [t["content"][0] for t in session.turns if t["role"] == "user"] == ["b", "c", "d"]
    assert session.messages[0] == {"role": "system", "content": "be kind"}


def test_a_turn_that_does_not_fit_alone_is_refused_and_the_session_kept() -> None:
    session = Session(Scripted())
    read(session.ask("a"))
    before = list(session.turns)
    with pytest.raises(ContextFullError):
        read(session.ask("word " * 50))
    assert session.turns == before


def test_save_and_load_are_inverse(session: Session, tmp_path: Path) -> None:
    session.system, session.steering = "be kind", False
    session.config = replace(session.config, gate="first-n", first_n=3)
    read(session.ask("ein Häschen"))
    session.save(tmp_path / "chat.json")
    other = Session(Scripted())
    other.load(tmp_path / "chat.json")
    assert (other.turns, other.system, other.steering) == (session.turns, "be kind", False)
    assert other.config == session.config
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file"),
        ("{", "is not JSON"),
        ("[]", "has no list of turns"),
        ('{"turns": [{"role": "king", "content": "x"}]}', "a turn is not"),
        ('{"turns": [{"role": "user", "content": 3}]}', "a turn is not"),
        ('{"turns": [], "settings": {"gate": "wide"}}', "unknown gate 'wide'"),
        ('{"turns": [], "settings": {"beta": "x"}}', "settings are not those of a chat"),
        ('{"turns": [], "settings": 3}', "settings are not those of a chat"),
        ('{"turns": [], "system": 3}', "system prompt is not text"),
    ],
)
def test_a_file_that_is_no_chat_changes_nothing(
    session: Session, tmp_path: Path, content: str | None, sentence: str
) -> None:
    read(session.ask("hello"))
    before, config = list(session.turns), session.config
    path = tmp_path / "chat.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((DataError, ConfigError), match=sentence):
        session.load(path)
    assert session.turns == before and session.config == config


def test_the_report_command_writes_a_page(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no answer to report"):
        commands(session).run("/report x.html")
    read(session.ask("Tell me <a> story"))
    assert commands(session).run(f"/report {tmp_path / 'a.html'}").text == f"wrote {tmp_path / 'a.html'}"
    page = (tmp_path / "a.html").read_text()
    assert "Tell me &lt;a&gt; story" in page and "happy" in page


def test_stats_sum_over_the_session(session: Session) -> None:
    run = commands(session).run
    read(session.ask("a"))
    read(session.ask("b"))
    assert run("/stats").text.splitlines()[-1] == (
        "session: 2 answers, 8 tokens, 25.0 % junctions (2, 2 turned), KL 1.60 nats (steering 0.00, truncation 0.80)"
    )


def test_help_names_every_command_and_every_command_of_the_help_exists(session: Session) -> None:
    run = commands(session).run
    named = {line.split()[0].split("[")[0] for line in run("/help").text.splitlines() if line.startswith("/")}
    assert named == {
        *("/help", "/sia", "/beta", "/threshold", "/rate", "/why", "/stats", "/report", "/system"),
        *("/reasoning", "/retry", "/steer", "/learn", "/use", "/undo", "/save", "/load", "/clear", "/quit"),
    }
    callable_by_a_line = {f"/{name[1:]}" for name in dir(Commands) if name[0] == "_" and name[1:].isalpha()}
    assert callable_by_a_line == named | {"/exit"}


def test_a_saved_chat_is_plain_json(session: Session, tmp_path: Path) -> None:
    read(session.ask("hello"))
    session.save(tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text()) == {
        "version": 1,
        "system": None,
        "turns": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " the happy dog ."}],
        "steering": True,
        "value": "table",
        "settings": {
            "gate": "entropy", "threshold": 1.0, "rate": 0.2, "first_n": 20, "ratio": 1.5,
            "varentropy_threshold": 2.0, "gain_threshold": None, "beta": 2.0, "beta_unit": "raw",
        },
    }  # fmt: skip


def test_a_loaded_chat_has_its_own_unit_of_beta_and_no_question_of_the_one_before(
    session: Session, scripted: Scripted, tmp_path: Path
) -> None:
    session.config = replace(session.config, beta_unit="spread", gate="gain", gain_threshold=0.1)
    read(session.ask("hello"))
    session.save(tmp_path / "chat.json")
    other = Session(scripted, Request("", SiaConfig(beta=9.0)))
    with pytest.raises(ContextFullError):
        read(other.ask("word " * 50))
    assert other.unanswered
    other.load(tmp_path / "chat.json")
    assert other.config == session.config and other.unanswered is other.written is None


def test_settings_stay_with_what_they_were_for(session: Session, scripted: Scripted, tmp_path: Path) -> None:
    session.config = replace(session.config, beta=2.0)
    session.words = "In few words."
    session.save(tmp_path / "chat.json")
    other = Session(scripted, Request("", SiaConfig(beta=9.0)))
    other.load(tmp_path / "chat.json")
    assert other.config.beta == 9.0


def test_an_endless_threshold_is_no_json_and_is_left_out(session: Session, tmp_path: Path) -> None:
    session.config = replace(session.config, threshold=math.inf)
    session.save(tmp_path / "chat.json")
    assert "threshold" not in json.loads((tmp_path / "chat.json").read_text(), parse_constant=pytest.fail)["settings"]


def test_undo_takes_back_a_question_that_nothing_answers(session: Session) -> None:
    read(session.ask("hello"))
    with pytest.raises(ContextFullError):
        read(session.ask("word " * 50))
    assert session.undo() == "word " * 50 and len(session.turns) == 2
    assert session.undo() == "hello" and session.undo() is None


def test_a_system_prompt_that_is_no_text_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the system prompt has bytes that are not UTF-8"):
        commands(session).run("/system \udcff")
    with pytest.raises(ConfigError, match="the system prompt has bytes that are not UTF-8"):
        Session(Scripted(), system="\udcff")
    session.turns = [{"role": "user", "content": "\udcff"}]
    with pytest.raises(SiaError, match="is not UTF-8 text"):
        commands(session).run(f"/save {tmp_path / 'chat.json'}")


def test_a_chat_without_a_model_is_not_steered_by_words() -> None:
    with pytest.raises(ConfigError, match="the instruction has bytes that are not UTF-8"):
        commands(Session(Scripted())).run("/steer \udcff")
    with pytest.raises(ConfigError, match="/steer and /use work in a plain chat"):
        commands(Session(Scripted())).run("/steer kindly")
