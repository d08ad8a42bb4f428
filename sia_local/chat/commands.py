"""The /commands of a chat: text in, text out, on a Session. No printing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import SiaConfig
from ..errors import ConfigError, SiaError
from ..files import at_home
from ..text import utf8
from ..views import trace, why
from .learner import TEXTS, Learner, place_for
from .session import Session

HELP = """\
/help               this list
/sia on|off         steering on or off
/beta X             strength of steering; 0 does nothing, below 0 the opposite
/beta NAME X        weight of one of several values
/steer WORDS|off    steer by an instruction, such as in very simple words; off: as before
/learn [N]          make a steering file of it, behind the chat, from N texts; again: how far it is
/learn keep|stop    let it go on when the chat is over; end it, what it has is kept
/use [NAME|FILE]    steer by what was learned, at no cost a token, or by another value file
/threshold X        steer where the base's entropy is X nats or more
/rate X             steer this share of the tokens, such as 0.2
/why [N]            where steering acted; N: every candidate of junction N
/stats              speed, junctions and KL, of the last answer and in all
/reasoning          what the model thought to itself before the last answer
/report FILE.html   the last answer as a page, each junction with its candidates
/system [TEXT|off]  show, set or remove the system prompt
/retry              answer again, with another seed
/undo               forget the last exchange
/save FILE          write the chat as JSON
/load FILE          continue a saved chat
/clear              forget the whole chat, keep system prompt and settings
/quit               leave (also Ctrl-D)

A line that ends in \\ goes on in the next one, as after Alt-Enter; what is pasted is one message.
A block between lines of \"\"\" is one message, and may begin with /, as may a line that begins with //.
Ctrl-C stops an answer and keeps what it said."""
COMMANDS = tuple(line.split()[0] for line in HELP.splitlines() if line.startswith("/"))


@dataclass(frozen=True)
class Reply:
    """What a command says, and what the terminal is to do: `quit`, `retry` or nothing."""

    text: str = ""
    action: str | None = None


class Commands:
    """Bound to a session. `text` names tokens; `about` are facts for reports (model and value file); `width` is how
    many characters a line may have now, None for any number; `loading` are options of `learn` that load the same base;
    `find` gives the value file that /use means. Close it, or what /learn began may stay."""

    def __init__(
        self,
        session: Session,
        text: trace.TokenText,
        about: dict[str, Any] | None = None,
        width: Callable[[], int | None] = lambda: None,
        loading: Sequence[str] = (),
        find: Callable[[str], str | os.PathLike[str]] = at_home,
    ):
        self.session = session
        self.text = text
        self.about = about or {}
        self.width = width
        self.loading = loading
        self.find = find
        self.learner: Learner | None = None

    def run(self, line: str) -> Reply:
        """Runs one line that begins with `/`. Raises SiaError with a sentence; the session stays usable."""
        name, _, rest = line.strip().partition(" ")
        # Helpers have an underscore inside their names, commands are letters only.
        method: Callable[[str], Reply] | None = getattr(self, f"_{name[1:]}", None) if name[1:].isalpha() else None
        if method is None:
            raise ConfigError(f"unknown command {name}; /help lists the commands")
        return method(rest.strip())

    def _help(self, rest: str) -> Reply:
        return Reply(HELP)

    def _quit(self, rest: str) -> Reply:
        return Reply(action="quit")

    _exit = _quit

    def _retry(self, rest: str) -> Reply:
        if not self.session.turns and self.session.unanswered is None:
            raise ConfigError("there is nothing to retry; ask something first")
        return Reply(action="retry")

    def _sia(self, rest: str) -> Reply:
        if rest not in ("on", "off", ""):
            raise ConfigError(f"/sia takes on or off, {rest!r} was given")
        if rest == "on":
            if self.session.sia.value is None:
                raise ConfigError(
                    "there is no value model to steer with; start chat, or its server, with -v value.gguf"
                )
            if self.session.config.gate == "off":
                self.session.config = replace(self.session.config, gate=SiaConfig().gate)
        if rest:
            self.session.steering = rest == "on"
        return Reply(self.settings())

    def _beta(self, rest: str) -> Reply:
        name, _, number = rest.partition(" ")
        if number:
            mixed = self.session.sia.value
            if mixed is None or not hasattr(mixed, "set_weight"):
                raise ConfigError(f"/beta {rest} names a value, but there is one value model; expected /beta {number}")
            mixed.set_weight(name, _number(number.strip(), "/beta"))
            return Reply(f"values: {mixed.name}")
        return self._set_number(rest, "/beta", lambda x: {"beta": x})

    def _steer(self, rest: str) -> Reply:
        session = self.session
        if rest == "off":
            session.steer_as_before()
            return Reply(self.settings())
        words = rest.strip("\"'")
        if not words:
            raise ConfigError("/steer takes an instruction or off; for instance /steer in very simple words")
        session.steer_by(words)
        return Reply(f"steering by: {session.words}\n{self.settings()}")

    def _learn(self, rest: str) -> Reply:
        learner = self.learner
        if rest in ("keep", "stop"):
            if learner is None or not learner.running:
                raise ConfigError(f"/learn {rest} is for what is being learned, and nothing is")
            if rest == "keep":
                learner.keep()
                return Reply(f"it goes on when the chat is over; its log is {learner.log}, its file {learner.out}")
            learner.stop()
            return Reply(f"stopped: {learner.news()}\n/learn goes on with what it has")
        if rest and not (rest.isdecimal() and int(rest)):
            raise ConfigError(f"/learn takes a number of texts, keep or stop, {rest!r} was given")
        words = self.session.words
        if learner is not None and (learner.running or (not rest and words in (None, learner.words))):
            if rest and learner.running:
                raise ConfigError(f"{learner.words!r} is being learned; /learn stop ends that, and what it has is kept")
            # Of one that failed, why, before it goes on.
            if learner.news() is not None or learner.running or learner.learned:
                return Reply(self._how_far(learner))
        if words is None:
            raise ConfigError("there is nothing to learn yet; steer by words first, as in /steer in very simple words")
        base = self.session.sia.model.path
        loading = self.loading or ("--model", str(base))
        learner = self.learner = Learner(words, place_for(base, words, loading), loading)
        learner.start(int(rest or TEXTS))
        return Reply(
            f"learning from {int(rest or TEXTS)} texts of the base, at low priority on one core; /learn says how far "
            "it is, and the chat goes on"
        )

    def _use(self, rest: str) -> Reply:
        learner = self.learner
        if rest:
            self.session.use(self.find(rest))
        elif learner is None or not learner.learned:
            raise ConfigError("/use takes a value file, or what /learn has learned; nothing is learned yet")
        else:
            self.session.use(learner.out, learner.words)
        value = self.session.sia.value
        return Reply(f"steering by: {value.name if value is not None else 'nothing'}\n{self.settings()}")

    def news(self) -> str | None:
        """What is to be told of what happens behind the chat, between two answers; None: nothing new."""
        told = self.learner.news() if self.learner is not None else None
        return None if told is None or self.learner is None else self._how_far(self.learner)

    def close(self) -> str | None:
        """Ends what happens behind the chat, unless it is to go on; what there is to say of it."""
        learner = self.learner
        if learner is None or not learner.running:
            return None
        if learner.kept:
            return f"learning goes on; its log is {learner.log}, its file {learner.out}"
        learner.stop()
        return f"learning stopped, what it has is kept; this goes on with it: {learner.command}"

    def _how_far(self, learner: Learner) -> str:
        """Where it stands, and what to do once it is done."""
        told = learner.status()
        if not learner.learned:
            return told
        return f"{told}\n/use steers by it instead of the live pair; in another chat: -v {learner.out}"

    def _threshold(self, rest: str) -> Reply:
        return self._set_number(rest, "/threshold", lambda x: {"threshold": x, "gate": "entropy"})

    def _rate(self, rest: str) -> Reply:
        return self._set_number(rest, "/rate", lambda x: {"rate": x, "gate": "rate"})

    def _why(self, rest: str) -> Reply:
        steps, config = self.session.steps, self.session.answered
        if not rest:
            return Reply(why.overview(steps, config, self.text, width=self.width()))
        if not rest.isdecimal():
            raise ConfigError(f"/why takes the number of a junction, {rest!r} was given")
        return Reply(why.detail(steps, int(rest), config, self.text))

    def _reasoning(self, rest: str) -> Reply:
        thought = self.session.written.reasoning if self.session.written is not None else ""
        return Reply(thought or "the last answer has no reasoning")

    def _stats(self, rest: str) -> Reply:
        s, t = self.session, self.session.totals
        lines = [self.settings()]
        if t.answers:
            if s.written is not None:
                lines.append(f"last answer: {trace.closing_line(s.written, s.answered)}")
            told = f"session: {t.answers} answer{'s' if t.answers > 1 else ''}, {t.steps} tokens"
            if not math.isnan(t.kl):
                told += f", {100 * t.junction_rate:.1f} % junctions ({t.junctions}, {t.flips} turned), "
                told += f"KL {t.kl:.2f} nats (steering {t.kl_steering:.2f}, truncation {t.kl_truncation:.2f})"
            lines.append(told)
        return Reply("\n".join(lines))

    def _system(self, rest: str) -> Reply:
        if rest:
            utf8(rest, "the system prompt")
            self.session.system = None if rest == "off" else rest
        now = self.session.system
        return Reply(f"system prompt: {now}" if now else "no system prompt")

    def _undo(self, rest: str) -> Reply:
        said = self.session.undo()
        if said is None:
            raise ConfigError("there is nothing to undo; ask something first")
        return Reply(f"forgotten: {said}")

    def _clear(self, rest: str) -> Reply:
        self.session.clear()
        return Reply("the chat is empty")

    def _save(self, rest: str) -> Reply:
        path = _path(rest, "/save", "chat.json")
        _write(path, lambda: self.session.save(path))
        return Reply(f"saved {len(self.session.turns)} turns to {path}")

    def _load(self, rest: str) -> Reply:
        path = _path(rest, "/load", "chat.json")
        self.session.load(path)
        return Reply(f"loaded {len(self.session.turns)} turns from {path}\n{self.settings()}")

    def _report(self, rest: str) -> Reply:
        s, path = self.session, _path(rest, "/report", "answer.html")
        if not s.steps:
            raise ConfigError("there is no answer to report yet; ask something first")
        if all(math.isnan(step.entropy) for step in s.steps):
            raise ConfigError(
                "there is nothing to report: the server tells nothing of its tokens, as it does not steer"
            )
        from ..files import atomic_write
        from ..views.answer import answer_report

        asked = next((turn["content"] for turn in reversed(s.turns) if turn["role"] == "user"), "")
        page = answer_report(
            [trace.record(step, self.text) for step in s.steps],
            {
                "prompt": asked,
                **self.about,
                **trace.report_facts(s.answered),
                "kl_steering": sum(step.kl_steering for step in s.steps),
            },
        )

        def write() -> None:
            with atomic_write(path) as out:
                out.write(page)

        _write(path, write)
        return Reply(f"wrote {path}")

    def settings(self) -> str:
        """What the next answer is made with, in one line."""
        config = self.session.config
        if self.session.sia.value is None:
            return "steering off: there is no value model"
        if config.gate == "off":
            return "steering off"
        facts = trace.report_facts(config)
        shown = {name: f"{x:.3g}" if isinstance(x, float) else x for name, x in facts.items()}
        listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
        return f"steering on: {listed}" if self.session.steering else f"steering off; /sia on: {listed}"

    def _set_number(self, rest: str, name: str, fields: Callable[[float], dict[str, Any]]) -> Reply:
        if rest:
            self.session.config = replace(self.session.config, **fields(_number(rest, name)))
        return Reply(self.settings())


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise SiaError(f"{path}: {error.strerror}; give a path that can be written") from None
    except UnicodeEncodeError:
        raise SiaError(f"{path}: what is to be written is not UTF-8 text; /undo that and write again") from None


def _number(text: str, name: str) -> float:
    try:
        x = float(text.replace(",", "."))
    except ValueError:
        x = math.nan
    if math.isnan(x):
        raise ConfigError(f"{name} takes a number, {text!r} was given")
    return x


def _path(text: str, name: str, example: str) -> Path:
    if not text:
        raise ConfigError(f"{name} takes a file; for instance {name} {example}")
    return at_home(text)
