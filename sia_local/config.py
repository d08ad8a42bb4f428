"""What a user can set about steering and sampling, checked on construction."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import parse_json, sha256_of
from .reasoning import FORMATS

GATES = ("entropy", "rate", "dense", "random", "first-n", "ratio", "varentropy", "gain", "off")
ENTROPIES = ("topk", "full")
BETA_UNITS = ("raw", "spread")
KV_FORMATS = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FLASH_ATTENTION = ("auto", "off", "on")
STEERED = ("all", "answer", "reasoning")
DEFAULT_CANDIDATES = 10
DEFAULT_HEAD_CANDIDATES = 4


def setting(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A dataclass field with the help of its option; see `sia_local.cli.from_dataclass` for the rest."""
    return field(default=default, metadata={"help": help, **metadata})


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise ConfigError(sentence)


# ggml's own bound (GGML_MAX_N_THREADS); beyond it the process ends.
MOST_THREADS = 512
# Below it a logit's difference over the temperature is no float any more.
LEAST_TEMPERATURE = 1e-9
# Of a beta or a weight: times the widest float of 32 bits, over the smallest, it is still one of 64 bits.
MOST_BETA = 1e30


@dataclass(frozen=True)
class SamplingConfig:
    """What shapes the base distribution before candidates are taken, and the temperature after steering.

    temperature 0 takes the best candidate. Penalties look at the last `penalty_last_n` tokens, the prompt's among
    them; -1: at all. `grammar` is GBNF text. logit_bias: (token id, what is added to its logit), -inf for never.
    """

    temperature: float = setting(1.0, "0 takes the likeliest token, above 1 is wilder.", option="--temp")
    top_p: float = setting(1.0, "Keep the likeliest tokens that reach this share; 1 keeps all.")
    min_p: float = setting(0.0, "Drop those below this share of the likeliest; 0 drops none.")
    repeat_penalty: float = setting(1.0, "Above 1: tokens that came are less likely.")
    frequency_penalty: float = setting(0.0, "Above 0: the same, with each time they came.")
    presence_penalty: float = setting(0.0, "Above 0: the same, however often they came.")
    penalty_last_n: int = setting(64, "Tokens penalties look at, -1 for the whole context.")
    grammar: str | None = setting(
        None, "GBNF grammar the text must follow.", option="--grammar-file", file="a GBNF grammar"
    )
    logit_bias: tuple[tuple[int, float], ...] = setting((), cli=False)

    def __post_init__(self) -> None:
        _require(
            self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf,
            f"temperature is {self.temperature}; expected 0 (greedy), or {LEAST_TEMPERATURE:g} and more",
        )
        _require(0 < self.top_p <= 1, f"top_p is {self.top_p}; expected above 0 and at most 1 (1 = off)")
        _require(0 <= self.min_p < 1, f"min_p is {self.min_p}; expected 0 (off) to below 1")
        _require(
            math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0,
            f"repeat_penalty is {self.repeat_penalty}; expected above 0 (1 = off)",
        )
        for name in ("frequency_penalty", "presence_penalty"):
            penalty = getattr(self, name)
            _require(math.isfinite(penalty), f"{name} is {penalty}; expected a finite number (0 = off)")
        _require(
            self.penalty_last_n >= -1,
            f"penalty_last_n is {self.penalty_last_n}; expected 0 or more, or -1 for the whole context",
        )
        for token, bias in self.logit_bias:
            # llama.cpp adds it in 32 bits; an infinite logit would leave nothing to choose from.
            _require(
                bias < 3e38, f"the logit bias of token {token} is {bias}; expected a finite number, or -inf for never"
            )

    @property
    def penalizes(self) -> bool:
        return self.penalty_last_n != 0 and (
            self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        )

    @property
    def filters(self) -> bool:
        """Whether anything but temperature acts on the base distribution."""
        return self.penalizes or bool(self.grammar or self.logit_bias) or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class SiaConfig:
    """The steering of one generation (candidates, entropy, gate, tilt), plus its sampling.

    k: candidates taken at every step. gate: when to steer (`GATES`); several gates joined by `+` are OR-ed.
    threshold: nats, for the entropy gate. rate: wanted share of steered tokens, for `rate` and `random`.
    first_n: tokens steered by `first-n`. ratio: for the `ratio` gate, entropy over the previous token's.
    varentropy_threshold: nats², for the `varentropy` gate. gain_threshold: nats that steering would change, for the
    `gain` gate; None lets that gate hold `rate`. entropy: over the top k (`topk`) or the whole
    vocabulary (`full`).
    beta: strength; negative means the opposite of the value model. beta_unit `spread` counts beta in standard
    deviations of V among the candidates of a junction. center subtracts the mean of V over the candidates, clip
    bounds V before it is scaled. tail keeps the tokens outside the candidates at their base logits. kl_per_token
    and kl_total (nats) bound what steering may spend: beta is lowered at a junction so that the budget holds.
    min_share: candidates less likely than this share of the best are not scored (0 scores all of the k). steer: which
    part of a text is steered, where a model reasons before it answers; rates, first_n and KL a token count that part.
    """

    k: int = setting(
        DEFAULT_CANDIDATES, "Likeliest tokens to choose among.", option=("-k", "--candidates"),
        show=f"{DEFAULT_CANDIDATES}, of which a value-head scores {DEFAULT_HEAD_CANDIDATES}",
    )  # fmt: skip
    gate: str = setting("entropy", f"When to steer: {', '.join(GATES)}. Several are OR-ed.", metavar="NAME", join="+")
    threshold: float = setting(
        1.0, "Steer where the base's entropy, how unsure it is, has so many nats; alone it means --gate entropy."
    )
    entropy: str = setting(
        "topk", "Measure entropy over the candidates, or over all tokens.", metavar="|".join(ENTROPIES)
    )
    rate: float = setting(0.2, "Wanted share of steered tokens; alone it means --gate rate.", gate="rate")
    first_n: int = setting(20, "Tokens steered by --gate first-n; alone it means that gate.", gate="first-n")
    ratio: float = setting(1.5, "Steer where entropy is so many times the last token's.", gate="ratio")
    varentropy_threshold: float = setting(
        2.0, "Steer where the variance of -log p has so many nats².", option="--varentropy", gate="varentropy"
    )
    gain_threshold: float | None = setting(
        None, "Steer where that changes so many nats, for --gate gain; without it that gate holds --rate.",
        option="--gain", gate="gain",
    )  # fmt: skip
    beta: float = setting(1.0, "Strength of steering; 0 is none, below 0 the opposite.")
    beta_unit: str = setting(
        "raw",
        "Multiply values as they are, or in units of their usual spread.",
        metavar="|".join(BETA_UNITS),
        show="the profile's, else raw",
    )
    center: bool = setting(False, "Subtract the candidates' mean value.")
    clip: tuple[float, float] | None = setting(None, "Bound the values to this range.", metavar="LOW HIGH")
    tail: bool = setting(False, "Keep tokens beyond the candidates, unsteered.")
    kl_per_token: float | None = setting(
        None, "Most that steering may change the text, as KL in nats a token: 0.05 is gentle."
    )
    kl_total: float | None = setting(None, "The same for the whole text, such as 20.")
    min_share: float = setting(0.0, "Score only candidates this likely, relative to the best.")
    row_group: int = setting(1, "Round the number of scored candidates up to a multiple of this.")
    steer: str = setting(
        "all", "The part that is steered, of a model that reasons before it answers.", metavar="|".join(STEERED)
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _require(1 <= self.k <= 255, f"k is {self.k}; expected 1 to 255 candidates")
        for gate in self.gate.split("+"):
            _require(gate in GATES, f"unknown gate {gate!r}; expected one of {', '.join(GATES)}")
        _require(self.entropy in ENTROPIES, f"unknown entropy {self.entropy!r}; expected one of {', '.join(ENTROPIES)}")
        _require(
            self.beta_unit in BETA_UNITS,
            f"unknown beta unit {self.beta_unit!r}; expected one of {', '.join(BETA_UNITS)}",
        )
        _require(self.steer in STEERED, f"steer is {self.steer!r}; expected one of {', '.join(STEERED)}")
        _require(not math.isnan(self.threshold), "threshold is nan; expected nats, such as 1.0")
        _require(not math.isnan(self.varentropy_threshold), "varentropy_threshold is nan; expected nats², such as 2.0")
        _require(
            self.gain_threshold is None or self.gain_threshold >= 0,
            f"gain_threshold is {self.gain_threshold}; expected 0 nats or more, or None to hold a rate",
        )
        _require(0 <= self.rate <= 1, f"rate is {self.rate}; expected a share from 0 to 1, such as 0.2")
        _require(self.first_n >= 0, f"first_n is {self.first_n}; expected 0 or more tokens")
        _require(
            abs(self.beta) <= MOST_BETA, f"beta is {self.beta}; expected {-MOST_BETA:g} to {MOST_BETA:g}, such as 1.0"
        )
        _require(self.ratio > 0, f"ratio is {self.ratio}; expected above 0")
        _require(0 <= self.min_share < 1, f"min_share is {self.min_share}; expected 0 (off) to below 1")
        _require(self.row_group >= 1, f"row_group is {self.row_group}; expected at least 1")
        if self.clip is not None:
            _require(
                len(self.clip) == 2 and self.clip[0] < self.clip[1],
                f"clip is {self.clip}; expected two numbers, the lower first",
            )
        _require(
            not (self.tail and self.sampling.filters),
            "tail and a penalty, a logit bias, top_p, min_p or a grammar were given; tail keeps every token as the "
            "base has it, drop one of them",
        )
        for name in ("kl_per_token", "kl_total"):
            budget = getattr(self, name)
            _require(budget is None or budget >= 0, f"{name} is {budget}; expected 0 nats or more")

    def acts_on(self, part: str) -> bool:
        """Whether this part of a text is steered; see reasoning.ANSWER and the others."""
        return self.steer in ("all", part)

    def with_sampling(self, **changes: Any) -> SiaConfig:
        return replace(self, sampling=replace(self.sampling, **changes))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SiaConfig:
        """A published method as a setting of this sampler; `changes` replace single fields."""
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
        fields = dict(PRESETS[name])
        sampling = SamplingConfig(**fields.pop("sampling", {}))
        return cls(**{**fields, "sampling": sampling, **changes})


@dataclass(frozen=True)
class TemplateSettings:
    """How a base is spoken to.

    chat_template: a jinja file, or a template that llama.cpp has by name, in place of the base's own. template_arg:
    NAME=VALUE, what chat templates are told, a value in JSON or plain text.
    """

    chat_template: str | None = setting(
        None, "Chat template in place of the base's own: a jinja file, or one of llama.cpp's, such as chatml.",
        metavar="FILE|NAME", show="the base's own",
    )  # fmt: skip
    template_arg: tuple[str, ...] = setting(
        (), "What the chat template is told, such as enable_thinking=false; repeatable.", metavar="NAME=JSON",
        multiple=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for given in self.template_arg:
            name, equals, _ = given.partition("=")
            _require(
                bool(equals) and name.isidentifier(),
                f"the template argument is {given!r}; expected NAME=VALUE, such as enable_thinking=false",
            )

    @property
    def template_mark(self) -> str | None:
        """Tells chat templates apart: the name of one and, of a file, a hash of what it holds."""
        if self.chat_template is None or not (file := Path(self.chat_template)).is_file():
            return self.chat_template
        return f"{file.name} {sha256_of(file)[:12]}"

    @property
    def template_args(self) -> dict[str, Any]:
        """template_arg by name; what is no JSON is text."""
        return {name: _json_or_text(value) for name, _, value in (given.partition("=") for given in self.template_arg)}


@dataclass(frozen=True)
class ChatSettings(TemplateSettings):
    """And how it thinks. reasoning: how that is marked (reasoning.find_format)."""

    reasoning: str = setting(
        "auto", f"How the model marks what it thinks to itself: none, {', '.join(FORMATS)}, or two marks as in "
        "'<think>,</think>'; auto asks the chat template and the vocabulary.", metavar="NAME|OPEN,CLOSE",
    )  # fmt: skip

    @property
    def unusual(self) -> dict[str, Any]:
        """What differs from the defaults, by name, in values of JSON: for what a file was made with. Of a chat template
        its mark."""
        given = {f.name: (getattr(self, f.name), f.default) for f in fields(ChatSettings)}
        given["chat_template"] = (self.template_mark, None)
        return {name: list(x) if isinstance(x, tuple) else x for name, (x, usual) in given.items() if x != usual}


@dataclass(frozen=True)
class Setup(ChatSettings):
    """How models are loaded: what every text of one SIA shares.

    n_ctx: tokens a sequence may hold. slots: sequences that generate at once. n_threads: of the CPU, 0 for one a core.
    n_gpu_layers: -1 for all. rpc: machines that hold all layers of the base, host:port of the ggml-rpc-server on each.
    max_candidates: most candidates a junction can score (None: 10; 4 for a `value-head`, which scores in the base's own
    decode). type_k, type_v: KV cache formats. flash_attention: `auto`, `on` or `off`.
    overlap_prompts: the value source reads a prompt while the base does, not at the first junction. hidden_states: the
    base keeps the hidden state behind each row of logits, which a `value-qhead` asks for by itself. same_vocabulary:
    ids mean the same though some control tokens have other names. prompt_cache: bytes of the computer's memory for
    texts that lost their slot to another, so that they are not read again when they go on. shortlist: of two sources
    of values the first, a Q-head, picks so many candidates, which the second scores; 0 for their sum.
    """

    n_ctx: int = setting(2048, "Tokens of context.", option="--ctx")
    slots: int = setting(1, "Texts in one decode.")
    n_threads: int = setting(0, "CPU threads.", option="--threads", show="one a core")
    n_gpu_layers: int = setting(0, "Layers on the GPU, -1 for all.")
    rpc: tuple[str, ...] = setting(
        (), "Other machines that hold the base's layers, each with a ggml-rpc-server.", metavar="HOST:PORT,…"
    )
    max_candidates: int | None = setting(None, cli=False)
    type_k: str = setting(
        "f16", "KV cache format of the keys alone.", option="--kv-type-k", metavar="TYPE", show="that of --kv-type"
    )
    type_v: str = setting(
        "f16", "KV cache format of the values alone.", option="--kv-type-v", metavar="TYPE", show="that of --kv-type"
    )
    flash_attention: str = setting(
        "auto",
        "Attention with less memory, on GPUs faster; a quantized --kv-type-v needs it.",
        metavar="|".join(FLASH_ATTENTION),
    )
    shortlist: int = setting(
        0,
        "Of two -v, the first a Q-head: the second scores only so many candidates, those that the Q-head favours.",
        metavar="N",
        show="off",
    )
    overlap_prompts: bool = setting(
        False,
        "The value model reads a prompt while the base does, on some of the cores, not at the first junction.",
    )
    hidden_states: bool = setting(False, cli=False)
    same_vocabulary: bool = setting(
        False, "Token ids mean the same in both models, though control tokens have other names."
    )
    prompt_cache: int = setting(0, cli=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(1 <= self.n_ctx < 1 << 31, f"n_ctx is {self.n_ctx}; expected at least 1 token, and less than 2^31")
        _require(self.slots >= 1, f"slots is {self.slots}; expected at least 1 sequence")
        _require(
            0 <= self.n_threads <= MOST_THREADS,
            f"n_threads is {self.n_threads}; expected 0 (one a core) or more, at most {MOST_THREADS}",
        )
        _require(self.prompt_cache >= 0, f"prompt_cache is {self.prompt_cache}; expected 0 (none) or more bytes")
        _require(self.shortlist >= 0, f"shortlist is {self.shortlist}; expected 0 or more candidates")
        most = self.max_candidates
        _require(most is None or most >= 1, f"max_candidates is {most}; expected at least 1")
        for name in (self.type_k, self.type_v):
            _require(name in KV_FORMATS, f"unknown KV cache type {name!r}; expected one of {', '.join(KV_FORMATS)}")
        _require(
            self.flash_attention in FLASH_ATTENTION,
            f"unknown flash attention setting {self.flash_attention!r}; expected one of {', '.join(FLASH_ATTENTION)}",
        )

    @property
    def candidates(self) -> int:
        return self.max_candidates or DEFAULT_CANDIDATES

    @property
    def head_candidates(self) -> int:
        return self.max_candidates or DEFAULT_HEAD_CANDIDATES

    @classmethod
    def of(cls, setup: Setup | None = None, **changes: Any) -> Setup:
        """`setup`, or the defaults, with `changes`. Raises ConfigError for a field that does not exist, too."""
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in changes if name not in known]:
            raise ConfigError(f"a set-up has no field {unknown[0]!r}; expected one of {', '.join(known)}")
        return replace(setup or cls(), **changes)


def _json_or_text(value: str) -> Any:
    try:
        return parse_json(value)
    except ValueError:
        return value


PRESETS: dict[str, dict[str, Any]] = {
    # SIA (arXiv 2602.21215): ten candidates, top-k entropy above one nat, no penalties.
    "paper": {"k": 10, "gate": "entropy", "threshold": 1.0, "entropy": "topk", "beta": 1.0},
    # ARGS (arXiv 2402.01694): every token, greedy on logit + w * reward.
    "args": {"k": 10, "gate": "dense", "beta": 1.5, "sampling": {"temperature": 0.0}},
    # Reward-Augmented Decoding (arXiv 2310.09520): every token, top 20, rewards in [0, 1] times 30.
    "rad": {"k": 20, "gate": "dense", "beta": 30.0, "clip": (0.0, 1.0)},
    # Value Augmented Sampling (arXiv 2405.06639): centred values, the tail of the vocabulary kept.
    "vas": {"k": 20, "gate": "dense", "beta": 1.0, "center": True, "tail": True},
    # Controlled Decoding (arXiv 2310.17022), token-wise: every token, prefix scorer on the top k.
    "cd": {"k": 20, "gate": "dense", "beta": 1.0},
}
