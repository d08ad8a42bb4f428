"""The `sia-local` command, one file a subcommand."""

from __future__ import annotations

import click

from .group import LazyCommands

COMMANDS = {
    "chat": "Chat with a steered model; /why shows what steering did.",
    "generate": "Generate from one prompt, steered at its junctions.",
    "inspect": "What a GGUF holds, and whether a base and a value model fit.",
    "learn": "Learn a steering file from two sentences, or from a value model.",
    "average": "Make one steering file of several that cost no decode.",
    "models": "List the models known by name, and what steers them.",
    "fetch": "Download a model by name, or from a hub.",
    "eval": "Compare steering arms on many prompts: reward, KL, intervals.",
    "quiz": "Ask questions of knowledge before and after steering.",
    "calibrate": "Choose threshold and beta for a base and a value model.",
    "serve": "Serve steered models to OpenAI clients, with a page to chat at.",
    "bench": "Measure speed and memory, steered and unsteered.",
}


@click.group(cls=LazyCommands, package=__name__, lazy=COMMANDS)
@click.version_option(package_name="sia-local", prog_name="sia-local")
def main() -> None:
    """Sparse inference-time alignment on llama.cpp.

    A quantized value model steers a quantized base model where the base is unsure of its next word. Without
    -m and -v the first model of `sia-local models` that is there is used. Begin with: sia-local chat
    """
