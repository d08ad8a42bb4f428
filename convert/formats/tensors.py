"""Tensors of a Hugging Face folder under their canonical names, and its JSON files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sia_local.errors import DataError, ModelFileError
from sia_local.files import parse_json

from .arch import canonical


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file; DataError for anything else."""
    try:
        loaded = parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds no JSON object")
    return loaded


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """`torch.load` that runs no code of the file; ModelFileError for a file with anything but tensors."""
    import torch

    if not Path(path).is_file():
        raise ModelFileError(f"no file at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ModelFileError(
            f"{path} holds pickled code or is damaged and was not loaded: save plain tensors "
            "(torch.save of a dict of tensors, or safetensors)"
        ) from error


@dataclass
class TensorFolder:
    """Tensors of a folder of safetensors (or plain .bin) files under their canonical names."""

    folder: Path
    index: dict[str, tuple[Path, str]] = field(default_factory=dict)
    _loaded: dict[Path, dict[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], stem: str = "model") -> TensorFolder:
        """Indexes `<stem>*.safetensors`, else `pytorch_model*.bin` / `<stem>.bin`. ModelFileError if none."""
        from safetensors import SafetensorError, safe_open

        root = Path(folder)
        found = cls(root)
        for file in sorted(root.glob(f"{stem}*.safetensors")):
            try:
                with safe_open(file, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 (not a dict)
                        found.index[canonical(name)] = (file, name)
            except SafetensorError as error:
                raise ModelFileError(f"{file} is truncated or not a safetensors file") from error
        if not found.index:
            for file in sorted([*root.glob("pytorch_model*.bin"), *root.glob(f"{stem}.bin")]):
                found._loaded[file] = load_torch_file(file)
                found.index.update({canonical(name): (file, name) for name in found._loaded[file]})
        if not found.index:
            raise ModelFileError(f"{root} holds no {stem}*.safetensors: expected a folder with weights")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.index

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def shape(self, name: str) -> tuple[int, ...]:
        file, key = self.index[name]
        if file in self._loaded:
            return tuple(self._loaded[file][key].shape)
        from safetensors import safe_open

        with safe_open(file, framework="pt") as handle:
            return tuple(handle.get_slice(key).get_shape())

    def get(self, name: str) -> np.ndarray:
        """float32 copy of a tensor."""
        file, key = self.index[name]
        if file in self._loaded:
            tensor = self._loaded[file][key]
        else:
            from safetensors import safe_open

            with safe_open(file, framework="pt") as handle:
                tensor = handle.get_tensor(key)
        array: np.ndarray = tensor.float().numpy()
        return array
