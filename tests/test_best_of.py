"""Best-of-N: contenders are the texts of their seeds, the prompt is encoded once, scores by independent forwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from loading import EXACT, source
from tables import Values

from sia_local import SIA, SiaConfig
from sia_local.cli import main
from sia_local.errors import ConfigError
from sia_local.generation.best_of import BestOf, best_of, slots_for
from sia_local.generation.writing import Run
from sia_local.records import Prompt, Step
from sia_local.rewards.load import FunctionReward
from sia_local.values.model import ValueModel
from sia_local.values.sources import MixedValues, text_value

CONFIG = SiaConfig(threshold=1.2, beta=2.0)
Make = Callable[..., Path]


def test_contenders_are_the_texts_of_their_seeds_and_the_prompt_is_encoded_once(
    base_gguf: Path, value_gguf: Path
) -> None:
    prompt = "a long prompt that all of them share " * 2
    with SIA.load(base_gguf, value_gguf, slots=4, setup=EXACT) as sia:
        result = best_of(sia, prompt, CONFIG, n=4, max_tokens=9, seed=5)
        length = len(sia.prompt(prompt).tokens)
        assert sia.engine.decoded_tokens <= length + 4 * 9
        assert source(sia, ValueModel).engine.decoded_tokens < 2 * length + 4 * 9 * 12
        spent = sum(step.kl_steering for c in result.contenders for step in c.steps)
        assert result.kl_steering == pytest.approx(spent / 4) and spent > 0
        assert result.by == "value" and result.winner is result.contenders[int(np.argmax(result.scores))]
        assert result.contenders[0].seed == 5 and len({c.seed for c in result.contenders}) == 4
    with SIA.load(base_gguf, value_gguf, setup=EXACT) as sia:
        for contender in result.contenders:
            steps = list(sia.generate(prompt, CONFIG, max_tokens=9, seed=contender.seed))
            assert contender.text == "".join(s.text for s in steps)
            # V after the last token, scored as a junction's candidate on a context that read all before it.
            tokens = [s.token for s in steps]
            made = sia.prompt(prompt)
            value = source(sia, ValueModel)
            value.engine.release(0)
            value.begin(0, made)
            for token in tokens[:-1]:
                value.accept(0, token)
            (values,) = value.score([(0, np.array([tokens[-1], 9], np.int32))])
            assert contender.score == pytest.approx(values[0], abs=1e-4)


def test_fewer_slots_than_texts_change_nothing(base_gguf: Path, value_gguf: Path) -> None:
    runs = []
    for slots in (2, 5):
        with SIA.load(base_gguf, value_gguf, slots=slots, setup=EXACT) as sia:
            result = best_of(sia, "hello", CONFIG, n=5, max_tokens=7)
            runs.append(([c.text for c in result.contenders], result.scores))
    assert runs[0][0] == runs[1][0] and runs[0][1] == pytest.approx(runs[1][1], abs=1e-4)


def test_likelihood_is_the_mean_log_probability_under_the_unsteered_base(base_gguf: Path, value_gguf: Path) -> None:
    with SIA.load(base_gguf, value_gguf, slots=3, setup=EXACT) as sia:
        result = best_of(sia, "hello", CONFIG, n=3, by="likelihood", max_tokens=6, seed=1)
        for contender in result.contenders:
            prefix, logprobs = list(sia.prompt("hello").tokens), []
            for step in contender.steps:
                sia.engine.release(0)
                sia.engine.begin(0, prefix)
                row = sia.engine.logits([0])[0].astype(float)
                logprobs.append(row[step.token] - row.max() - np.log(np.exp(row - row.max()).sum()))
                prefix.append(step.token)
            assert contender.score == pytest.approx(np.mean(logprobs), abs=1e-4)
        assert result.scores[result.best] == max(result.scores)


def test_a_reward_sees_prompt_and_texts_and_decides(base_gguf: Path) -> None:
    seen: list[tuple[Sequence[str], Sequence[str]]] = []

    def second(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        seen.append((prompts, responses))
        return [0.0, 2.0, 2.0]

    with SIA.load(base_gguf, slots=3, setup=EXACT) as sia:
        best = BestOf(sia, 3, reward=FunctionReward("second", second))
        made = best.generate("hello", max_tokens=5, trace=True)
        steps, result = list(made), made.result
        assert result is not None and result.best == 1 and made.text == result.winner.text
        assert steps == list(result.contenders[1].steps) and steps[0].candidates is not None
        assert seen == [(["hello"] * 3, [c.text for c in result.contenders])]
        assert made.stats.tokens == 15
        assert result.kl == pytest.approx(made.stats.kl / 3)
        assert result.kl_bound == pytest.approx(np.log(3) - 2 / 3)


def test_the_value_of_a_text_is_what_its_loss_fixed() -> None:
    """The last value; the mean under the trajectory-mean loss; a mixture adds each in its own sense."""

    class Trained(Values):
        def __init__(self, loss: str, spread: float):
            super().__init__(np.zeros(4))
            self.name, self.spread = loss, spread
            self.file = SimpleNamespace(about={"sia.train.loss": loss})

        def trajectory(self, slot: int, prompt: Prompt, tokens: Sequence[int]) -> np.ndarray:
            return np.array([1.0, 2.0, 6.0])

    token, mean = Trained("per-token", 2.0), Trained("trajectory-mean", 0.5)
    where = (0, Prompt((1,)), [1, 2, 3])
    assert text_value(token, *where) == 6.0
    assert text_value(mean, *where) == 3.0
    assert text_value(MixedValues([token, mean], [1.0, -1.0]), *where) == 6 / 2 - 3 / 0.5


def stopping_after(n: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Stands for terminal.interruptible: Ctrl-C comes with the n-th token that any of the texts hands over."""

    @contextmanager
    def pressed(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
        made, following = iter(range(1, 1000)), Run.__next__

        def counted(run: Run) -> Step:
            step = following(run)
            if next(made) >= n:
                stop()
            return step

        with monkeypatch.context() as patch:
            patch.setattr(Run, "__next__", counted)
            yield lambda: True

    return pressed


def test_an_interrupt_takes_the_best_so_far(base_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SIA.load(base_gguf, slots=3, setup=EXACT) as sia:
        made = BestOf(sia, 3).generate("hello", max_tokens=50)
        with stopping_after(5, monkeypatch)(made.stop):
            list(made)
        assert made.result is not None and [c.completion.steps for c in made.result.contenders] == [2, 2, 1]


def test_refusals_and_limits(base_gguf: Path) -> None:
    with SIA.load(base_gguf, setup=EXACT) as sia:
        with pytest.raises(ConfigError, match="no value model is loaded"):
            best_of(sia, "hello", n=2, by="value")
        with pytest.raises(ConfigError, match="no reward is named"):
            best_of(sia, "hello", n=2, by="reward")
        with pytest.raises(ConfigError, match="chosen by 'taste'; expected one of value, reward, likelihood"):
            best_of(sia, "hello", n=2, by="taste")
        with pytest.raises(ConfigError, match="best of 0 texts"):
            best_of(sia, "hello", n=0)
    assert slots_for(8, 10) == 8 and slots_for(100, 10) == 23


FEW = ("-n", "6", "--seed", "7", "--threads", "1", "-p", "hello")


def run(*args: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args], input=input)


def test_generate_prints_the_winner_and_reports_all(base_gguf: Path, value_gguf: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    result = run(
        "generate", "-m", base_gguf, "-v", value_gguf, *FEW, "--best-of", 3, "--json", "--trace", trace, "--kl-total", 2
    )
    assert result.exit_code == 0, result.stderr
    whole = json.loads(result.stdout)
    said = whole["best_of"]
    assert said["n"] == 3 and said["by"] == "value" and said["seeds"][0] == 7
    assert whole["text"] == said["texts"][said["winner"]] and said["scores"][said["winner"]] == max(said["scores"])
    assert said["kl_choosing_bound"] == pytest.approx(np.log(3) - 2 / 3)
    assert whole["stats"]["tokens"] == 18 and said["kl"] == pytest.approx(whole["stats"]["kl"] / 3)
    assert 0 < whole["kl_budget"]["total"]["spent"] <= whole["kl_budget"]["total"]["allowed"] == 2
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert "".join(r["text"] for r in records) == whole["text"]
    for part in ("3 texts · 18 tokens", "nats a text", "best of 3 by value", "choosing adds at most 0.43 nats of KL"):
        assert part in result.stderr


def test_ctrl_c_prints_the_best_so_far_whole(base_gguf: Path, monkeypatch: pytest.MonkeyPatch, make_gguf: Make) -> None:
    monkeypatch.setattr("sia_local.cli.terminal.interruptible", stopping_after(11, monkeypatch))
    base = make_gguf("base", ascii=True)
    options = ("-n", 50, "--seed", 7, "--threads", 1, "--ctx", 128, "--best-of", 3)
    result = run("generate", "-m", base, *options, "-p", "hello", "--json")
    whole = json.loads(result.stdout)
    assert result.exit_code == 130 and len(whole["tokens"]) in (3, 4) and whole["stats"]["tokens"] == 12
    told = run("chat", "-m", base, *options, input="hello\n")
    assert told.exit_code == 0 and "[stopped]" in told.stderr and told.stdout == whole["text"] + "\n"


def test_generate_without_a_value_model_chooses_by_likelihood(base_gguf: Path, tmp_path: Path) -> None:
    whole = json.loads(run("generate", "-m", base_gguf, *FEW, "--best-of", 2, "--json").stdout)
    assert whole["best_of"]["by"] == "likelihood"
    for options, part in (
        (["--best-of", 2, "--best-of-by", "value"], "no value model is loaded"),
        (["--best-of", 2, "--best-of-by", "reward"], "no reward is named"),
        (["--best-of", 2, "--reward", "bogus"], "reward 'bogus' is not known"),
        (["--best-of-by", "value"], "without --best-of"),
    ):
        refused = run("generate", "-m", base_gguf, *FEW, *options)
        assert refused.exit_code == 2 and part in refused.stderr and refused.stdout == ""


def test_a_chat_answers_with_the_best_of_several(base_gguf: Path, value_gguf: Path) -> None:
    options = ("-n", 6, "--seed", 7, "--threads", 1, "--ctx", 128, "--best-of", 3)
    told = run("chat", "-m", base_gguf, "-v", value_gguf, *options, input="hello\n/stats\nagain\n")
    assert told.exit_code == 0 and "18 tokens" in told.stdout and "Error" not in told.stderr
