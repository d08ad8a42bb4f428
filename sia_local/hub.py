"""GGUF files of a Hugging Face hub: `hf:owner/repo[:quant]`, as llama-cli's -hf.

Cache, progress, token (HF_TOKEN) and endpoint (HF_ENDPOINT) are those of `huggingface_hub`, the extra `hub`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .errors import ConfigError, ModelFileError

PREFIX = "hf:"
DEFAULT_QUANT = "Q4_K_M"
_SPEC = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::(.+))?")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)


def parse(spec: str) -> tuple[str, str | None]:
    """Repository and quantization (or file) that `hf:owner/repo[:quant]` names. Raises ConfigError."""
    if (found := _SPEC.fullmatch(spec)) is None:
        raise ConfigError(
            f"{spec!r} was given; expected hf:owner/repo, or hf:owner/repo:quant such as hf:owner/repo:Q8_0"
        )
    return found[1], found[2]


def choose(files: Sequence[str], quant: str | None, repo: str) -> list[str]:
    """The files of a repository to fetch: one, or all parts of a split one, the first part first.

    Without a quant Q4_K_M, else the first. Raises ModelFileError.
    """
    models = sorted(f for f in files if f.lower().endswith(".gguf") and not _NO_MODEL.search(f.rpartition("/")[2]))
    starts = [f for f in models if (part := _SPLIT.search(f)) is None or part[1] == "00001"]
    if not starts:
        raise ModelFileError(
            f"{PREFIX}{repo}: has no GGUF model among its {len(files)} files; name a repository that has"
        )
    fitting = [f for f in starts if f == quant or _names(quant or DEFAULT_QUANT, f)]
    if not fitting and quant is not None:
        raise ModelFileError(f"{PREFIX}{repo}: has no {quant!r}; name one of {', '.join(starts)}")
    first = (fitting or starts)[0]
    if (split := _SPLIT.search(first)) is None:
        return [first]
    parts = [f"{first[: split.start()]}-{n:05}-of-{split[2]}.gguf" for n in range(1, int(split[2]) + 1)]
    if missing := [part for part in parts if part not in models]:
        raise ModelFileError(f"{PREFIX}{repo}: {first} is split, and {missing[0]} is not there; name another file")
    return parts


def _names(quant: str, file: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(quant)}(?![a-z0-9_])", file, re.IGNORECASE) is not None


@cache
def fetch(spec: str) -> Path:
    """The local file of `hf:owner/repo[:quant]`, downloaded where the cache has not got it; without network the cached
    one. Raises ConfigError, ModelFileError with a sentence."""
    repo, quant = parse(spec)
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ConfigError(
            f"{spec} needs the package huggingface_hub, which is not installed: pip install 'sia-local[hub]'"
        ) from None
    with _one_sentence(spec, repo):
        api = hub.HfApi()
        paths = [api.hf_hub_download(repo, file) for file in choose(_files(api, repo), quant, repo)]
    return Path(paths[0])


def _files(api: Any, repo: str) -> list[str]:
    """Names of the files in a repository; without network, of those in the cache."""
    try:
        return list(api.list_repo_files(repo))
    except Exception as error:
        if _status(error) is not None:
            raise
        try:
            folder = Path(api.snapshot_download(repo, local_files_only=True))
        except Exception:
            raise error from None
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def _one_sentence(spec: str, repo: str) -> Iterator[None]:
    """What goes wrong between here and a hub, whatever the HTTP library, as ModelFileError."""
    from huggingface_hub import constants, errors

    try:
        yield
    except (ConfigError, ModelFileError):
        raise
    except errors.GatedRepoError:
        raise ModelFileError(
            f"{spec}: is gated; accept its terms at {constants.ENDPOINT}/{repo}, and give your token in HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError as error:
        code = _status(error)
        raise ModelFileError(
            f"{spec}: the hub has no such repository, or none that you may read (HTTP {code}); check the name, and for "
            "a private one give your token in HF_TOKEN"
        ) from None
    except errors.HFValidationError as error:
        raise ConfigError(f"{spec}: is not a repository's name ({error}); expected hf:owner/repo") from None
    except Exception as error:
        code = _status(error) or _status(error.__cause__)
        away = isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)) or "Connect" in type(error).__name__
        if code in (401, 403):
            why, do = f"the hub refuses (HTTP {code})", "give a token that may read it in HF_TOKEN"
        elif code == 404:
            why, do = "the hub has not got the file that it lists (HTTP 404)", "name another quantization"
        elif code is not None:
            why, do = f"the hub answered with HTTP {code}", "try again later"
        elif away:
            why, do = f"{constants.ENDPOINT} cannot be reached and the file is not in the cache", "check the network"
        else:
            why, do = f"the transfer broke off ({type(error).__name__})", "run again, it goes on where it stopped"
        raise ModelFileError(f"{spec}: {why}; {do}") from error
