"""The `sia-convert` command: a subcommand is imported when asked for, torch only when it runs."""

from __future__ import annotations

import click

from sia_local.cli.group import LazyCommands

COMMANDS = {
    "estimate": "What all of it will cost, before anything is run.",
    "make": "The whole chain from one TOML file, skipping what is done.",
    "rollouts": "Prompts to trajectories, sampled from a base GGUF.",
    "score": "Trajectories to rewards.",
    "rows": "JSONL to Parquet and back, with data sets of the Hub.",
    "branch": "What candidates at junctions earn, each tried to the end.",
    "train": "A backbone and rewards to a value model: LoRA and a head.",
    "import-official": "A checkpoint of the paper's code to a value model.",
    "spread": "How far V differs among the candidates of a junction.",
    "export": "A value model to GGUF: merged, lean, adapter or head.",
    "hf-to-gguf": "A base model to GGUF.",
    "fetch-converter": "llama.cpp's converter, for what is not llama, qwen2 or qwen3.",
    "gguf-to-hf": "A GGUF to a folder that can be trained.",
    "distill": "A Q-head, which costs no decode, from a value model.",
    "quantize": "A GGUF to Q8_0, Q6_K, Q4_K_M, …; a head stays float32.",
    "verify": "PyTorch against GGUF in the runtime's own way.",
    "pretrain": "The demo base model, from raw text.",
    "reward-model": "A small reward model from preference pairs.",
    "judge": "The second judge of tone that eval uses.",
}


@click.group(
    cls=LazyCommands,
    package=__name__,
    lazy=COMMANDS,
    on_interrupt="stopped; the same command continues where this one left off",
)
@click.version_option(package_name="sia-local", prog_name="sia-convert")
def main() -> None:
    """Train a token-level value model for a base model and a reward, and write it as GGUF.

    The chain is rollouts, score, train, export, quantize, verify; `make` runs all of it from one TOML file.
    """
