"""Reward sources: a name on the command line becomes a function from prompts and responses to floats.

Nothing here imports torch. Rewards that need it register a loader in the entry-point group
`sia_local.rewards`; the loader for `hf:some/model` is called with `some/model`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..errors import ConfigError, DataError, NumericError, SiaError
from ..files import file_mark, path_mark

ENTRY_POINT_GROUP = "sia_local.rewards"
RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@runtime_checkable
class Reward(Protocol):
    """A named reward: one finite float a response, in reward units, whatever the batch it came in."""

    @property
    def name(self) -> str: ...

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]: ...


@dataclass(frozen=True)
class FunctionReward:
    """A plain function with a name; checks what the function returns before anyone averages it."""

    name: str
    function: RewardFunction

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if len(prompts) != len(responses):
            raise ConfigError(
                f"reward '{self.name}' was given {len(prompts)} prompts and {len(responses)} responses, "
                "expected one prompt a response"
            )
        return check_rewards(self._call(prompts, responses), len(responses), self.name)

    def _call(self, prompts: Sequence[str], responses: Sequence[str]) -> Sequence[float]:
        try:
            return self.function(prompts, responses)
        except SiaError:
            raise
        except Exception as error:
            raise DataError(
                f"reward '{self.name}' failed{self._on_what(prompts, responses)}: {type(error).__name__}: {error}; "
                "mend the function, or see where with --debug"
            ) from error

    def _on_what(self, prompts: Sequence[str], responses: Sequence[str]) -> str:
        """The text that the function fails on by itself, if there is one."""
        for prompt, response in zip(prompts, responses, strict=True):
            try:
                self.function([prompt], [response])
            except Exception:
                text = response if len(response) <= 60 else f"{response[:60]}…"
                return f" on the response {text!r} to {prompt[:40]!r}"
        return f" on a batch of {len(responses)}"


def load_reward(spec: str) -> Reward:
    """The reward that `spec` names.

    `vader`, `plain`, `common`, `refusal`, `polarity[:FILE.npz]`, `pkg.module:name`, `url:ADDRESS`, `hf:MODEL`.

    Raises ConfigError when nothing answers to the name or what answers cannot be imported; the sentence
    names the extra that brings it. So it does for `data`, which scores no new text.
    """
    prefix, _, argument = spec.partition(":")
    if spec == "vader":
        return _vader()
    if spec in ("plain", "common"):
        from . import plain

        return plain.load_plain() if spec == "plain" else plain.load_common()
    if spec == "refusal":
        from .refusal import load_refusal

        return load_refusal()
    if prefix == "polarity":
        from .judge import PolarityJudge

        return PolarityJudge.load(argument or None)
    if prefix == "url":
        from .url import load_url

        return load_url(argument)
    if spec == "data":
        raise ConfigError(
            "reward 'data' means the rewards already stored with the trajectories, so it cannot score new text; "
            "name a reward that can, such as vader or package.module:name"
        )
    if ":" in spec:
        if (entry := _registered(prefix)) is not None:
            return _from_entry_point(entry, argument, spec)
        if prefix and argument:
            return _from_module(prefix, argument, spec)
    known = sorted({entry.name for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)})
    raise ConfigError(
        f"reward '{spec}' is not known; expected vader, plain, common, refusal, polarity, data, "
        "url:ADDRESS, package.module:name" + "".join(f" or {name}:ARGUMENT" for name in known)
    )


def check_reward_name(spec: str) -> None:
    """ConfigError where `load_reward` would raise one, without loading the model that a registered loader takes."""
    prefix, _, argument = spec.partition(":")
    if not (argument and _registered(prefix)):
        load_reward(spec)


def is_function(spec: str) -> bool:
    """Whether it is spelled as a function of a module, `package.module:name`."""
    prefix, _, argument = spec.partition(":")
    return bool(prefix and argument) and prefix not in ("polarity", "url") and _registered(prefix) is None


def module_file(spec: str) -> Path | None:
    """The file of the module whose function `spec` names; None for any other reward, or where there is no such file.
    What the module imports is not part of it."""
    if not is_function(spec):
        return None
    try:
        with _working_directory_importable():
            found = importlib.util.find_spec(spec.partition(":")[0])
    except Exception:  # whatever a package above it raises; load_reward says it
        return None
    return Path(found.origin) if found and found.origin and Path(found.origin).is_file() else None


def reward_mark(spec: str) -> str:
    """Tells a reward from another one under the same name: by the file of its function's module, or the file or folder
    that it names; empty for one that has none of its own."""
    if is_function(spec):
        module = module_file(spec)
        return file_mark(module) if module else ""
    return path_mark(spec.partition(":")[2])


def check_rewards(rewards: Sequence[Any], expected: int, name: str) -> list[float]:
    """The rewards as floats; NumericError for NaN or infinity, DataError for a wrong count or type."""
    try:
        values = [float(value) for value in rewards]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"reward '{name}' returned {type(rewards).__name__} that is not a list of numbers ({error}); "
            "it must return one float a response"
        ) from error
    if len(values) != expected:
        raise DataError(
            f"reward '{name}' returned {len(values)} values for {expected} responses; "
            "it must return one float a response"
        )
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise NumericError(
                f"reward '{name}' returned {value} for response {index}; it must be finite, "
                "so check what the reward does with that text"
            )
    return values


def _registered(prefix: str) -> metadata.EntryPoint | None:
    return next((entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP) if entry.name == prefix), None)


def _vader() -> Reward:
    try:
        module = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError as error:
        raise ConfigError(
            "reward 'vader' needs the package vaderSentiment, which is not installed: pip install 'sia-local[rewards]'"
        ) from error
    analyser = module.SentimentIntensityAnalyzer()

    def compound(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [analyser.polarity_scores(response)["compound"] for response in responses]

    return FunctionReward("vader", compound)


def _from_entry_point(entry: metadata.EntryPoint, argument: str, spec: str) -> Reward:
    try:
        loader = entry.load()
        reward = loader(argument)
    except ImportError as error:
        raise ConfigError(f"reward '{spec}' cannot be loaded ({error}): pip install 'sia-local[convert]'") from error
    return reward if isinstance(reward, Reward) else FunctionReward(spec, reward)


def _from_module(module_name: str, attribute: str, spec: str) -> Reward:
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except SiaError:
        raise
    except Exception as error:
        raise ConfigError(
            f"reward '{spec}': the module '{module_name}' cannot be imported "
            f"({type(error).__name__}: {error}); give package.module:name of a module that Python finds "
            "here or on PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(
            f"reward '{spec}': the module '{module_name}' has no function '{attribute}'; "
            "it must define (prompts, responses) -> list of floats"
        )
    return FunctionReward(spec, function)


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """A console script does not search the current folder, where a user's rewards.py usually lies."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
