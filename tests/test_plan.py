"""A plan as text: what it may say, and what of it decides which step runs again."""

from __future__ import annotations

import json
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
from sia_local.llama.model import Model
from sia_local.prompts import read_prompts

pytest.importorskip("torch")
pytest.importorskip("transformers")

from chains import PLAN, preview, write_plan
from sia_convert.data.calibrate import calibrate_file
from sia_convert.data.rollouts import RolloutConfig
from sia_convert.demo.corpus import COLLECTIONS
from sia_convert.hubsets import HubSet
from sia_convert.make import Chain, make
from sia_convert.plan import CalibrateSection
from sia_convert.reading import read_plan
from sia_convert.settings import Machine
from sia_convert.steps import State, run_steps


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, make_hf: Callable[..., Path]) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan"), make_hf(), make_hf("qwen3", hidden_size=32, seed=4))


@pytest.fixture
def plan(written: Path, tmp_path: Path) -> Path:
    """A plan, in a folder with all that it names; nothing of it is made."""
    return Path(shutil.copytree(written.parent, tmp_path / "plan")) / written.name


def keys(*paths: Path) -> dict[str, str]:
    """What decides of each step whether it runs again, where something lies at every place that the plan makes."""
    state, steps = State(paths[0].with_name("no.json")), Chain(read_plan(*paths)).steps()
    for path in (made for step in steps for made in step.outputs if not made.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return {step.name: state.key(step) for step in steps}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in one if one[name] != other[name]]


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


def test_what_a_command_may_change_while_it_goes_on_makes_nothing_anew(plan: Path) -> None:
    """Nor does a template that is moved; how much is made decides of its step alone."""
    change, own = plan.with_name("paced.toml"), plan.with_name("own.jinja")
    own.write_text("{{ messages[0].content }}")

    def found(text: str) -> dict[str, str]:
        change.write_text(f"{text}\n[distill]\nout = 'q.gguf'\n")
        return keys(plan, change)

    usual = found("[calibrate]")
    served = "[calibrate]\n[rollouts.servers]\nurl = ['http://a']"
    for before, text in (
        (usual, "threads = 2\ngpu_layers = 1\n[rollouts]\nslots = 3\n[calibrate]"),
        (usual, "[value]\nsave_every = 7\nprocesses = 2\n[reward]\nbatch = 3\n[calibrate]\nslots = 2"),
        (found(served), f"{served.replace('/a', '/b')}\nconcurrency = 3\ntimeout = 9.0\ntries = 2\ncompare = 0"),
    ):
        assert differing(before, found(text)) == []
    for text, steps in (
        ("[rollouts]\nsamples = 4\n[calibrate]", ["rollouts"]),
        ("[value]\nepochs = 3\n[calibrate]", ["train"]),
        ("[value]\npatience = 3\n[calibrate]", ["train"]),
    ):
        assert differing(usual, found(text)) == steps
    templated = found("[value]\ntemplate = 'own.jinja'\n[calibrate]")
    own.rename(plan.with_name("other.jinja"))
    assert differing(templated, found("[value]\ntemplate = 'other.jinja'\n[calibrate]")) == []
    assert differing(templated, usual) == ["train"]


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


def test_the_threads_of_a_plan_are_those_of_each_process(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("sia_convert.train.launch.launch", lambda *_, **more: told.append(more))
    more = plan.with_name("several.toml")
    more.write_text("threads = 3\n[value]\nprocesses = 2\n")
    next(step for step in Chain(read_plan(plan, more)).steps() if step.name == "train").run()
    assert told == [{"threads": 3, "anew": True}]


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
    # Pairs share their prompts: two prompts are more than two rows.
    hub[:] = [{"chosen": f"\n\nHuman: {question}\n\nAssistant: b"} for question in ("who", "who", "who", "why", "how")]
    pairs = HubSet("hub:owner/pairs", tmp_path / "pairs.jsonl", 2)
    pairs.step().run()
    assert read_prompts(pairs.file)[:2] == ["who", "why"] and len(pairs.file.read_text().splitlines()) == 4


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
    settings = Chain(read_plan(plan, change)).steps()[0].settings
    change.write_text(f"{base}threads = 1\nwork = 'elsewhere'\n")
    assert Chain(read_plan(plan, change)).steps()[0].settings == settings
    change.write_text(f"{base}width = 3\n")
    with pytest.raises(ConfigError, match=r"\[base\.pretrain\] has no setting 'width'; expected data, work, minutes"):
        preview(plan, change)


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
    "[base]\ngguf = 'plan.toml'\nout = 'b'\nquantize = ['Q8_0']\n": r"nothing reads out, quantize: leave off one",
    "[base]\ngguf = 'plan.toml'\npretrain = {}\n": r"\[base\] gguf is a base that is made .* nothing reads pretrain:",
    "[rollouts]\nlimit = -1\n": r"\[rollouts\] limit is -1; expected 1 or more",
    "steered = 3\n": r"\[steered\] is 3; expected a section",
    "[calibrate]\nlimit = 0\n": r"\[calibrate\] limit is 0; expected 1 or more",
    "[calibrate]\nmax_tokens = 0\n": r"\[calibrate\] max_tokens is 0; expected at least 1",
    "[calibrate]\nk = 0\n": r"\[calibrate\] k is 0",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_plan_is_checked_whole_before_its_first_step(plan: Path, text: str) -> None:
    change, lines = plan.with_name("wrong.toml"), list[str]()
    change.write_text(f"work = 'never'\n{text}")
    with pytest.raises(SiaError, match=WRONG[text]):
        make(plan, change, echo=lines.append)
    assert not lines and not (plan.parent / "never").exists()


def test_a_key_of_a_table_within_a_section_leaves_the_others(plan: Path) -> None:
    for name, text in (("one", "r = 8\nalpha = 64"), ("two", "dropout = 0.2")):
        plan.with_name(f"{name}.toml").write_text(f"[value.lora]\n{text}\n")
    found = read_plan(plan, plan.with_name("one.toml"), plan.with_name("two.toml")).value.lora
    assert (found.r, found.alpha, found.dropout) == (8, 64, 0.2)


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
