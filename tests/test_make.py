from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sia_local.errors import ConfigError, DataError, SiaError
from sia_local.evaluation.plan import Task
from sia_local.evaluation.profile import Profile
from sia_local.files import alone
from sia_local.learning.junctions import read_settings
from sia_local.llama.gguf import GgufMetadata
from sia_local.llama.keys import BASE_NAME, REWARD_NAME, VALUE_SPREAD
from sia_local.llama.model import Model
from sia_local.values.qhead_file import QHeadFile

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
from click.testing import CliRunner
from sia_convert.cli import main
from sia_convert.data.calibrate import calibrate_file
from sia_convert.data.rollouts import RolloutConfig
from sia_convert.data.trajectories import read_trajectories
from sia_convert.demo.corpus import COLLECTIONS
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.make import Chain, make
from sia_convert.plan import CalibrateSection
from sia_convert.reading import read_plan
from sia_convert.settings import Machine
from sia_convert.steps import State, Step, run_steps
from sia_convert.steps import preview as tell

PLAN = """
work = "work"
threads = 1

[base]
hf = "{base}"
out = "base.gguf"
dtype = "f32"
quantize = ["Q8_0"]

[rollouts]
prompts = "prompts.txt"
samples = 3
max_tokens = 10
n_ctx = 128

[reward]
source = "hf:./reward"

[value]
backbone = "{value}"
loss = "per-token"
lora = {{ r = 4, alpha = 8, dropout = 0.1 }}
epochs = 2
batch = 6
lr = 1e-3
bf16 = false

[export]
out = "value"
layout = "lean"
quantize = ["Q8_0"]

[verify]
limit = 6
per_trajectory = 4
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, make_hf: Callable[..., Path]) -> Path:
    """A plan whose value backbone is another, narrower model than its base, in a folder with all that it names."""
    folder = tmp_path_factory.mktemp("chain")
    tiny.tiny_reward(folder / "reward")
    words = ("sad", "old", "bad", "kind", "big", "lost")
    (folder / "prompts.txt").write_text("\n".join(f"the {word} king" for word in words))
    value = make_hf("qwen3", hidden_size=32, seed=4)
    (folder / "plan.toml").write_text(PLAN.format(base=make_hf(), value=value))
    return folder / "plan.toml"


def run(*paths: Path) -> list[str]:
    """Names of the steps that did something."""
    lines: list[str] = []
    make(*paths, echo=lines.append)
    return [line.removesuffix(" …") for line in lines if line.endswith(" …")]


@pytest.fixture(scope="module")
def first_run(plan: Path) -> list[str]:
    """The steps of the whole chain; from here on there is base.gguf in its folder."""
    return run(plan)


def test_chain_ends_in_a_verified_q8_0_and_reruns_only_what_changed(plan: Path, first_run: list[str]) -> None:
    everything = [
        "base to GGUF", "base to Q8_0", "rollouts", "score", "train", "unseen rollouts", "spread", "export",
        "value to Q8_0", "verify",
    ]  # fmt: skip
    assert first_run == everything
    with alone(plan.parent / "work"), pytest.raises(ConfigError, match="another process"):
        make(plan)
    run(plan)  # undoes what another test may have changed
    report = json.loads((plan.parent / "work/verify.json").read_text())
    assert [(row["kind"], row["type"], row["failures"]) for row in report["rows"]] == [
        ("lean", "F32", []), ("lean", "Q8_0", []),
    ]  # fmt: skip
    assert report["rows"][0]["max_abs"] < 1e-3 and report["rows"][0]["junctions"] >= 12
    training = json.loads((plan.parent / "work/value/training.json").read_text())
    assert training["config"]["reward_name"] == "hf:reward" and training["config"]["base_name"] == "base"
    assert (plan.parent / "value-Q8_0.gguf").is_file() and (plan.parent / "base.gguf").is_file()

    assert run(plan) == []
    change = plan.with_name("change.toml")
    change.write_text("[reward]\nname = 'kind'\n")
    told = []
    for again in ((plan, change), (plan,)):
        assert run(*again) == ["export", "value to Q8_0", "verify"]
        with GgufMetadata(plan.with_name("value-Q8_0.gguf")) as meta:
            told.append((meta.get(REWARD_NAME), meta.get(BASE_NAME), meta.get(VALUE_SPREAD)))
    assert [name for name, *_ in told] == ["kind", "hf:reward"] and told[0][1:] == told[1][1:] and told[0][2] > 0
    change.write_text("[verify]\nalso = ['Q4_0']\n")
    assert run(plan, change) == ["verify"]
    change.write_text("[verify]\nper_trajectory = 5\n")
    assert run(plan, change) == ["spread", "export", "value to Q8_0", "verify"]
    change.write_text("[value]\nlr = 2e-3\n[verify]\nper_trajectory = 5\n")
    assert run(plan, change) == ["train", "spread", "export", "value to Q8_0", "verify"]
    (plan.parent / "value-Q8_0.gguf").unlink()
    assert run(plan, change) == ["value to Q8_0"]
    few = "texts = 4\nmax_tokens = 6\nthreshold = 0.0\nk = 6\n[distill.fit]\nhidden = 4\nepochs = 2"
    change.write_text(f"[value]\nlr = 2e-3\n[verify]\nper_trajectory = 5\n[distill]\nout = 'q.gguf'\n{few}\n")
    assert run(plan, change) == ["distill"]
    distillation = QHeadFile.read(plan.parent / "q.gguf").meta.distillation
    assert distillation is not None and distillation.teacher == "value-Q8_0"
    junctions, texts = plan.parent / "work/junctions", change.read_text()
    for setting, collected in (("threshold = 0.0", 0.1), ("lr = 2e-3", None)):
        before = read_settings(junctions)
        number = "0.1" if collected else "1e-3"
        change.write_text(change.read_text().replace(setting, f"{setting.partition(' ')[0]} = {number}"))
        assert run(plan, change)[-1] == "distill"
        after = read_settings(junctions)
        assert {name for name in after if after[name] != before[name]} == {
            "threshold" if collected else "teacher_files"
        }
    change.write_text(texts)
    run(plan, change)
    prompts = (plan.parent / "prompts.txt").read_text().splitlines()[:3]
    plan.with_name("long.txt").write_text("\n".join([*prompts, "the sad king " * 60]))  # the last one is left out
    with change.open("a") as handle:
        handle.write(
            "[calibrate]\nprompts = 'long.txt'\nby = 'gain'\nrate = 0.5\nkl_per_token = 0.05\nlimit = 4\n"
            "max_tokens = 8\nk = 6\nslots = 2\n"
        )
    assert run(plan, change) == ["calibrate"]
    profile = Profile.read(plan.parent / "q.profile.toml")
    assert (profile.value, profile.steering["gate"], profile.steering["rate"]) == ("q.gguf", "gain", 0.5)
    assert profile.measured["prompts"] == 3
    assert profile.measured["kl_per_token"] == pytest.approx(0.05, rel=0.5) and "reward_off" in profile.measured


def preview(*paths: Path) -> list[str]:
    lines: list[str] = []
    make(*paths, echo=lines.append, dry_run=True)
    return lines


@pytest.mark.usefixtures("first_run")
def test_a_dry_run_tells_what_is_done_and_what_is_to_do(plan: Path) -> None:
    change = plan.with_name("dry.toml")
    change.write_text("work = 'dry'\n[base]\ngguf = 'base.gguf'\n")
    fresh = preview(plan, change)
    assert fresh[0] == "rollouts: to do" and fresh[-1] == "8 steps to go that never ran here" and len(fresh) == 9
    assert not (plan.parent / "dry").exists()
    lines: list[str] = []
    make(plan, change, echo=lines.append)
    made = [line.strip().split(",")[0] for line in lines[-2:]]
    assert made == [str(plan.parent / "base.gguf"), str(plan.parent / "value-Q8_0.gguf")]
    assert "everything made" in lines[-3]
    assert all(": done, in " in line for line in preview(plan, change))
    change.write_text(f"{change.read_text()}[value]\nlr = 3e-3\n")
    again = preview(plan, change)
    assert [line.split(":")[0] for line in again if ": to do, about " in line and "as last time" in line] == [
        "train", "spread", "export", "value to Q8_0", "verify",
    ]  # fmt: skip
    assert again[-1].startswith("about ") and again[-1].endswith(" to go")


def test_a_set_of_the_hub_is_fetched_once_and_what_it_held_decides(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, asked = [{"prompt": f"the {word} king"} for word in ("sad", "old", "bad", "kind")], list[Any]()

    def load(*names: str | None, **options: Any) -> Any:
        asked.append((*names, options["split"], options["revision"]))
        return iter(hub)

    monkeypatch.setitem(sys.modules, "datasets", None)
    text = PLAN.format(base=tiny_base.parent, value="x").replace("prompts.txt", "hub:owner/kings:test@v1")
    text = re.sub(r"\[base\].*?\n\n", f'[base]\ngguf = "{tiny_base}"\n\n', text, flags=re.DOTALL)
    path = tmp_path / "plan.toml"
    path.write_text(re.sub("backbone = .*", "", text).replace("samples = 3", "samples = 3\nlimit = 2"))
    (tmp_path / "reward").mkdir()
    with pytest.raises(ConfigError, match=r"hub:owner/kings:test@v1 needs the datasets library"):
        read_plan(path).check()
    datasets = SimpleNamespace(load_dataset=load, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    plan = read_plan(path)
    plan.check()
    steps = {step.name: step for step in Chain(plan).steps()}
    fetch, rollouts = steps["fetch hub:owner/kings:test@v1"], steps["rollouts"]
    state, keys = State.load(tmp_path / "make.json"), []
    for _ in range(2):  # the second finds it there
        run_steps([fetch], state, lambda _: None)
    keys.append(state.key(rollouts))
    assert asked == [("owner/kings", None, "test", "v1")]
    (file,) = fetch.outputs
    # As many as [verify] reads of it, who reads most.
    assert [json.loads(line) for line in file.read_text().splitlines()] == hub and file in steps[
        "unseen rollouts"
    ].inputs
    hub[0] = {"prompt": "the queen"}
    file.unlink()
    run_steps([fetch], state, lambda _: None)
    assert state.key(rollouts) != keys[0] and len(asked) == 2


def test_the_time_of_a_killed_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken to have worked until its last file was written."""
    monkeypatch.setattr("sia_convert.steps.time", SimpleNamespace(time=lambda: 2000.0, monotonic=lambda: 0.0))
    out = tmp_path / "texts.jsonl"
    step = Step("rollouts", lambda: None, None, (), (out,), (out,))
    state = State(tmp_path / "make.json")
    out.write_text("half")
    state.steps["rollouts"] = {"key": state.key(step), "finished": False, "seconds": 5.0, "began": 1000.0}
    os.utime(out, (1100.0, 1100.0))
    lines: list[str] = []
    assert run_steps([step], state, lines.append) == 105.0
    assert lines == ["rollouts … continues after 1 min 45 s", "rollouts: 1 min 45 s"]
    assert "began" not in State.load(state.path).steps["rollouts"]


def test_a_dry_run_sees_that_a_model_folder_will_be_another(tmp_path: Path) -> None:
    folder, state = tmp_path / "hf", State(tmp_path / "make.json")

    def step(name: str, needs: tuple[Path, ...], makes: Path, settings: int = 1) -> Step:
        return Step(name, lambda: makes.write_text(name), settings, needs, (makes,))

    folder.mkdir()
    config, base = folder / "config.json", tmp_path / "base.gguf"
    first, *rest = steps = [
        step("pretrain", (), config), step("base", (folder,), base), step("texts", (base,), tmp_path / "texts.jsonl"),
    ]  # fmt: skip
    run_steps(steps, state, lambda _: None)
    assert all(": done, in " in line for line in tell(steps, state))
    anew = tell([dataclasses.replace(first, settings=2), *rest], state)
    assert [line.split(",")[0] for line in anew[:3]] == ["pretrain: to do", "base: to do", "texts: to do"]


@pytest.mark.usefixtures("first_run")
def test_a_base_that_is_only_a_gguf_is_its_own_backbone(plan: Path) -> None:
    change = plan.with_name("shipped.toml")
    sections = ("work = 'shipped'", "[base]", "gguf = 'base.gguf'", "[value]", "backbone = 'base.gguf'", "[verify]")
    change.write_text("\n".join([*sections, "limit = 4", ""]))
    assert run(plan, change) == [
        "rollouts", "score", "backbone from GGUF", "train", "unseen rollouts", "spread", "export", "value to Q8_0",
        "verify",
    ]  # fmt: skip
    rows = json.loads((plan.parent / "shipped/verify.json").read_text())["rows"]
    assert [(row["type"], row["failures"]) for row in rows] == [("F32", []), ("Q8_0", [])]
    assert run(plan, change) == []
    (plan.parent / "shipped").rename(plan.parent / "moved")
    change.write_text(change.read_text().replace("'shipped'", "'moved'"))
    assert run(plan, change) == []
    change.write_text(f"{change.read_text()}per_trajectory = 3\n")
    assert run(plan, change) == ["spread", "export", "value to Q8_0", "verify"]


def keys(*paths: Path) -> dict[str, str]:
    """What decides of each step whether it runs again, where all that the plan makes is there."""
    state = State(paths[0].with_name("no.json"))
    return {step.name: state.key(step) for step in Chain(read_plan(*paths)).steps()}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in one if one[name] != other[name]]


@pytest.mark.usefixtures("first_run")
def test_a_chat_template_lies_beside_the_plan_and_decides_by_what_it_holds(plan: Path) -> None:
    change, own = plan.with_name("spoken.toml"), plan.with_name("own.jinja")
    own.write_text("{{ messages[0].content }}")
    later = "[distill]\nout = 'base.gguf'\n[calibrate]\n"
    change.write_text(f"[rollouts]\nchat_template = 'own.jinja'\n{later}")
    found = read_plan(plan, change)
    found.check()
    assert found.rollouts.chat_template == found.verify.unseen.chat_template == str(own)
    before = keys(plan, change)
    own.write_text("{{ messages[0].content }}!")
    asking = ["rollouts", "unseen rollouts", "distill", "calibrate"]
    assert differing(before, keys(plan, change)) == asking
    own.unlink()
    plan.with_name("elsewhere").mkdir()
    (plan.parent / "elsewhere" / own.name).write_text("{{ messages[0].content }}")
    change.write_text(f"[rollouts]\nchat_template = 'elsewhere/own.jinja'\n{later}")
    assert keys(plan, change) == before
    change.write_text(f"[verify]\nchat_template = 'chatml'\n{later}")
    found = read_plan(plan, change)
    found.check()
    assert (found.rollouts.chat_template, found.verify.unseen.chat_template) == (None, "chatml")
    assert differing(before, keys(plan, change)) == asking


@pytest.mark.usefixtures("first_run")
def test_what_a_reward_says_is_read_off_its_file(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, module = plan.with_name("rewarded.toml"), tmp_path / "some_reward.py"
    monkeypatch.chdir(tmp_path)
    module.write_text("def good(prompts, responses): return [float(len(r)) for r in responses]")
    plan.with_name("beside.npz").write_bytes(b"1")
    plan.with_name("models").mkdir()
    shutil.copytree(plan.parent / "reward", plan.parent / "models/rm")
    for source, file in (
        ("some_reward:good", module),
        ("polarity:beside.npz", plan.with_name("beside.npz")),
        ("hf:models/rm", plan.parent / "models/rm/config.json"),
        ("hf:./reward", plan.parent / "reward/config.json"),
    ):
        change.write_text(f"[reward]\nsource = '{source}'\n[calibrate]\n")
        before, kept = keys(plan, change), file.read_bytes()
        file.write_bytes(kept + b" ")
        assert differing(before, keys(plan, change)) == ["score", "calibrate"]
        file.write_bytes(kept)
    found = read_plan(plan, change)
    assert found.reward_spec == f"hf:{plan.parent / 'reward'}"
    change.write_text("[reward]\nsource = 'hf:models/rm'\n")
    found = read_plan(plan, change)
    assert (found.reward_spec, found.reward_name) == (f"hf:{plan.parent / 'models/rm'}", "hf:rm")
    for source in ("hf:owner/name", "vader", "polarity", "url:http://localhost/predict"):
        change.write_text(f"[reward]\nsource = '{source}'\n")
        found = read_plan(plan, change)
        assert (found.reward_spec, found.reward_files) == (source, ())


@pytest.mark.usefixtures("first_run")
def test_the_threads_of_a_plan_are_those_of_each_process(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("sia_convert.train.launch.launch", lambda *_, **more: told.append(more))
    more = plan.with_name("several.toml")
    more.write_text("threads = 3\n[value]\nprocesses = 2\n")
    next(step for step in Chain(read_plan(plan, more)).steps() if step.name == "train").run()
    assert told == [{"threads": 3, "anew": True}]


@pytest.mark.usefixtures("first_run")
def test_what_is_taken_over_has_a_limit_and_verification_writes_its_own_texts(plan: Path) -> None:
    """limit counts prompts, of which the first are taken with all their texts."""
    words = ("sad", "old", "sad", "bad", "old")
    pairs = [{"prompt": f"the {word} king", "response": f"answer {i}"} for i, word in enumerate(words)]
    plan.with_name("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    change, work, taken = plan.with_name("taken.toml"), plan.parent / "taken", []
    for of_rollouts in (
        "prompts = 'pairs.jsonl'\npairs = true\n[reward]\nsource = 'data'", "texts = 'work/rollouts.jsonl'"
    ):  # fmt: skip
        calibrated = "[calibrate]\nweigh = false\n"
        change.write_text(
            f"work = 'taken'\n[base]\ngguf = 'base.gguf'\n[rollouts]\nlimit = 2\n{of_rollouts}\n{calibrated}"
        )
        found = read_plan(plan, change)
        found.check()
        steps = [step for step in Chain(found).steps() if step.name in ("rollouts", "unseen rollouts")]
        run_steps(steps, State.load(work / "make.json"), lambda _: None)
        taken.append([(t.prompt, t.response) for t in read_trajectories([work / "rollouts.jsonl"])])
        unseen = [(t.prompt, t.response) for t in read_trajectories([work / "unseen.jsonl"])]
        assert len(unseen) in (5, 6) and not set(unseen) & set(taken[-1])
    assert taken[0] == [(pair["prompt"], pair["response"]) for i, pair in enumerate(pairs) if i != 3]
    assert len(taken[1]) == 6 and len({prompt for prompt, _ in taken[1]}) == 2


@pytest.mark.usefixtures("first_run")
def test_a_checkpoint_trained_anew_is_another_teacher(plan: Path, tmp_path: Path) -> None:
    """Though its export has the name and the size of the one before; more texts of the same one are added."""
    one, other = plan.parent / "work/value", tmp_path / "other"
    shutil.copytree(one, other)
    trained = ValueCheckpoint.open(other)
    dataclasses.replace(trained, head=dataclasses.replace(trained.head, bias=trained.head.bias + 1.0)).save()
    ValueCheckpoint.open(other).store_spread(trained.spread() or 1.0, 1, {})
    few = ["--threshold", "0", "--max-tokens", "3", "--hidden", "4", "--epochs", "1", "--threads", "1"]
    files = ["--base", plan.parent / "base.gguf", "--prompts", plan.parent / "prompts.txt", "-o", tmp_path / "q.gguf"]
    for folder, texts, said in (
        (one, 2, "from "),
        (one, 4, "from "),
        (other, 4, "q.gguf.d was begun with teacher_files"),
    ):
        done = CliRunner().invoke(main, ["distill", *map(str, (folder, *files)), "--texts", str(texts), *few])
        assert said in done.output, done.output


@pytest.mark.usefixtures("first_run")
def test_a_second_round_learns_from_what_the_first_one_steers(plan: Path) -> None:
    change = plan.with_name("steered.toml")
    sections = ("work = 'second'", "[base]", "gguf = 'base.gguf'", "[steered]", "samples = 2", "[verify]", "limit = 4")
    change.write_text("\n".join(sections))
    steps = [
        "rollouts", "score", "first round", "unseen rollouts", "first spread", "first export", "steered rollouts",
        "score steered", "second round", "spread", "export", "value to Q8_0", "verify",
    ]  # fmt: skip
    assert run(plan, change) == steps
    work = plan.parent / "second"
    plain, steered = (list(read_trajectories([work / name])) for name in ("scored.jsonl", "steered-scored.jsonl"))
    assert {t.id for t in steered} == {f"{p}-{j}" for p in range(6) for j in range(2)}
    assert len(plain) == 18 and {t.response for t in steered} - {t.response for t in plain}
    first, second = (json.loads((work / name / "training.json").read_text()) for name in ("first", "value"))
    assert (len(first["config"]["data"]), len(second["config"]["data"])) == (1, 2)
    assert run(plan, change) == []
    change.write_text("\n".join(sections).replace("samples = 2", "samples = 2\nbeta = 1.0"))
    assert run(plan, change) == steps[steps.index("steered rollouts") :]


@pytest.mark.usefixtures("first_run")
def test_a_file_beyond_its_tolerance_fails_the_chain(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sia_convert.proof.verify.MAX_DIFFERENCE", {"F32": 1e-12})
    change = plan.with_name("fail.toml")
    change.write_text("[verify]\nlimit = 4\n")
    result = CliRunner().invoke(main, ["make", str(plan), str(change)])
    assert result.exit_code == 2
    assert re.search(r"FAILED: max \|dV\| .* > 1e-12", result.output)
    assert result.output.splitlines()[-1].startswith("Error: value-F32.gguf: beyond the tolerance")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("work = 1\n", ConfigError, "lacks base, rollouts, reward, value, export"),
        ("[rollout]\n", ConfigError, "unknown 'rollout'; expected work, threads"),
        ("[value\n", DataError, "is not valid TOML"),
    ],
)
def test_a_wrong_plan_is_one_sentence(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_plan(path)


WRONG = {
    "[value]\nlearning_rate = 1\n": r"\[value\] has no setting 'learning_rate'; expected placement, tune",
    "[export]\nlayuot = 'lean'\n": r"\[export\] has no setting 'layuot'; expected layout, dtype",
    "[verify]\nsmaples = 2\n": r"\[verify\] has no setting 'smaples'; expected also",
    "[value]\nloss = 'mse'\n": r"\[value\] loss 'mse': expected one of trajectory-mean, per-token, td-lambda",
    "[value]\nlora = { targets = ['q_porj'] }\n": "LoRA target 'q_porj': expected attention or all-linear alone",
    "[value]\nlora = { rank = 4 }\n": r"\[value.lora\] has no setting 'rank'; expected r, alpha",
    "[value]\nbackbone = 'nowhere'\n": r"\[value\] backbone: nothing at .*nowhere",
    "[value]\ntemplate = 'none.jinja'\n": "none.jinja: expected chat, raw or the path of a jinja file",
    "[export]\nlayout = 'flat'\n": r"\[export\] layout 'flat': expected one of merged, lean, adapter, head",
    "[export]\nlayout = 'head'\n": "the head layout needs a frozen, whole backbone",
    "[value]\nhead_hidden = 8\n": "the lean layout holds a linear head only",
    "[value]\nplacement = 'adapter'\n[export]\nlayout = 'adapter'\n": "layout adapter holds nothing to quantize",
    "[export]\nquantize = ['Q9']\n": r"\[export\] quantize 'Q9': expected types of llama.cpp",
    "[export]\nout = 'v.gguf'\nquantize = ['Q8_0', 'Q4_0']\n": "v.gguf is one file, but 2 types were asked for",
    "[rollouts]\nprompts = 'none.txt'\n": r"\[rollouts\] prompts: nothing at .*none.txt",
    "[rollouts]\nsamples = '3'\n": r"\[rollouts\] samples is '3'; expected a whole number",
    "[rollouts]\nchat_template = 'x.jinja'\n": r"\[rollouts\] the chat template '/.*x.jinja' is no file and no",
    "[verify]\nchat_template = 'chatmi'\n": r"\[verify\] the chat template '/.*chatmi' is no file and no template of",
    "[verify]\nprompts = 'none.txt'\n": r"\[verify\] prompts: nothing at .*none.txt",
    "[reward]\nsource = 'happyness'\n": "reward 'happyness' is not known; expected vader",
    "[reward]\nsource = 'no_such_module:f'\n": "the module 'no_such_module' cannot be imported",
    "[reward]\nsource = 'hf:./none'\n": r"\[reward\] source: nothing at .*none",
    "[reward]\nsource = 'data'\n": "rewards that stand in pairs; sampled texts have none",
    "[rollouts]\npairs = true\n[steered]\n": r"\[steered\] samples texts, but \[rollouts\] takes pairs",
    "[rollouts]\npairs = true\ntexts = 'prompts.txt'\n": r"\[rollouts\] takes pairs and texts: expected one of them",
    "[verify]\ntexts = 'none.jsonl'\n": r"\[verify\] texts: nothing at .*none.jsonl",
    "[rollouts]\npairs = true\n[verify]\npairs = true\n": r"\[verify\] takes what \[rollouts\] takes, which",
    "[rollouts]\ntexts = 'plan.toml'\n[verify]\ntexts = 'plan.toml'\n": r"\[verify\] takes what \[rollouts\] takes",
    "[rollouts]\ntexts = 'none.jsonl'\n": r"\[rollouts\] texts: nothing at .*none.jsonl",
    "[rollouts]\ntexts = 'hub:owner/texts'\n": r"\[rollouts\] texts is hub:owner/texts, but of the Hub only prompts",
    "[distill]\nout = 'hub:q'\n": r"\[distill\] out is hub:q, but of the Hub only prompts are read",
    "[rollouts]\npairs = true\n[reward]\nsource = 'data'\n[calibrate]\n": r"set weigh = false in \[calibrate\]",
    "[steered]\ngate = 'sometimes'\n": r"\[steered\] unknown gate 'sometimes'",
    "[base]\ngguf = 'none.gguf'\n": r"\[base\] gguf: nothing at .*none.gguf",
}  # fmt: skip


def test_rounds_are_a_list_and_a_step_of_another_room_is_found_by_name(plan: Path, tmp_path: Path) -> None:
    change = plan.with_name("rounds.toml")
    base = f"[base]\nhf = '{tmp_path}/made'\nout = 'made'\n[base.pretrain]\ndata = '{tmp_path}'\nminutes = 2\n"
    change.write_text(f"work = 'three'\n{base}[[steered]]\n[[steered]]\nbeta = 1.0\n")
    with pytest.raises(DataError, match=r"no tinystories_sample\.txt\.xz in"):
        preview(plan, change)
    for name in COLLECTIONS:
        (tmp_path / name).touch()
    told = [line.split(":")[0] for line in preview(plan, change)[:-1]]
    assert preview(plan, change)[0] == "pretrain: to do, about 2 min 00 s by its settings"
    assert {path.name for path in Chain(read_plan(plan, change)).steps()[0].inputs} == set(COLLECTIONS)
    assert told == [
        "pretrain", "base to GGUF", "base to Q8_0", "rollouts", "score", "first round", "unseen rollouts",
        "first spread", "first export", "steered rollouts", "score steered", "second round", "second spread",
        "second export", "steered-3 rollouts", "score steered-3", "third round", "spread", "export", "value to Q8_0",
        "verify",
    ]  # fmt: skip
    change.write_text(f"{base}width = 3\n")
    with pytest.raises(ConfigError, match=r"\[base\.pretrain\] has no setting 'width'; expected data, work, minutes"):
        preview(plan, change)


@pytest.mark.parametrize("text", WRONG)
def test_a_plan_is_checked_whole_before_its_first_step(plan: Path, text: str) -> None:
    change, lines = plan.with_name("wrong.toml"), list[str]()
    change.write_text(f"work = 'never'\n{text}")
    with pytest.raises(SiaError, match=WRONG[text]):
        make(plan, change, echo=lines.append)
    assert not lines and not (plan.parent / "never").exists()


def decisive(plan: Path, text: str) -> dict[str, Any]:
    """What the steps behind the value model are made with."""
    change = plan.with_name("decisive.toml")
    change.write_text(f"{text}\n[calibrate]\n")
    return {step.name: step.settings for step in Chain(read_plan(plan, change)).steps()[-2:]}


def test_what_follows_the_value_model_reads_prompts_as_its_rollouts_do(
    plan: Path, base_gguf: Path, value_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain text stays plain: a key of both steps, and what their requests say; so is the context of each."""
    out = "[distill]\nout = 'q.gguf'"
    for text, raw in (
        (out, (False, False)),
        (f"[rollouts]\nraw = true\n{out}", (True, True)),
        (f"[rollouts]\nraw = true\n{out}\nraw = false", (False, True)),
    ):
        made = decisive(plan, text)
        assert [made[name].get("raw", False) for name in ("distill", "calibrate")] == list(raw)
        assert all(raw) or "raw" not in made["distill"]
        found = read_plan(plan, plan.with_name("decisive.toml"))
        assert found.distill is not None and found.distill.collecting.raw == raw[0]
    of_texts, usual = "[distill]\nout = 'q.gguf'\nn_ctx = 256", decisive(plan, out)
    for text, changed in ((of_texts, "distill"), (f"[rollouts]\nn_ctx = 256\n{out}", "calibrate")):
        made = decisive(plan, text)
        assert [name for name in made if made[name] != usual[name]] == [changed]
    given: list[Task] = []

    def calibrate(sia: Any, task: Task, reward: Any) -> Profile:
        given.append(task)
        return Profile(chose="so")

    monkeypatch.setattr("sia_convert.data.calibrate.calibrate", calibrate)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hello\n" + "a dog " * 9)
    with Model(base_gguf, vocab_only=True) as model:
        n_ctx = len(model.tokenize("a dog " * 9)) + 1  # holds it as it stands, but not in a template
    for raw_, fit in ((False, 1), (True, 2)):
        sampled = RolloutConfig(n_ctx=n_ctx, raw=raw_)
        calibrate_file(
            base_gguf, value_gguf, prompts, CalibrateSection(k=6), sampled, None, tmp_path / "o.toml", Machine(1)
        )
        assert given[-1].request.raw == raw_ and len(given[-1].prompts) == fit
