"""Trajectories sampled by OpenAI-compatible servers: vLLM, SGLang, llama-server, `sia-local serve`, and others.

The base GGUF is still what they are made for: its vocabulary reads the prompts and checks the ids, and what the server
samples is compared with it afterwards (`gap`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sia_local.config import setting
from sia_local.errors import ConfigError, ContextFullError, DataError
from sia_local.workers import silent

from ..settings import Machine, check_choice
from .rollouts import Rendering, RolloutConfig, Wanted, collect, settings
from .trajectories import Shard, Trajectory

if TYPE_CHECKING:
    from sia_local.endpoint import Endpoint
    from sia_local.llama.model import Model
    from sia_local.records import Completion

    from .dialects import Answer, Dialect, Question
    from .gap import Heard

APIS = ("completions", "chat")
# Answers of which more than half may be unusable before the run is given up.
SOME = 8


@dataclass(frozen=True)
class ServerConfig:
    """Servers that sample in place of this machine."""

    url: tuple[str, ...] = setting(
        (),
        "Sample from this OpenAI-compatible server; several share the work.",
        multiple=True,
        metavar="URL",
        free="pace",
    )
    api: str = setting("completions", "With --url: what is asked; chat renders prompts at the server.", choices=APIS)
    served_model: str | None = setting(None, "With --url: the model's name there.", show="the first it lists")
    concurrency: int = setting(16, "With --url: requests open at each server.", free="pace")
    timeout: float = setting(600.0, "With --url: seconds without a word from a server.", free="pace")
    tries: int = setting(6, "With --url: times that a request is sent before a server is given up.", free="pace")
    compare: int = setting(
        32, "With --url: texts whose log-probabilities are compared with the base GGUF; 0: none.", free="pace"
    )

    def __post_init__(self) -> None:
        check_choice("api", self.api, APIS)
        if min(self.concurrency, self.tries) < 1 or self.timeout <= 0 or self.compare < 0:
            raise ConfigError("concurrency, tries and timeout must be positive, and compare at least 0")


def sample_served(
    prompts: list[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str],
    config: RolloutConfig,
    servers: ServerConfig,
    key: str | None = None,
    machine: Machine | None = None,
    shard: Shard | None = None,
    echo: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> int:
    """Like rollouts.sample(), by `servers`; how many trajectories are new.

    Ids are those the server names (vLLM, llama-server, sia-local serve) or, elsewhere, those of its text tokenized
    anew: a text whose ids do not spell it, or which has another number of them than the server counted, is left out and
    counted. A request that fails is sent again, and goes to another server when its own is given up. Raises
    EndpointError when no server is left, DataError when most texts are unusable.
    """
    from sia_local.endpoint import Endpoint
    from sia_local.llama.model import Model
    from sia_local.llama.templates import find_template

    from .dialects import dialect_of
    from .gap import gap

    chat = servers.api == "chat"
    if chat and (config.chat_template or config.template_arg):
        raise ConfigError(
            "a chat template, or what it is told, was given with --api chat, where the server renders the prompts; use "
            "--api completions, or tell the server"
        )
    with Model(base, vocab_only=True) as model:
        model.template = find_template(config.chat_template) if config.chat_template is not None else None
        if chat and (config.raw or model.chat_template is None):
            why = "--raw was given" if config.raw else f"{model.path.name} has no chat template"
            raise ConfigError(
                f"{why}, so prompts are plain text to continue, but with --api chat the server renders them; use --api "
                "completions"
            )
        ends = [
            Endpoint(url.rstrip("/").removesuffix("/v1"), key, servers.timeout, servers.tries) for url in servers.url
        ]
        dialects = [dialect_of(end, config, chat, servers.served_model) for end in ends]
        names = {dialect.model for dialect in dialects}
        if len(names) > 1:
            raise ConfigError(
                f"the servers have different models, {', '.join(sorted(names))}: name one, --served-model"
            )
        echo(
            f"sampled by {dialects[0].model} at {', '.join(servers.url)}; what is steered is {os.path.basename(base)}, "
            "so serve that very quantization where the engine can"
        )
        writer = Served(model, config, list(zip(ends, dialects, strict=True)), servers)
        decisive = {**settings(config, base), "served": dialects[0].model, "api": servers.api}
        new = collect(prompts, out, decisive, config, lambda: writer, shard, together=len(ends) * servers.concurrency)
    writer.tell(echo)
    if writer.heard:
        echo(gap(writer.heard, base, config, machine or Machine()).line())
    return new


@dataclass
class Served:
    """A worker whose work is done by servers; `heard` keeps the first texts for the comparison."""

    model: Model
    config: RolloutConfig
    servers: list[tuple[Endpoint, Dialect]]
    asked: ServerConfig
    heard: list[Heard] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)  # why texts are unusable -> how many
    good: int = 0

    def close(self) -> None: ...

    def run(
        self, items: Iterable[Wanted], tick: Callable[[], None] = silent
    ) -> Iterator[tuple[int, Trajectory | ContextFullError]]:
        from sia_local.generation.prompting import read_prompt

        from .crowd import Crowd
        from .dialects import Question
        from .gap import Heard

        rendering = Rendering(self.model, self.config)
        # Servers add it where the tokenizer does; elsewhere the template's is the only one.
        bos = self.model.token_text(self.model.bos) if self.model.adds_bos else ""
        questions: dict[int, Question] = {}
        too_long: list[tuple[int, ContextFullError]] = []

        def asked() -> Iterator[tuple[int, Question]]:
            read: dict[str, tuple[int, ...]] = {}
            for number, one in enumerate(items):
                try:
                    if one.prompt not in read:
                        told = self.config.template_args
                        made = read_prompt(self.model, self.config.n_ctx, one.prompt, self.config.raw, told)
                        read = {one.prompt: made.tokens}
                except ContextFullError as error:
                    too_long.append((number, error))
                    continue
                plain = rendering.rendered(one.prompt).removeprefix(bos)
                measured = number < self.asked.compare
                questions[number] = Question(one, read[one.prompt], plain, measured)
                yield number, questions[number]

        for number, answer in Crowd(self.servers, self.asked.concurrency).answers(asked()):
            question = questions.pop(number)
            text = self._completion(answer)
            if isinstance(text, str):
                self.lost[text] = self.lost.get(text, 0) + 1
                if (lost := sum(self.lost.values())) > SOME and lost > self.good:
                    raise DataError(f"{lost} of {lost + self.good} texts are unusable: {self._reasons()}")
                continue
            self.good += 1
            if question.measured and text.tokens:
                told = answer.logprobs if len(answer.logprobs or ()) >= len(text.tokens) else None
                self.heard.append(Heard(question.ids, tuple(text.tokens), told and told[: len(text.tokens)]))
            for _ in text.all_tokens:
                tick()
            yield number, rendering.trajectory(question.one, text)
        yield from too_long

    def _completion(self, answer: Answer) -> Completion | str:
        """The text with its ids, or why it cannot be used."""
        from sia_local.records import Completion

        model = self.model
        ids = list(model.tokenize(answer.text) if answer.ids is None else answer.ids)
        end = None
        if answer.ids is not None and answer.finish == "stop" and ids and model.is_eog(ids[-1]):
            end = ids.pop()
        if any(not 0 <= token < model.n_vocab for token in ids):
            return "with ids beyond the base's vocabulary"
        spelled = b"".join(map(model.piece, ids)).decode("utf-8", "replace")
        if answer.ids is None and answer.count is not None:
            counted = (len(ids), len(ids) + 1) if answer.finish == "stop" else (len(ids),)  # the end may count
            if answer.count not in counted:
                return "sampled as other tokens than the text is read as"
        if _plain(spelled) != _plain(answer.text) or (answer.ids is None and "\ufffd" in answer.text):
            return "whose ids do not spell the text"
        finish = "eog" if answer.finish == "stop" else "length"
        return Completion(text=spelled, tokens=ids, end=end, finish=finish)

    def _reasons(self) -> str:
        return "; ".join(f"{count} {why}" for why, count in self.lost.items())

    def tell(self, echo: Callable[[str], None]) -> None:
        """What was left out."""
        if self.lost:
            lost = sum(self.lost.values())
            echo(f"left out {lost} of {lost + self.good} texts: {self._reasons()}")


def _plain(text: str) -> str:
    """Without what servers trim: white space at the ends, the beginning of a character that was cut."""
    return text.rstrip("\ufffd").strip()
