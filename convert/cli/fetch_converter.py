"""`sia-convert fetch-converter`: llama.cpp's own converter into the user's cache."""

from __future__ import annotations

import click


@click.command("fetch-converter")
def fetch_converter() -> None:
    """Download llama.cpp's converter, where it is not there already, and print its folder.

    It is taken out of the source archive of the pinned llama-cpp-python (77 MB, by pip, compared with its checksum) and
    kept in the cache. Commands that need it fetch it by themselves; this is for machines that will be off line.
    SIA_CONVERTER names the source of another llama.cpp to use.
    """
    from ..formats.llamacpp import converter

    click.echo(converter())
