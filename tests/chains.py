"""A small plan of the whole chain, and the chain as tests run it."""

from __future__ import annotations

from pathlib import Path

from sia_convert.make import make

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


def write_plan(folder: Path, base: Path, value: Path) -> Path:
    """The plan, of a base and a value backbone as Hugging Face folders, beside the prompts and the reward it names."""
    import tiny

    tiny.tiny_reward(folder / "reward")
    words = ("sad", "old", "bad", "kind", "big", "lost")
    (folder / "prompts.txt").write_text("\n".join(f"the {word} king" for word in words))
    (folder / "plan.toml").write_text(PLAN.format(base=base, value=value))
    return folder / "plan.toml"


def run(*paths: Path) -> list[str]:
    """Names of the steps that did something."""
    lines: list[str] = []
    make(*paths, echo=lines.append)
    return [line.removesuffix(" …") for line in lines if line.endswith(" …")]


def preview(*paths: Path) -> list[str]:
    lines: list[str] = []
    make(*paths, echo=lines.append, dry_run=True)
    return lines
