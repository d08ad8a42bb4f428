from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sia_local.errors import ConfigError, DataError, ModelFileError, NumericError
from sia_local.rewards.judge import PolarityJudge, features
from sia_local.rewards.load import FunctionReward, Reward, check_rewards, load_reward

SHIPPED = Path(__file__).parent.parent / "models" / "polarity-judge.npz"


def test_vader_is_the_compound_of_the_response() -> None:
    pytest.importorskip("vaderSentiment")
    reward = load_reward("vader")
    assert reward.name == "vader"
    assert isinstance(reward, Reward)
    assert reward(["terrible", ""], ["I love this.", "I hate this."]) == [0.6369, -0.5719]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match=r"sia-local\[rewards\]"):
        load_reward("vader")


def test_function_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def words(prompts, responses):\n    return [len(r.split()) for r in responses]\n"
    (tmp_path / "my_reward_fn.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert load_reward("my_reward_fn:words")(["p", "p"], ["a b", "c"]) == [2.0, 1.0]
    assert sys.path == path
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        load_reward("my_reward_fn:nothing")
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_reward("no_such_module_here:f")


@pytest.mark.parametrize("spec", ["joy", "", ":f", "vader2"])
def test_unknown_reward_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(ConfigError, match="expected vader, plain, common, refusal, polarity, data"):
        load_reward(spec)


def test_entry_point_gets_the_rest_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("size", "tests_reward_loader:load", "sia_local.rewards")

    def load(arg: str) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
        return lambda prompts, responses: [float(len(arg))] * len(responses)

    module = ModuleType("tests_reward_loader")
    monkeypatch.setattr(module, "load", load, raising=False)
    monkeypatch.setitem(sys.modules, "tests_reward_loader", module)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    reward = load_reward("size:a/b:c")
    assert (reward.name, reward(["p"], ["r"])) == ("size:a/b:c", [5.0])


def test_bad_returns_are_named() -> None:
    with pytest.raises(NumericError, match="nan for response 1"):
        check_rewards([1.0, float("nan")], 2, "r")
    with pytest.raises(DataError, match="1 values for 2 responses"):
        check_rewards([1.0], 2, "r")
    with pytest.raises(DataError, match="not a list of numbers"):
        check_rewards(["high"], 1, "r")
    with pytest.raises(ConfigError, match="2 prompts and 1 responses"):
        FunctionReward("r", lambda p, r: [0.0])(["a", "b"], ["c"])


def _no_knights(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1.0 / (1 - response.count("knight")) for response in responses]


def test_a_function_that_raises_is_a_sentence_with_its_name_and_the_text() -> None:
    reward = FunctionReward("mine:f", _no_knights)
    with pytest.raises(DataError) as caught:
        reward(["Tell me."] * 3, ["a king", "a knight " + "rode on " * 20, "a day"])
    assert str(caught.value) == (
        "reward 'mine:f' failed on the response 'a knight rode on rode on rode on rode on rode on rode on rod…' to "
        "'Tell me.': ZeroDivisionError: float division by zero; mend the function, or see where with --debug"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def only_together(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if len(responses) > 1:
            raise ValueError("no")
        return [0.0]

    with pytest.raises(DataError, match="failed on a batch of 2: ValueError: no; mend"):
        FunctionReward("f", only_together)(["a", "b"], ["c", "d"])


def test_features_are_words_and_pairs() -> None:
    assert features("Don\u2019t stop, now!") == {
        "don't", "stop", "now", "!", "don't stop", "stop now", "now !",
    }  # fmt: skip


def test_judge_score_and_round_trip(tmp_path: Path) -> None:
    vocabulary = {"bad": 0, "good": 1, "good day": 2}
    judge = PolarityJudge(vocabulary, np.array([-2, 1, 3], np.float32), 0.5, 0.25, 2.0, 0.7, 0.8, "x")
    assert judge.logit("a good day") == pytest.approx(0.5 + 4 / 2**0.5, abs=1e-6)
    assert judge.logit("nothing known") == 0.5
    assert judge([""], ["bad, bad"]) == [pytest.approx(np.tanh((0.5 - 2 - 0.25) / 4), abs=1e-6)]
    judge.save(tmp_path / "j.npz")
    again = PolarityJudge.load(tmp_path / "j.npz")
    assert again([""], ["a good day"]) == judge([""], ["a good day"])
    assert (again.accuracy, again.accuracy_reviews, again.about) == (0.7, 0.8, "x")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ModelFileError, match="not a judge"):
        load_reward(f"polarity:{tmp_path / 'bad.npz'}")
    with pytest.raises(ModelFileError, match="does not exist"):
        PolarityJudge.load(tmp_path / "none.npz")


def test_shipped_judge_hears_the_tone_and_does_not_saturate() -> None:
    judge = load_reward("polarity")
    glad = "She hugged her warm and wonderful friend, and it was a delightful day full of fun and love."
    sad = "He was alone in a cold and dull house. The bad king had lied, and nothing was left but fear."
    high, low = judge(["", ""], [glad, sad])
    assert -0.99 < low < -0.3 < 0.3 < high < 0.99
    assert SHIPPED.stat().st_size < 1_000_000


def test_no_heavy_import() -> None:
    load = "from sia_local.rewards.load import load_reward; load_reward('polarity')"
    code = f"import sys; {load}; print({{'torch', 'sklearn'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_refusal_is_one_of_the_published_phrases_in_its_spelling() -> None:
    reward = load_reward("refusal")
    texts = ["I’m sorry, but no.", "Sure, here it is.", "i cannot", "Well, I cannot.", "It is sorry work."]
    assert reward([""] * 5, texts) == [1.0, 0.0, 0.0, 1.0, 0.0]
