"""What passes between floors: prompts, requests, steps and their sums. Imports the configuration and errors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .config import SiaConfig, setting
from .errors import ConfigError
from .reasoning import ANSWER, REASONING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# As text: the options of a command are made of a Request, and its --help waits for no numpy.
Floats: TypeAlias = "npt.NDArray[np.floating[Any]]"
Float64: TypeAlias = "npt.NDArray[np.float64]"
IntArray: TypeAlias = "npt.NDArray[np.int32]"
Message = dict[str, Any]
Messages = Sequence[Message]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the base reads it (`tokens`) and, for sources with their own rendering, the chat behind it.

    told: what its chat template was told beside the messages.
    """

    tokens: tuple[int, ...]
    messages: tuple[Message, ...] | None = None
    text: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One text that is asked for.

    prompt: a user's message, a chat, or a Prompt that SIA.prompt made. max_tokens: most tokens to write. seed: the
    same gives the same text. stop: strings that end the text; one string counts as one. raw: the prompt is plain text
    to continue, no chat template. trace: steps keep their candidates. special: control tokens stand in the text by
    their names, such as <|channel|>; marks: these alone do. Raises ConfigError with a sentence.
    """

    prompt: str | Messages | Prompt
    config: SiaConfig = field(default_factory=SiaConfig)
    max_tokens: int = setting(256, "Longest text, tokens.", option=("-n", "--max-tokens"))
    seed: int = setting(0, "The same seed gives the same text.")
    stop: Sequence[str] = setting(
        (), "Text that ends the answer (\\n is a line break); repeatable.", multiple=True, escapes=True
    )
    raw: bool = setting(False, "Continue the prompt as it stands, without chat template.")
    trace: bool = setting(False, cli=False)
    special: bool = setting(False, "Show control tokens in the text by their names, such as <|channel|>.")
    marks: Sequence[str] = setting((), cli=False)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected at least 1")
        if self.seed < 0:
            raise ConfigError(f"the seed is {self.seed}; expected a whole number of 0 or more")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if any(not text for text in stop):
            raise ConfigError("a stop string is empty; give at least one character")
        object.__setattr__(self, "stop", stop)

    @classmethod
    def of(cls, prompt: str | Messages | Prompt | Request, config: SiaConfig | None = None, **changes: Any) -> Request:
        """What the keywords of `generate` ask for; `changes` are fields of a Request. A Request passes, changed.

        Raises ConfigError for a field that a request does not have, too.
        """
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in changes if name not in known]:
            raise ConfigError(f"a request has no field {unknown[0]!r}; expected one of {', '.join(known)}")
        if config is not None:
            changes["config"] = config
        if isinstance(prompt, Request):
            return replace(prompt, **changes)
        return cls(prompt, **changes)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a step, best base logit first. values are NaN where no value was asked for.

    ids int32[k]; logits, values, p_base, p_steered float64[k]; p_base is over the whole vocabulary.
    """

    ids: IntArray
    logits: Float64
    values: Float64
    p_base: Float64
    p_steered: Float64


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token.

    entropy in nats; kl: KL of this step's distribution from the base's, nats, of which kl_truncation is due to
    cutting to the candidates; logprob: log-probability of the token under the base; beta: strength used (0 when
    not steered); finish: None, `eog`, `stop`, `length` or `context`. kl_steering: KL from the same step without
    values (same candidates, filters, temperature), nats: what a KL budget counts; at temperature 0, where it is
    infinite, the logits given up. flipped: steering changed the likeliest candidate; values_asked: candidates scored.
    NaN: not known, as for a nudged word. text is the answer's, reasoning what the model thinks to itself; part: which
    of them the token was drawn in, reasoning.UNDECIDED for marks.
    """

    job: int
    index: int
    token: int
    text: str
    entropy: float
    steered: bool
    kl: float
    kl_truncation: float
    logprob: float
    beta: float
    finish: str | None
    candidates: Candidates | None
    kl_steering: float = 0.0
    flipped: bool = False
    values_asked: int = 0
    reasoning: str = ""
    part: str = ANSWER


@dataclass
class Tally:
    """Sums over steps. KL and nll (of the tokens under the base) in nats; flips: junctions whose likeliest token
    changed; values_asked: candidates scored; thought: tokens of reasoning."""

    steps: int = 0
    junctions: int = 0
    flips: int = 0
    values_asked: int = 0
    kl: float = 0.0
    kl_truncation: float = 0.0
    kl_steering: float = 0.0
    nll: float = 0.0
    thought: int = 0

    def add(self, step: Step) -> None:
        self.steps += 1
        self.junctions += step.steered
        self.flips += step.flipped
        self.values_asked += step.values_asked
        self.kl += step.kl
        self.kl_truncation += step.kl_truncation
        self.kl_steering += step.kl_steering
        self.nll -= step.logprob
        self.thought += step.part == REASONING

    def sums(self) -> dict[str, Any]:
        """The sums by name."""
        return {f.name: getattr(self, f.name) for f in fields(Tally)}

    def join(self, other: Tally) -> None:
        """Takes the sums of another in."""
        for name, value in other.sums().items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def junction_rate(self) -> float:
        return self.junctions / self.steps if self.steps else 0.0


@dataclass
class Stats(Tally):
    """What a generation did and cost. Times in ms; began: when its first prompt went in, perf_counter's seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    base_ms: float = 0.0
    value_ms: float = 0.0
    wall_ms: float = 0.0
    prefill_ms: float = 0.0
    began: float | None = field(default=None, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Tokens made, the one that ended the text among them."""
        return self.steps

    @property
    def tokens_per_second(self) -> float:
        spent = self.wall_ms - self.prefill_ms
        return 1000.0 * self.steps / spent if spent > 0 else 0.0

    @property
    def value_ms_per_junction(self) -> float:
        return self.value_ms / self.junctions if self.junctions else 0.0


@dataclass
class Completion(Tally):
    """One text with its sums. tokens: without the one that ended it, which is `end`; those of the reasoning, which is
    no part of `text`, are among them."""

    job: int = 0
    text: str = ""
    reasoning: str = ""
    tokens: list[int] = field(default_factory=list)
    end: int | None = None
    finish: str | None = None
    _thoughts: int = 0

    def add(self, step: Step) -> None:
        super().add(step)
        self.text += step.text
        self.reasoning += step.reasoning
        self.finish = step.finish
        if step.finish != "eog":
            self.tokens.append(step.token)
        else:
            self.end = step.token
        if step.part == REASONING or (self._thoughts + (step.part != ANSWER) and not self.text):
            self._thoughts = len(self.tokens)

    @property
    def answer_tokens(self) -> list[int]:
        """The tokens that follow the reasoning, its marks and the white space behind them."""
        return self.tokens[self._thoughts :]

    @property
    def all_tokens(self) -> list[int]:
        """The tokens with the one that ended the text, as value models are trained with it."""
        return self.tokens if self.end is None else [*self.tokens, self.end]


class Reader(Protocol):
    """A model that reads along. behind: whether more than a batch is queued in a slot. read_piece: decodes a batch of
    such a queue; whether it is behind still."""

    def behind(self, slot: int) -> bool: ...
    def read_piece(self, slot: int) -> bool: ...


class Values(Protocol):
    """A source of V(s, y). `spread` is its standard deviation among a junction's candidates, reward units.

    max_candidates: most that one junction may ask for. room: how many tokens a slot can still take, by the source's
    own reading of the prompt. engines: what reads along beside the base.
    """

    spread: float | None
    max_candidates: int

    @property
    def engines(self) -> Sequence[Reader]: ...
    def begin(self, slot: int, prompt: Prompt) -> None: ...
    def room(self, slot: int) -> int: ...
    def score(self, requests: Sequence[tuple[int, IntArray]], also: Sequence[int]) -> Sequence[Floats]: ...
    def accept(self, slot: int, token: int) -> None: ...
