"""Calibration finds what it says, twice the same; profiles refuse what they do not know and yield to options."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tables import GOOD, VALUES, TableSIA

from sia_local.cli import main
from sia_local.cli.resolve import config_from
from sia_local.config import SamplingConfig, SiaConfig
from sia_local.errors import ConfigError, DataError, NumericError
from sia_local.evaluation.arms import Arm
from sia_local.evaluation.calibrate import RATES, calibrate
from sia_local.evaluation.plan import Plan, Task
from sia_local.evaluation.profile import Profile, find_profile
from sia_local.evaluation.run import evaluate
from sia_local.evaluation.samples import Sample, SampleFile
from sia_local.prompts import PromptItem
from sia_local.records import Request

PROMPTS = [PromptItem(str(i), "x" * i) for i in range(1, 41)]


def task(**over: Any) -> Task:
    return Task(prompts=PROMPTS, request=Request("", SiaConfig(k=5), max_tokens=12), **{"rate": 0.6, **over})


def run(what: Task, values: np.ndarray = VALUES, reward: Any = None) -> Profile:
    return calibrate(TableSIA(values), what, reward)


def texts_of(folder: Path, arm: Arm) -> list[Sample]:
    """The texts that `eval` makes of an arm."""
    store = SampleFile(folder / "s.jsonl", {}, fresh=True)
    plan = Plan(PROMPTS, [arm], Request("", SiaConfig(k=5), max_tokens=12))
    assert not evaluate(plan, lambda source: TableSIA(), store, GOOD).failed
    return store.of_arm(arm.key)


def test_threshold_spread_and_kl_are_what_an_evaluation_finds(tmp_path: Path) -> None:
    profile = run(task(kl_per_token=0.08))
    entropies = [h for s in texts_of(tmp_path, Arm("off")) for h in s.entropies or ()]
    for rate in RATES:
        assert profile.thresholds[rate] == pytest.approx(np.quantile(entropies, 1 - rate), abs=1e-3)
    assert profile.steering["threshold"] == profile.thresholds[0.6]
    # Every junction weighs the same five words, with the values 1, -1, 0, 0, 0.
    assert profile.measured["spread"] == pytest.approx((2 / 5) ** 0.5, rel=1e-5)
    texts = texts_of(tmp_path, Arm("profile", config=SiaConfig(**profile.steering)))
    steps = sum(s.steps for s in texts)
    spent = sum(s.kl_steering for s in texts) / steps
    assert spent == pytest.approx(0.08, rel=0.03) and spent == pytest.approx(profile.measured["kl_per_token"], rel=1e-4)
    assert sum(s.junctions for s in texts) / steps == pytest.approx(profile.measured["rate"], rel=1e-4)
    assert profile.chose is not None and "0.08 nats a token were wanted" in profile.chose


def test_the_gate_on_gain_is_calibrated_as_it_will_be_used(tmp_path: Path) -> None:
    profile = run(task(kl_per_token=0.08, by="gain"))
    assert (profile.steering["gate"], profile.steering["rate"]) == ("gain", 0.6)
    assert "threshold" not in profile.steering and "where it changes most" in str(profile.chose)
    texts = texts_of(tmp_path, Arm("profile", config=SiaConfig(**profile.steering)))
    spent = sum(s.kl_steering for s in texts) / sum(s.steps for s in texts)
    assert spent == pytest.approx(0.08, rel=0.03)
    with pytest.raises(ConfigError, match="expected one of entropy, gain"):
        task(by="dense")


def test_a_dearer_nat_gives_a_smaller_beta() -> None:
    dear, cheap = (run(task(reward_per_kl=price), reward=GOOD) for price in (1.0, 0.1))
    assert 0 < dear.steering["beta"] < cheap.steering["beta"]
    assert dear.measured["reward_off"] < dear.measured["reward"] < cheap.measured["reward"]
    for at, price in ((dear, 1.0), (cheap, 0.1)):
        gained = at.measured["reward"] - at.measured["reward_off"]
        assert gained / at.measured["kl_per_text"] > price  # the last nat bought the price, those before it more


def test_goals_out_of_reach_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"steering 60 % of the tokens spends at most 0\.\d+ nats a token"):
        run(task(kl_per_token=9.0))
    with pytest.raises(ConfigError, match="no strength of steering buys 50 of good"):
        run(task(reward_per_kl=50.0), reward=GOOD)
    with pytest.raises(ConfigError, match="give one with --reward"):
        run(task(reward_per_kl=1.0))
    with pytest.raises(NumericError, match="do not differ at"):
        run(task(), values=np.ones(5))
    for over, said in (({"rate": 1.0}, "rate is 1.0"), ({"kl_per_token": 0.0}, "expected a number above 0")):
        with pytest.raises(ConfigError, match=said):
            task(**over)
    with pytest.raises(ConfigError, match="give one of them"):
        task(kl_per_token=0.1, reward_per_kl=0.1)


def test_a_profile_survives_its_file_and_gives_the_same_bytes(tmp_path: Path) -> None:
    config = SiaConfig(k=5, clip=(-0.5, 0.5), center=True, sampling=SamplingConfig(temperature=0.7))
    made = calibrate(TableSIA(), Task(prompts=PROMPTS, request=Request("", config, max_tokens=12), rate=0.6), GOOD)
    made.write(tmp_path / "a.profile.toml")
    read = Profile.read(tmp_path / "a.profile.toml")
    assert read == made
    used = SiaConfig(**{**read.config_fields(), "sampling": SamplingConfig(**read.sampling)})
    assert used.clip == (-0.5, 0.5) and used.center and used.sampling.temperature == 0.7 and used.gate == "entropy"
    again = calibrate(TableSIA(), Task(prompts=PROMPTS, request=Request("", config, max_tokens=12), rate=0.6), GOOD)
    again.write(tmp_path / "b.profile.toml")
    assert (tmp_path / "b.profile.toml").read_bytes() == (tmp_path / "a.profile.toml").read_bytes()


@pytest.mark.parametrize("by", ["entropy", "gain"])
def test_a_profile_holds_every_setting_that_it_was_measured_with(tmp_path: Path, by: str) -> None:
    others: dict[str, Any] = {
        "k": 5, "entropy": "full", "first_n": 7, "ratio": 1.25, "varentropy_threshold": 1.5, "center": True,
        "clip": (-0.5, 0.5), "tail": True, "kl_per_token": 0.5, "kl_total": 9.0, "min_share": 0.01, "row_group": 2,
        "steer": "answer",
    }  # fmt: skip
    calibrated = {"gate", "threshold", "rate", "gain_threshold", "beta", "beta_unit"}
    assert {*others, *calibrated, "sampling"} == {f.name for f in fields(SiaConfig)}
    config = SiaConfig(**others, sampling=SamplingConfig(temperature=0.9))
    request = Request("", config, max_tokens=12)
    calibrate(TableSIA(), Task(prompts=PROMPTS, request=request, rate=0.6, by=by)).write(tmp_path / "a.profile.toml")
    read = Profile.read(tmp_path / "a.profile.toml")
    used = SiaConfig(**{**read.config_fields(), "sampling": SamplingConfig(**read.sampling)})
    assert used == replace(config, **{name: getattr(used, name) for name in calibrated})
    assert (used.gate, used.rate, used.beta_unit) == (by, 0.6, "raw")


def test_thresholds_between_the_measured_rates() -> None:
    profile = Profile(thresholds={0.2: 2.0, 0.4: 1.0})
    assert [profile.threshold_for(r) for r in (0.1, 0.2, 0.25, 0.4, 0.9)] == [2.0, 2.0, pytest.approx(1.75), 1.0, 1.0]
    assert Profile().threshold_for(0.2) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beta = 2", "unknown key 'beta'; expected some of version, model, value"),
        ("[steering]\nbetta = 2", "unknown key 'betta' in [steering]; expected some of k, gate"),
        ("[measured]\nmood = 2", "unknown key 'mood' in [measured]"),
        ("[steering]\nbeta = 'big'", "beta in [steering] is 'big'; expected a number"),
        ("[steering]\nk = true", "k in [steering] is True; expected a whole number"),
        ("[steering]\nclip = [1]", "clip in [steering] is [1]; expected two numbers"),
        ("[steering]\nrate = 3", "rate is 3.0; expected a share from 0 to 1"),
        ("[sampling]\ntemperature = -1", "temperature is -1.0; expected 0"),
        ("[thresholds]\nhalf = 1", "[thresholds] is {'half': 1}; expected lines such as \"0.2\" = 1.3"),
        ("steering = 3", "steering is 3; expected a table [steering]"),
        ("version = 2", "is a profile of version 2; expected 1"),
        ("beta", "is not TOML"),
    ],
)
def test_what_no_profile_holds_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        Profile.read(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_options_win_over_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.profile.toml").write_text(
        'model = "b.gguf"\nvalue = "v.gguf"\n'
        '[steering]\ngate = "entropy"\nthreshold = 1.7\nk = 6\nbeta = 3.0\nbeta_unit = "spread"\n'
        '[sampling]\ntemperature = 0.5\n[thresholds]\n"0.1" = 2.0\n"0.3" = 1.0\n'
    )

    def config(model: str = "b.gguf", **options: Any) -> SiaConfig:
        return config_from({"model": str(tmp_path / model), "profile": "mine", **options})

    plain = config()
    assert (plain.gate, plain.threshold, plain.k, plain.beta, plain.beta_unit) == ("entropy", 1.7, 6, 3.0, "spread")
    assert plain.sampling.temperature == 0.5
    changed = config(k=4, temperature=0.0, beta=2.0)
    assert (changed.k, changed.sampling.temperature, changed.beta, changed.threshold) == (4, 0.0, 2.0, 1.7)
    assert changed.beta_unit == "spread"  # as /beta in a chat
    by_rate = config(rate=0.2)
    assert (by_rate.gate, by_rate.rate, by_rate.threshold) == ("rate", 0.2, pytest.approx(1.5))
    assert config(rate=0.2, threshold=0.4).threshold == 0.4
    assert config(preset="paper").threshold == 1.0 and config(preset="paper").sampling.temperature == 0.5
    with pytest.raises(ConfigError, match="--beta-unit was given without --beta"):
        config(beta_unit="raw")
    assert "made for" not in capsys.readouterr().err
    config("other.gguf")
    assert "was made for b.gguf, not for other.gguf" in capsys.readouterr().err
    config(value=("kind=v.gguf:0.5",))
    assert "made for" not in capsys.readouterr().err
    config(value=("w.gguf",))
    assert "was made for v.gguf, not for w.gguf" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"no profile 'yours'.*there is mine"):
        find_profile("yours", [tmp_path])


def cli(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def test_one_command_writes_a_profile_that_the_others_take(
    base_gguf: Path, value_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("hello\na dog\nthe king\nnight\n")
    value = tmp_path / "v.gguf"
    value.symlink_to(value_gguf)
    models = ["-m", base_gguf, "-v", value, "--threads", 1, "--prompts", "prompts.txt", "-n", 10]
    made = cli("calibrate", *models, "--rate", 0.3, "--kl-per-token", 0.1, "--temp", 0.8)
    assert made.exit_code == 0, made.output
    assert (
        made.stdout.startswith("At 30 % of the tokens (entropy of ")
        and "use it as in `sia-local chat --profile v`" in made.stderr
    )
    first = (tmp_path / "v.profile.toml").read_bytes()
    assert cli("calibrate", *models, "--rate", 0.3, "--kl-per-token", 0.1, "--temp", 0.8, "-o", "w").exit_code == 0
    assert (tmp_path / "w.profile.toml").read_bytes() == first
    profile = Profile.read(tmp_path / "v.profile.toml")
    few = ["-p", "hi", "-n", 4, "--threads", 1, "--json"]
    config = json.loads(cli("generate", "-m", base_gguf, "-v", value, "--profile", "v", *few).stdout)["config"]
    assert config["beta"] == profile.steering["beta"] and config["sampling"]["temperature"] == 0.8
    assert config["threshold"] == profile.steering["threshold"] == profile.thresholds[0.3]
    arms = cli("eval", *models, "--profile", "v", "--arms", "off", "--reward", "polarity", "--judge", "none")
    assert arms.exit_code == 0 and "| profile | – |" in arms.stdout, arms.output
    refused = cli("calibrate", *models, "--reward-per-kl", 0.1)
    assert refused.exit_code == 2 and "--reward-per-kl was given without --reward" in refused.stderr
    refused = cli("calibrate", "-m", base_gguf, "--prompts", "prompts.txt")
    assert refused.exit_code == 2 and "no value model was given" in refused.stderr
