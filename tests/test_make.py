"""The chain as it runs: what a step makes, what runs again, what goes on after an end."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sia_local.errors import ConfigError
from sia_local.evaluation.profile import Profile
from sia_local.files import alone
from sia_local.learning.junctions import read_settings
from sia_local.llama.gguf import GgufMetadata
from sia_local.llama.keys import BASE_NAME, REWARD_NAME, VALUE_SPREAD
from sia_local.values.qhead_file import QHeadFile

pytest.importorskip("torch")
pytest.importorskip("transformers")

from chains import preview, run, write_plan
from click.testing import CliRunner
from cuts import Interrupted
from sia_convert.cli import main
from sia_convert.data.trajectories import read_trajectories
from sia_convert.formats.checkpoint import ValueCheckpoint
from sia_convert.make import Chain, make
from sia_convert.reading import read_plan
from sia_convert.steps import State, Step, run_steps
from sia_convert.steps import preview as tell


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, make_hf: Callable[..., Path], tiny_base: Path) -> Path:
    """A plan whose value backbone is another, narrower model than its base."""
    folder = tmp_path_factory.mktemp("chain")
    return write_plan(folder, make_hf(), make_hf("qwen3", hidden_size=32, seed=4))


@pytest.fixture(scope="module")
def ran(written: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The plan in a folder where its whole chain has run once, and the steps of that run."""
    folder = shutil.copytree(written.parent, tmp_path_factory.mktemp("ran") / "chain")
    return folder / written.name, run(folder / written.name)


@pytest.fixture
def made(ran: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of it of one's own."""
    return Path(shutil.copytree(ran[0].parent, tmp_path / "made")) / ran[0].name


@pytest.fixture
def plan(written: Path, tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the plan of which nothing but base.gguf is made."""
    folder = Path(shutil.copytree(written.parent, tmp_path / "plan"))
    shutil.copy(tiny_base, folder / "base.gguf")
    return folder / written.name


def test_the_chain_ends_in_a_verified_q8_0_and_moves_as_it_is(ran: tuple[Path, list[str]], made: Path) -> None:
    assert ran[1] == [
        "base to GGUF", "base to Q8_0", "rollouts", "score", "train", "unseen rollouts", "spread", "export",
        "value to Q8_0", "verify",
    ]  # fmt: skip
    report = json.loads((made.parent / "work/verify.json").read_text())
    assert [(row["kind"], row["type"], row["failures"]) for row in report["rows"]] == [
        ("lean", "F32", []), ("lean", "Q8_0", []),
    ]  # fmt: skip
    assert report["rows"][0]["max_abs"] < 1e-3 and report["rows"][0]["junctions"] >= 12
    training = json.loads((made.parent / "work/value/training.json").read_text())
    assert training["config"]["reward_name"] == "hf:reward" and training["config"]["base_name"] == "base"
    assert (made.parent / "value-Q8_0.gguf").is_file() and (made.parent / "base.gguf").is_file()
    assert run(made) == []
    with alone(made.parent / "work"), pytest.raises(ConfigError, match="another process"):
        make(made)


def test_only_what_changed_and_what_follows_runs_again(made: Path) -> None:
    change, told = made.with_name("change.toml"), []
    change.write_text("[reward]\nname = 'kind'\n")
    for again in ((made, change), (made,)):
        assert run(*again) == ["export", "value to Q8_0", "verify"]
        with GgufMetadata(made.with_name("value-Q8_0.gguf")) as meta:
            told.append((meta.get(REWARD_NAME), meta.get(BASE_NAME), meta.get(VALUE_SPREAD)))
    assert [name for name, *_ in told] == ["kind", "hf:reward"] and told[0][1:] == told[1][1:] and told[0][2] > 0
    change.write_text("[verify]\nalso = ['Q4_0']\n")
    assert run(made, change) == ["verify"]
    change.write_text("[verify]\nper_trajectory = 5\n")
    assert run(made, change) == ["spread", "export", "value to Q8_0", "verify"]
    change.write_text("[value]\nlr = 2e-3\n[verify]\nper_trajectory = 5\n")
    assert run(made, change) == ["train", "spread", "export", "value to Q8_0", "verify"]
    (made.parent / "value-Q8_0.gguf").unlink()
    assert run(made, change) == ["value to Q8_0"]


def test_a_q_head_stands_in_for_the_value_model_and_is_calibrated(made: Path) -> None:
    change = made.with_name("change.toml")
    few = "texts = 4\nmax_tokens = 6\nk = 6\n[distill.fit]\nhidden = 4\nepochs = 2\n"
    kept = f"[distill]\nout = 'q.gguf'\nthreshold = 0.0\n{few}"
    change.write_text(kept)
    assert run(made, change) == ["distill"]
    distillation = QHeadFile.read(made.parent / "q.gguf").meta.distillation
    assert distillation is not None and distillation.teacher == "value-Q8_0"
    junctions = made.parent / "work/junctions"
    # A name as long as the one before: a teacher of the same size, of other content.
    for text, collected in (
        (kept.replace("threshold = 0.0", "threshold = 0.1"), "threshold"),
        (f"[reward]\nname = 'hf:REWARD'\n{kept.replace('0.0', '0.1')}", "teacher_files"),
    ):
        before = read_settings(junctions)
        change.write_text(text)
        assert run(made, change)[-1] == "distill"
        after = read_settings(junctions)
        assert {name for name in after if after[name] != before[name]} == {collected}
    prompts = (made.parent / "prompts.txt").read_text().splitlines()[:3]
    made.with_name("long.txt").write_text("\n".join([*prompts, "the sad king " * 60]))  # the last one is left out
    with change.open("a") as handle:
        handle.write(
            "[calibrate]\nprompts = 'long.txt'\nby = 'gain'\nrate = 0.5\nkl_per_token = 0.05\nlimit = 4\n"
            "max_tokens = 8\nk = 6\nslots = 2\n"
        )
    assert run(made, change) == ["calibrate"]
    profile = Profile.read(made.parent / "q.profile.toml")
    assert (profile.value, profile.steering["gate"], profile.steering["rate"]) == ("q.gguf", "gain", 0.5)
    assert profile.measured["prompts"] == 3
    assert profile.measured["kl_per_token"] == pytest.approx(0.05, rel=0.5) and "reward_off" in profile.measured


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


def test_what_is_taken_over_has_a_limit_and_verification_writes_its_own_texts(made: Path) -> None:
    """limit counts prompts, of which the first are taken with all their texts."""
    words = ("sad", "old", "sad", "bad", "old")
    pairs = [{"prompt": f"the {word} king", "response": f"answer {i}"} for i, word in enumerate(words)]
    made.with_name("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    change, work, taken = made.with_name("taken.toml"), made.parent / "taken", []
    for of_rollouts in (
        "prompts = 'pairs.jsonl'\npairs = true\n[reward]\nsource = 'data'", "texts = 'work/rollouts.jsonl'"
    ):  # fmt: skip
        calibrated = "[calibrate]\nweigh = false\n"
        change.write_text(
            f"work = 'taken'\n[base]\ngguf = 'base.gguf'\n[rollouts]\nlimit = 2\n{of_rollouts}\n{calibrated}"
        )
        found = read_plan(made, change)
        found.check()
        steps = [step for step in Chain(found).steps() if step.name in ("rollouts", "unseen rollouts")]
        run_steps(steps, State.load(work / "make.json"), lambda _: None)
        taken.append([(t.prompt, t.response) for t in read_trajectories([work / "rollouts.jsonl"])])
        unseen = [(t.prompt, t.response) for t in read_trajectories([work / "unseen.jsonl"])]
        assert len(unseen) in (5, 6) and not set(unseen) & set(taken[-1])
    assert taken[0] == [(pair["prompt"], pair["response"]) for i, pair in enumerate(pairs) if i != 3]
    assert len(taken[1]) == 6 and len({prompt for prompt, _ in taken[1]}) == 2


def test_a_checkpoint_trained_anew_is_another_teacher(made: Path, tmp_path: Path) -> None:
    """Though its export has the name and the size of the one before; more texts of the same one are added."""
    one, other = made.parent / "work/value", tmp_path / "other"
    shutil.copytree(one, other)
    trained = ValueCheckpoint.open(other)
    dataclasses.replace(trained, head=dataclasses.replace(trained.head, bias=trained.head.bias + 1.0)).save()
    ValueCheckpoint.open(other).store_spread(trained.spread() or 1.0, 1, {})
    few = ["--threshold", "0", "--max-tokens", "3", "--hidden", "4", "--epochs", "1", "--threads", "1"]
    files = ["--base", made.parent / "base.gguf", "--prompts", made.parent / "prompts.txt", "-o", tmp_path / "q.gguf"]
    for folder, texts, said in (
        (one, 2, "from "),
        (one, 4, "from "),
        (other, 4, "q.gguf.d was begun with teacher_files"),
    ):
        done = CliRunner().invoke(main, ["distill", *map(str, (folder, *files)), "--texts", str(texts), *few])
        assert said in done.output, done.output


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


def test_a_file_beyond_its_tolerance_fails_the_chain(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sia_convert.proof.verify.MAX_DIFFERENCE", {"F32": 1e-12})
    change = made.with_name("fail.toml")
    change.write_text("[verify]\nlimit = 4\n")
    result = CliRunner().invoke(main, ["make", str(made), str(change)])
    assert result.exit_code == 2
    assert re.search(r"FAILED: max \|dV\| .* > 1e-12", result.output)
    assert result.output.splitlines()[-1].startswith("Error: value-F32.gguf: beyond the tolerance")


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


def test_more_of_the_same_goes_on_and_less_or_anything_else_begins_anew(tmp_path: Path) -> None:
    out, state = tmp_path / "texts.jsonl", State(tmp_path / "make.json")
    found = list[bool]()

    def settings(samples: int | None, k: int = 10) -> Step:
        def run() -> None:
            found.append(out.exists())
            out.write_text("text")

        asked = {"samples": samples, "k": k, "limit": None}
        return Step("rollouts", run, asked, (), (out,), (out,), amount=("samples", "limit"))

    for step in map(settings, (2, 4, 3, None, 4)):
        run_steps([step], state, lambda _: None)
    assert found == [False, True, False, True, False]
    run_steps([settings(4, 9)], State.load(state.path), lambda _: None)
    run_steps([settings(5, 9)], State.load(state.path), lambda _: None)
    assert found[5:] == [False, True]


def test_texts_that_are_there_stay_where_more_are_asked_for(plan: Path) -> None:
    """The base answers as it did, and as it would have, had all been asked for at first."""
    change, written = plan.with_name("more.toml"), list[list[str]]()
    for work, samples in (("one", 2), ("one", 3), ("two", 3)):
        change.write_text(f"work = '{work}'\n[base]\ngguf = 'base.gguf'\n[rollouts]\nsamples = {samples}\nslots = 1\n")
        chain = Chain(read_plan(plan, change))
        (step,) = (step for step in chain.steps() if step.name == "rollouts")
        run_steps([step], State.load(chain.files.state), lambda _: None)
        written.append(chain.files.rounds[0].rollouts.read_text().splitlines())
    first, more, whole = written
    assert len(first) == 12 and more[:12] == first and sorted(more) == sorted(whole)


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


def test_a_new_value_file_never_lies_beside_the_profile_of_an_older_one(tmp_path: Path) -> None:
    value, profile = tmp_path / "q.gguf", tmp_path / "q.profile.toml"

    def calibrate() -> None:
        profile.write_text(value.read_text())

    def stopped() -> None:
        value.write_text("new")
        raise Interrupted

    state = State(tmp_path / "make.json")
    distil = Step("distill", lambda: value.write_text("older"), 1, (), (value,))
    chain = [distil, Step("calibrate", calibrate, None, (value,), (profile,), beside=value)]
    run_steps(chain, state, lambda _: None)
    assert profile.read_text() == "older"
    with pytest.raises(Interrupted):
        run_steps([dataclasses.replace(distil, run=stopped, settings=2), *chain[1:]], state, lambda _: None)
    assert value.read_text() == "new" and not profile.exists()


def test_a_chain_says_which_file_its_profile_belongs_to(plan: Path) -> None:
    change = plan.with_name("change.toml")
    change.write_text("[calibrate]\nweigh = false\n")
    chain = Chain(read_plan(plan, change))
    assert [step.beside for step in chain.steps() if step.name == "calibrate"] == [chain.files.value.last]
