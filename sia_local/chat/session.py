"""A chat session: history, settings and answers. It neither reads nor prints; see `commands` for /commands."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Generator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..config import SiaConfig
from ..errors import ConfigError, ContextFullError, DataError
from ..files import atomic_write, parse_json
from ..generation.sia import SIA
from ..generation.writing import Generation, Writer
from ..records import Request, Step, Tally
from ..text import Written, utf8
from ..values.guides import Guides, instruction
from ..values.sources import Source, Specs

Message = dict[str, str]
# How an instruction steers until the user says otherwise: share of the tokens, and beta in nats of log-probability.
WORDS_RATE, WORDS_BETA = 0.3, 2.0
# Of what a saved chat keeps of its configuration, and what it may be. Each part is taken over as a whole.
_NUMBER = (int, float)
_WHERE: dict[str, type | tuple[type, ...]] = {
    "gate": str,
    "threshold": _NUMBER,
    "rate": _NUMBER,
    "first_n": int,
    "ratio": _NUMBER,
    "varentropy_threshold": _NUMBER,
    "gain_threshold": (*_NUMBER, type(None)),
}
_STRENGTH: dict[str, type | tuple[type, ...]] = {"beta": _NUMBER, "beta_unit": str}
_SETTINGS = _WHERE | _STRENGTH

# What JSON does not hold.
_ENDLESS = (math.inf, -math.inf)


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not part of the answer."""

    text: str


Answer = Generator[Step | Notice, None, None]


@dataclass
class Totals(Tally):
    """Sums over a session's answers."""

    answers: int = 0

    def take(self, tally: Tally) -> None:
        self.answers += 1
        self.join(tally)


@dataclass
class Session:
    """request: what every answer asks for; the prompt is made of the turns, the seed is the first answer's, and every
    further one, a retry too, takes the next. turns: user and assistant messages in order. steps: of the last answer,
    with candidates; answered: the configuration it was made with. steering: `/sia on|off`. written: the last answer as
    it was, or is being, written. unanswered: what was asked last, if nothing answers it; retry() asks it again."""

    sia: Writer
    request: Request = field(default_factory=lambda: Request(""))
    system: str | None = None
    steering: bool = True
    turns: list[Message] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    answered: SiaConfig = field(default_factory=SiaConfig)
    totals: Totals = field(default_factory=Totals)
    written: Generation | None = None
    words: str | None = None
    unanswered: str | None = None
    _drawn: int = 0
    _before: tuple[SiaConfig, bool, Source | None] | None = None

    def __post_init__(self) -> None:
        utf8(self.system or "", "the system prompt")

    @property
    def config(self) -> SiaConfig:
        """How answers are steered while steering is on."""
        return self.request.config

    @config.setter
    def config(self, config: SiaConfig) -> None:
        self.request = replace(self.request, config=config)

    @property
    def active(self) -> SiaConfig:
        """The configuration of the next answer."""
        return self.config if self.steering else replace(self.config, gate="off")

    @property
    def messages(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [dict(turn) for turn in self.turns]

    def ask(self, text: str) -> Answer:
        """Streams the answer to a user turn and keeps both.

        Closing it early keeps what came so far; an error before the first token leaves the session as
        it was. Raises ContextFullError if the turn alone does not fit.
        """
        yield from self._answer([*self.turns, {"role": "user", "content": text}])

    def retry(self) -> Answer:
        """Answers the last user turn again, with another seed. Raises DataError if there is none."""
        if self.unanswered is not None:
            yield from self.ask(self.unanswered)
            return
        if not self.turns:
            raise DataError("there is nothing to retry; ask something first")
        answered = self.turns[-1]["role"] == "assistant"
        yield from self._answer(self.turns[:-1] if answered else list(self.turns))

    def undo(self) -> str | None:
        """Forgets the last exchange, or a question that nothing answers; returns what the user had said, None without
        one."""
        if self.unanswered is not None:
            said, self.unanswered = self.unanswered, None
            return said
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        self.steps = []
        return self.turns.pop()["content"] if self.turns else None

    def clear(self) -> None:
        self.turns, self.steps, self.unanswered = [], [], None

    def _answer(self, turns: list[Message]) -> Answer:
        before, self.turns = self.turns, turns
        seed = self.request.seed + self._drawn
        self._drawn += 1
        self.steps, self.answered = [], self.active
        self.written = None
        try:
            written, first, dropped = self._begun(replace(self.request, config=self.answered, seed=seed, trace=True))
            if dropped:
                yield Notice(_dropped_sentence(dropped))
            for step in chain(first, written):
                # The end that a server tells of apart is no token.
                if step.token >= 0 or step.text or step.reasoning:
                    self.steps.append(step)
                yield step
            if written.reasoning and not written.text and written.finish == "length":
                yield Notice("the answer ended while the model was still reasoning; -n allows more")
            elif not written.text.strip() and written.finish is not None:
                yield Notice("the model had nothing to say and the chat stays as it was; /retry asks it again")
            if written.finish == "context":
                yield Notice("the answer was cut because the context is full; the oldest turns go when you go on")
        finally:
            # An empty answer is none: templates refuse such a turn, and every later question with it.
            self.unanswered = turns[-1]["content"] if len(before) < len(turns) else None
            if self.written is not None and self.written.text.strip():
                self.unanswered = None
                answer = Written(self.written.text, self.written.answer_tokens)
                turn: Message = {"role": "assistant", "content": answer}
                if self.written.reasoning:
                    # Templates drop what was thought in earlier turns, or want it apart.
                    turn["reasoning_content"] = self.written.reasoning
                self.turns.append(turn)
                self.totals.take(self.written.stats)
            else:
                self.turns = before

    def steer_by(self, words: str) -> None:
        """From now on the base under an instruction, against itself without, says what steers; no training, but two
        more decodes a junction. Raises ConfigError where the writer cannot change what steers it."""
        utf8(words, "the instruction")
        sentence = words if "{prompt}" in words else f"{words[:1].upper()}{words[1:].rstrip('.')}."
        base = self._plain().model.path
        self._steer(Guides(base, base, name="words", plus_prompt=instruction(sentence)))
        self.words = sentence
        self._as_words_do()

    def use(self, value: Specs, learned: str | None = None) -> None:
        """From now on a value file steers, as strongly as the one before did. learned: the instruction that it was
        learned from, whose settings stay, or become those of steer_by(). Raises as steer_by() and SIA.use do."""
        live, meant, source = self.words, self.config, self.sia.value
        self._steer(value)
        self.words = None
        if learned is None:
            if live is not None and self._before is not None:
                # Nats of log-probability are no measure of another file's values.
                meant, _, source = self._before
            self.config = _as_strong(meant, source, self.sia.value)
        elif learned != live:
            self._as_words_do()
        if self.config.gate == "off":
            self.config = replace(self.config, gate=SiaConfig().gate)

    def _plain(self) -> SIA:
        if not isinstance(self.sia, SIA):
            raise ConfigError("texts of another kind are written here; /steer and /use work in a plain chat")
        return self.sia

    def _steer(self, value: Specs) -> None:
        before = (self.config, self.steering, self.sia.value)
        self._plain().use(value)
        self._before = self._before or before
        self.steering = True

    def _as_words_do(self) -> None:
        gate = {"gate": "rate", "rate": WORDS_RATE, "beta": WORDS_BETA, "beta_unit": "raw", "clip": None}
        self.config = replace(self.config, **gate)  # type: ignore[arg-type]

    def steer_as_before(self) -> None:
        """What steered before the first steer_by() or use()."""
        if self._before is not None and isinstance(self.sia, SIA):
            self.config, self.steering, source = self._before
            self.sia.put(source)
        self.words = self._before = None

    def halt(self) -> None:
        """Ends the answer that is being written, after the token in hand."""
        if self.written is not None:
            self.written.stop()

    @property
    def _steered_by(self) -> str | None:
        return self.words or (self.sia.value.name if self.sia.value is not None else None)

    def _begun(self, request: Request) -> tuple[Generation, list[Step], int]:
        """The answer, its first step, and how many of the oldest turns had to go so that it fits behind the others. Of
        a server's context only its refusal tells."""
        room = min(request.max_tokens, self.sia.n_ctx // 4)
        dropped = 0
        while True:
            last = len(self.turns) == 1
            try:
                prompt = self.sia.prompt(self.messages)
                if last or len(prompt.tokens) + room <= self.sia.n_ctx:
                    self.written = self.sia.write(replace(request, prompt=prompt))
                    return self.written, list(islice(self.written, 1)), dropped
            except ContextFullError:
                if last:
                    raise
            # An exchange goes as a whole: templates expect a user turn first.
            count = 2 if len(self.turns) > 2 and self.turns[1]["role"] == "assistant" else 1
            self.turns = self.turns[count:]
            dropped += count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the chat as JSON: system prompt, turns, settings, and what these were for."""
        whole = {
            "version": 1,
            "system": self.system,
            "turns": self.turns,
            "steering": self.steering,
            "value": self._steered_by,
            "settings": {name: x for name in _SETTINGS if (x := getattr(self.config, name)) not in _ENDLESS},
        }
        with atomic_write(path) as out:
            json.dump(whole, out, ensure_ascii=False, indent=2)
            out.write("\n")

    def load(self, path: str | os.PathLike[str], own: Collection[str] = ()) -> None:
        """Takes over a saved chat, and its settings where the same steers as did there; on an error (DataError,
        ConfigError) the session stays as it was. own: settings by name, `system` among them, that stay as they are,
        with those that mean nothing without them."""
        whole = _read(Path(path))
        same = whole.get("value", self._steered_by) == self._steered_by
        parts = [part for part in (_WHERE, _STRENGTH) if same and not part.keys() & set(own)]
        settings = whole.get("settings", {})
        taken = {name: settings[name] for part in parts for name in part if name in settings}
        self.config = replace(self.config, **taken)
        self.turns, self.steps = whole["turns"], []
        if "system" not in own:
            self.system = whole.get("system") or None
        if _WHERE in parts:
            self.steering = bool(whole.get("steering", True))
        self.written = self.unanswered = None


def _as_strong(config: SiaConfig, before: Source | None, now: Source | None) -> SiaConfig:
    """Settings for another source whose values may have another scale: beta in spreads of either."""
    if config.beta_unit == "spread" or before is None or now is None or not (before.spread and now.spread):
        return config
    return replace(config, beta=config.beta * before.spread, beta_unit="spread")


def _dropped_sentence(n: int) -> str:
    what = "the oldest turn is" if n == 1 else f"the {n} oldest turns are"
    return f"the context is full: {what} forgotten, the system prompt stays"


def _read(path: Path) -> dict[str, Any]:
    try:
        whole = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a chat written by /save") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a chat written by /save") from None
    except ValueError:
        raise DataError(f"{path}: is not JSON; expected a chat written by /save") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("turns"), list):
        raise DataError(f"{path}: has no list of turns; expected a chat written by /save")
    if not isinstance(whole.get("system", ""), str | None):
        raise DataError(f"{path}: the system prompt is not text; expected a chat written by /save")
    settings = whole.get("settings", {})
    if not isinstance(settings, dict) or not all(
        isinstance(settings[name], kind) for name, kind in _SETTINGS.items() if name in settings
    ):
        raise DataError(f"{path}: the settings are not those of a chat; expected a chat written by /save")
    for turn in whole["turns"]:
        if (
            not isinstance(turn, dict)
            or turn.get("role") not in ("user", "assistant")
            or not isinstance(turn.get("content"), str)
        ):
            raise DataError(f"{path}: a turn is not {{role, content}}; expected a chat written by /save")
    return whole
