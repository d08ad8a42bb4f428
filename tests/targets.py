"""What is damaged and what then reads it: GGUF files of every kind, and texts of every other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from architectures import ARCHITECTURES
from damage import Rng, damaged_gguf, damaged_text

import models
from sia_local import SIA, SiaConfig
from sia_local.cli.inspection import inspect_file

LOAD: dict[str, Any] = {"n_ctx": 96, "n_threads": 1}
DENSE = SiaConfig(gate="dense", k=4)


@dataclass
class Target:
    """seeds: whole files to damage; damage: how; tries: what reads them, given the damaged file."""

    name: str
    seeds: list[Path]
    damage: Callable[[bytes, Rng], bytes]
    tries: Callable[[Path], None]
    share: float = 1.0

    def files(self, seed: int, first: int, end: int, folder: Path) -> Iterator[Path]:
        for i in range(first, end):
            rng = np.random.default_rng([seed, i, *self.name.encode()])
            source = self.seeds[rng.integers(len(self.seeds))]
            made = folder / f"{self.name}-{seed}-{i}{source.suffix}"
            made.write_bytes(self.damage(source.read_bytes(), rng))
            yield made


def gguf_targets(folder: Path) -> list[Target]:
    def made(arch: str, kind: str, **over: Any) -> Path:
        return models.write(folder / f"{arch}-{kind}-{len(over)}.gguf", arch, kind, **over)

    base = made("qwen3", "base")

    def as_base(path: Path) -> None:
        inspect_file(path)
        with SIA.load(path, **LOAD) as sia:
            list(sia.generate("hello there", max_tokens=3))

    def as_value(path: Path) -> None:
        inspect_file(path)
        with SIA.load(base, path, **LOAD) as sia:
            list(sia.generate("hello there", DENSE, max_tokens=3))

    def as_guide(path: Path) -> None:
        from sia_local import Guides

        with SIA.load(base, Guides(path), **LOAD) as sia:
            list(sia.generate("hello there", DENSE, max_tokens=3))

    bases = [made(arch, "base") for arch in ("llama", *ARCHITECTURES)] + [base, base, base]
    values = [made("qwen3", kind) for kind in ("merged", "lean", "adapter", "head")] + [made("lfm2", "lean")]
    hidden = np.random.default_rng(3).standard_normal((8, models.N_EMBD))
    values.append(made("qwen3", "head", head=np.ones(8), hidden=hidden))
    return [
        Target("base", bases, damaged_gguf, as_base, 0.45),
        Target("value", values, damaged_gguf, as_value, 0.35),
        Target("qhead", [made("qwen3", "qhead"), made("qwen3", "qhead", summed=True)], damaged_gguf, as_value, 0.15),
        Target("guide", [made("qwen3", "base", padding=8)], damaged_gguf, as_guide, 0.05),
    ]


def text_targets(folder: Path) -> list[Target]:
    from sia_convert.data.outputs import Appender
    from sia_convert.data.preferences import read_pairs
    from sia_convert.data.trajectories import Trajectory, check_rewards, read_trajectories
    from sia_convert.reading import read_plan

    from sia_local.chat.session import Session
    from sia_local.evaluation.profile import Profile
    from sia_local.evaluation.quiz import read_questions
    from sia_local.evaluation.samples import Sample, SampleFile
    from sia_local.learning.targets import read_targets
    from sia_local.prompts import read_prompt_items

    root = Path(__file__).parent.parent
    base = models.write(folder / "base.gguf", "qwen3", "base", template="")

    def wrote(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    lines = [
        Trajectory(f"{i}-0", i, "hello", "<hello>", [1, 2, 3], "there", "stop", 0.1 * i, 2).to_json() for i in range(3)
    ]
    pairs = '{"prompt": "hello", "chosen": "a", "rejected": "b"}\n{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", '
    pairs += '"rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}\n'
    rows = '{"instruction": "Say", "input": "it", "output": "it", "id": 3}\n', '{"prompt": "hello"}\n'
    question = '{"question": "Where?", "stem": "In", "choices": ["Rome", "Paris"], "topic": "places"}\n'
    tried = {"at": 1, "ids": [1, 2], "logits": [0.5, 0.25], "means": [0.5, 1.0], "counts": [2, 2], "entropy": 1.0}
    branched = json.dumps({**json.loads(lines[0]), "branches": [tried]}) + "\n"
    chat = '{"version": 1, "system": "Be kind.", "turns": [{"role": "user", "content": "a"}, {"role": "assistant", '
    chat += '"content": "b"}], "steering": true, "settings": {"beta": 1.0, "gate": "rate", "rate": 0.2}}\n'

    def trajectories(path: Path) -> None:
        list(read_trajectories([path]))
        check_rewards(read_trajectories([path]))

    def resumed(path: Path) -> None:
        with Appender(path, {"temperature": 1.0}) as out:
            out(lines[0].replace("0-0", "9-9"))

    def loaded_chat(path: Path) -> None:
        with SIA.load(base, **LOAD) as sia:
            Session(sia).load(path)

    def chosen_pairs(path: Path) -> None:
        read_pairs(path, 2)

    def prompt_items(path: Path) -> None:
        read_prompt_items(path)

    def profile(path: Path) -> None:
        Profile.read(path)

    def plan(path: Path) -> None:
        read_plan(path)

    def samples(path: Path) -> None:
        SampleFile(path, {"seed": 0}).close()

    def questions(path: Path) -> None:
        read_questions(path)

    def targets(path: Path) -> None:
        with SIA.load(base, hidden_states=True, **LOAD) as sia:
            read_targets(sia, path)

    kept = wrote("s.jsonl", "")
    store = SampleFile(kept, {"seed": 0})
    store.add([Sample(arm="off", prompt_id="p1", sample=i, prompt="a", text="b", steps=3) for i in range(2)])
    store.close()
    tables = [wrote(f"p{i}.jsonl", row * 2) for i, row in enumerate(rows)]
    tables += [wrote("p.json", f"[{rows[0]}]"), wrote("p.txt", "a\nb\n")]
    tables += [wrote("p.csv", 'prompt,input\n"a, b",c\n'), wrote("p.tsv", "prompt\tinput\na\tc\n")]
    return [
        Target("profile", sorted((root / "models").glob("*.profile.toml")), damaged_text, profile),
        Target(
            "plan",
            [root / name for name in ("models/demo.toml", "models/smollm2-plain.toml", "examples/qwen3.toml")],
            damaged_text,
            plan,
        ),
        Target("prompts", tables, damaged_text, prompt_items),
        Target("trajectories", [wrote("t.jsonl", "\n".join(lines) + "\n")], damaged_text, trajectories),
        Target("resumed", [wrote("r.jsonl", "\n".join(lines) + "\n")], damaged_text, resumed),
        Target("pairs", [wrote("pairs.jsonl", pairs)], damaged_text, chosen_pairs),
        Target("chat", [wrote("chat.json", chat)], damaged_text, loaded_chat),
        Target("samples", [kept], damaged_text, samples),
        Target("questions", [wrote("q.jsonl", question)], damaged_text, questions),
        Target("targets", [wrote("b.jsonl", branched)], damaged_text, targets),
    ]
