"""`sia-local inspect`: what a GGUF holds for this program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .resolve import file_named, model_paths

if TYPE_CHECKING:
    from .inspection import Inspection

_WIDEST = 100  # characters of a value; --json has the whole
_KINDS = {
    "base": "base model",
    "value": "value model with weights of its own",
    "value-adapter": "value model, LoRA adapter over its base",
    "value-head": "value model, head on its base's hidden states",
    "value-qhead": "value model without a decode, on its base's hidden states (Q-head)",
}


@click.command()
@click.argument("file", type=click.Path())
@click.option("-v", "--value", type=click.Path(), help="Also say whether this value model fits FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, long values whole.")
def inspect(file: str, value: str | None, as_json: bool) -> None:
    """What a GGUF holds for this program: FILE is a base or a value model, by its path, a name that `sia-local models`
    lists, or hf:owner/repo.

    With --value, both are loaded as a generation would load them; if they do not fit, the exit code is 2.
    """
    from ..errors import IncompatibleError
    from ..values.sources import ValuePath, parse_specs
    from .inspection import check_fit, inspect_file
    from .terminal import visible

    paths = [file_named(file)]
    if value is not None:
        specs = parse_specs(model_paths({"model": file, "value": [value]})[1])
        paths += [Path(spec.path) for spec in specs if isinstance(spec, ValuePath)]
    found = list(map(inspect_file, paths))
    if as_json:
        import json
        from dataclasses import asdict

        whole = [asdict(one) | {"path": str(one.path)} for one in found]
        click.echo(json.dumps(whole if len(whole) > 1 else whole[0], ensure_ascii=False, indent=2))
    else:
        click.echo(visible("\n\n".join(_describe(one) for one in found)))
    if len(paths) == 1:
        return
    if found[0].kind != "base":
        raise IncompatibleError(f"{file}: is a value model; expected a base model first, then --value with this file")
    check_fit(*paths)
    click.echo(f"\n{found[1].path.name} fits {found[0].path.name}", err=as_json)


def _describe(one: Inspection) -> str:
    layout = f", layout {one.layout}" if one.layout else ""
    rows: list[tuple[str, Any]] = [
        ("kind", _KINDS.get(one.kind, one.kind) + layout),
        ("name", one.name),
        ("architecture", one.architecture + (" (recurrent: a branch copies the state)" if one.recurrent else "")),
        ("size", _size(one)),
        ("quantization", one.quantization),
        ("layers × width", f"{one.n_layer} × {one.n_embd}" if one.n_layer and one.n_embd else None),
        ("trained context", f"{one.n_ctx_train} tokens" if one.n_ctx_train else None),
        ("vocabulary", f"{one.n_vocab} tokens, {one.tokenizer}" if one.n_vocab else None),
        ("its fingerprint", f"{one.vocab_sha256} (the same in models that fit)" if one.vocab_sha256 else None),
    ]
    if one.memory is not None:
        rows += [("a token", f"{_bytes(one.memory.kv_bytes)} of KV cache (f16)"), ("a branch", _branch(one))]
    if one.window:
        spared = f" ({_bytes(one.memory.window_bytes)} of each)" if one.memory and one.memory.window_bytes else ""
        rows.append(("window", f"{one.window} tokens; those behind it are kept{spared}, so that a retry can go back"))
    if one.kind == "base":
        rows.append(("placements", "separate, adapter, head, q-head, guides, Best-of-N"))
        rows.append(
            (
                "chat template",
                "yes" if one.chat_template else "no; `sia-local generate --raw` needs none",
            )
        )
        if one.reasoning is not None:
            rows.append(("reasoning", f"told apart from the answer ({one.reasoning})"))
    rows += sorted(one.sia.items())
    width = max(len(name) for name, shown in rows if shown is not None)
    lines = [f"  {name.ljust(width)}  {_one_line(shown)}" for name, shown in rows if shown is not None]
    return "\n".join([str(one.path), *lines])


def _size(one: Inspection) -> str:
    size, unit = one.size_bytes / 1e6, "MB"
    if size >= 1000:
        size, unit = size / 1000, "GB"
    files = f" in {one.parts} files" if one.parts > 1 else ""
    weights = f", {one.parameters / 1e6:.1f} M parameters" if one.parameters else ", no weights"
    return f"{size:.1f} {unit}{files}{weights}"


def _branch(one: Inspection) -> str:
    assert one.memory is not None
    if not one.recurrent:
        return "no memory but a token for each candidate; one decode a junction"
    state = _bytes(one.memory.state_bytes)
    return f"{state} of state for a sequence and each candidate; one decode a junction, two where tokens wait"


def _bytes(n: int) -> str:
    return f"{n} bytes" if n < 1 << 10 else f"{n / 1024:.1f} KiB" if n < 1 << 20 else f"{n / (1 << 20):.1f} MiB"


def _one_line(shown: Any) -> str:
    if isinstance(shown, float):
        return f"{shown:.6g}"
    text = str(shown).replace("\n", "⏎")
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
