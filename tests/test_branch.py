"""Branches: candidates tried to the end, what they earned, and files that go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sia_local import SIA
from sia_local.cli import main as sia_main
from sia_local.errors import ConfigError, DataError
from sia_local.llama.model import Model
from sia_local.records import Prompt
from sia_local.seeds import text_seed

pytest.importorskip("torch")
pytest.importorskip("transformers")

from sia_convert.cli import main
from sia_convert.data.branch import BranchConfig, branch
from sia_convert.data.outputs import Appender
from sia_convert.data.trajectories import Branch, Shard, Trajectory, read_trajectories
from sia_convert.settings import Machine

PROMPTS = [f"the {word} king" for word in ("sad", "old", "bad", "kind", "big")]
CONFIG = BranchConfig(
    texts=1, junctions=2, threshold=0.0, candidates=3, samples=2, max_tokens=8, k=4, slots=3, n_ctx=64
)
MACHINE = Machine(threads=1)
REWARD = f"{__name__}:weight"


def weight(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Depends on every character and on the prompt."""
    return [sum(map(ord, prompt + text)) % 97 / 97 for prompt, text in zip(prompts, responses, strict=True)]


@pytest.fixture(scope="module")
def ends_often() -> object:
    """Every seventh token ends a text."""
    patch = pytest.MonkeyPatch()
    patch.setattr(Model, "is_eog", lambda self, token: token % 7 == 0)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def branched(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, ends_often: object) -> Path:
    out = tmp_path_factory.mktemp("branch") / "whole.jsonl"
    assert branch(PROMPTS, out, tiny_base, REWARD, CONFIG, MACHINE) == 5
    return out


def by_id(path: Path) -> dict[str, Trajectory]:
    return {t.id: t for t in read_trajectories([path])}


def test_a_branch_earns_what_its_texts_earn(branched: Path, tiny_base: Path) -> None:
    """Every text written again alone, from its prefix and candidate."""
    ended = 0
    with SIA.load(tiny_base, None, n_ctx=64, n_threads=1) as sia:

        def text(tokens: Sequence[int]) -> str:
            return b"".join(map(sia.model.piece, tokens)).decode("utf-8", "replace")

        for t in by_id(branched).values():
            read = sia.prompt(t.prompt)
            whole = [*t.tokens] if t.stop is None else [*t.tokens, t.stop]
            assert t.reward == weight([t.prompt], [t.response])[0] and t.response == text(whole)
            assert len(t.branches) == min(2, len(whole) - (len(whole) == 8))
            for b in t.branches:
                before = whole[: b.at]
                steps = sia.generate(
                    Prompt((*read.tokens, *before)), CONFIG.rollouts.policy(None), max_tokens=1, trace=True
                )
                candidates = next(iter(steps)).candidates
                assert candidates is not None and b.ids == tuple(candidates.ids[:3])
                np.testing.assert_allclose(b.logits, candidates.logits[:3], atol=1e-3)
                for token, mean, std, count in zip(b.ids, b.means, b.stds, b.counts, strict=True):
                    earned = []
                    for n in range(2):
                        tokens = [*before, token]
                        if token % 7:
                            seed = text_seed(0, f"{t.id} at {b.at} with {token}", n)
                            left = {"max_tokens": 8 - len(tokens), "seed": seed}
                            going = Prompt((*read.tokens, *tokens))
                            tokens += [step.token for step in sia.generate(going, CONFIG.rollouts.policy(None), **left)]
                        else:
                            ended += 1
                        earned += weight([t.prompt], [text(tokens)])
                    assert count == 2
                    assert (mean, std) == (
                        pytest.approx(np.mean(earned), abs=1e-6),
                        pytest.approx(np.std(earned, ddof=1), abs=1e-6),
                    )
    assert ended


def test_shards_and_interrupted_runs_are_the_whole(
    branched: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, out = Appender.__call__, tmp_path / "1.jsonl"

    def stop_at_the_second(self: Appender, line: str) -> None:
        write(self, line)
        if len(out.read_bytes().splitlines()) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Appender, "__call__", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        branch(PROMPTS, out, tiny_base, REWARD, CONFIG, MACHINE, Shard(1, 2))
    monkeypatch.setattr(Appender, "__call__", write)
    assert branch(PROMPTS, out, tiny_base, REWARD, CONFIG, MACHINE, Shard(1, 2)) == 1
    assert branch(PROMPTS, tmp_path / "2.jsonl", tiny_base, REWARD, CONFIG, MACHINE, Shard(2, 2)) == 2
    assert by_id(out) | by_id(tmp_path / "2.jsonl") == by_id(branched)
    with pytest.raises(DataError, match="made with samples 2, not 3"):
        branch(PROMPTS, out, tiny_base, REWARD, dataclasses.replace(CONFIG, samples=3), MACHINE)


def test_a_prompt_near_the_end_of_the_context_stops_nobody(tiny_base: Path, tmp_path: Path) -> None:
    """The last token that fits is drawn, but no candidate in its place could go on."""
    with SIA.load(tiny_base, None, n_ctx=64, n_threads=1) as sia:
        n_ctx = len(sia.prompt(PROMPTS[0]).tokens) + 3
    config = dataclasses.replace(CONFIG, junctions=8, n_ctx=n_ctx)
    assert branch(PROMPTS[:1], tmp_path / "out.jsonl", tiny_base, REWARD, config, MACHINE) == 1
    (made,) = by_id(tmp_path / "out.jsonl").values()
    assert (len(made.tokens), [b.at for b in made.branches]) == (3, [0, 1])


def test_the_command(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the king\n")
    files = [tmp_path / "prompts.txt", tmp_path / "out.jsonl"]
    few = ["--max-tokens", "4", "--threshold", "0", "--junctions", "1", "--ctx", "64", "--threads", "1"]
    done = CliRunner().invoke(main, ["branch", *map(str, files), "--base", str(tiny_base), "--reward", REWARD, *few])
    assert (done.exit_code, done.stdout) == (0, f"1 newly branched texts in {files[1]}\n"), done.output
    none = CliRunner().invoke(main, ["branch", *map(str, files), "--base", str(tiny_base), "--reward", "nothing"])
    assert none.exit_code and "reward 'nothing' is not known" in none.stderr


def test_rewards_that_stand_in_files_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    prompts, base, out = tmp_path / "p.txt", tmp_path / "base.gguf", tmp_path / "out"
    prompts.write_text("the king")
    base.write_bytes(b"which no command has read")
    words_of_branch = ["branch", prompts, out, "--base", base, "--reward", "data"]
    given = ["-m", base, "--prompts", prompts]
    for command, words in (
        (main, words_of_branch),
        (sia_main, ["eval", *given, "--arms", "off", "--reward", "data", "--judge", "none", "--out", out]),
        (sia_main, ["eval", *given, "--arms", "off", "--reward", "plain", "--judge", "data", "--out", out]),
        (sia_main, ["generate", "-m", base, "--best-of", "2", "--reward", "data", "-p", "hello"]),
    ):
        done = CliRunner().invoke(command, list(map(str, words)))
        assert done.exit_code == 2 and "cannot score new text; name a reward that can" in done.output, done.output
    assert not out.exists()


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="candidates is 1; expected 2 or more"):
        BranchConfig(candidates=1)
    with pytest.raises(ConfigError, match="12 candidates of the 10"):
        BranchConfig(candidates=12)
    with pytest.raises(DataError, match="expected as many of each as candidates"):
        Branch(0, (1, 2), (0.5,), (0.1, 0.2), (0.0, 0.0), (1, 1))
