"""`sia-local serve`: an OpenAI-compatible server with steering per request, and a page at its address."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from ..config import SiaConfig
from ..errors import IncompatibleError
from ..server.settings import ServerConfig
from .from_dataclass import build, options_for
from .options import model_options, preset_options
from .resolve import config_from, load_from, model_paths, profile_from, shipped_profile


@click.command(context_settings={"auto_envvar_prefix": "SIA"})
@model_options(without=("slots",))
@options_for(ServerConfig)
@preset_options
@options_for(SiaConfig)
def serve(**options: Any) -> None:
    """Serve steered models to OpenAI clients.

    Steering and sampling options are what a request gets that says nothing itself. Every option may be given as an
    environment variable: SIA_PORT, SIA_API_KEY, and so on. The address it prints is a page to chat at, which shows
    where steering acts.
    """
    settings = build(ServerConfig, options)
    config, profile = config_from(options), profile_from(options, shipped_profile(options))
    base, _ = model_paths(options)
    from ..llama.gguf import check_gguf

    check_gguf(base)
    try:
        from ..server.asking import Defaults
        from ..server.run import serve as run
    except ImportError as error:
        raise IncompatibleError(
            f"the server needs {error.name}, which is not installed; run: pip install 'sia-local[server]'"
        ) from None
    load = partial(load_from, {**options, "slots": settings.slots, "prompt_cache": settings.prompt_cache}, config)
    run(settings, load, Defaults(config, settings.max_tokens, profile), partial(click.echo, err=True))
