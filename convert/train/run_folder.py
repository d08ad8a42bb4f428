"""The folder of a run: the best model so far, the state that a stopped run goes on from, and the report."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sia_local.errors import ConfigError, ModelFileError
from sia_local.files import atomic_write, finite, sweep, together
from sia_local.progress import duration

from ..data.examples import Split
from ..formats.checkpoint import META_FILE, ValueCheckpoint, ValueMeta
from ..formats.tensors import load_torch_file
from ..provenance import provenance
from .config import MOVING, Place, TrainConfig
from .model import save_changes
from .shared import SharedModel

# What a killed run may have been writing.
WRITTEN = (
    "state.pt", META_FILE, "head.safetensors", "training.json", "tuned.safetensors",
    "lora_weights/adapter_model.safetensors", "lora_weights/adapter_config.json",
)  # fmt: skip

# Of state.pt: what it holds, and under which names.
LAYOUT = 2


def key_of(config: TrainConfig) -> str:
    """Tells runs apart: a state is taken up by a run of the same key alone."""
    return f"{LAYOUT}-{config.fingerprint()}"


@dataclass
class RunFolder:
    """Every process calls these, for it may hold a piece; the first one writes and reads, so machines need share no
    folder. key: of key_of()."""

    config: TrainConfig
    key: str
    accelerator: Any
    shared: SharedModel

    @property
    def path(self) -> Path:
        return Path(self.config.out)

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def clear(self) -> None:
        """Removes what a killed run was writing."""
        for name in WRITTEN if self.main else ():
            sweep(self.path / name)

    def save_model(self, split: Split, tokens: int, template: str, stop_token: int) -> None:
        """Writes the model as it is now, after so many response tokens, as the folder's value model."""
        c, weights = self.config, self.shared.weights()
        if not self.main:
            return
        meta = ValueMeta(
            backbone=str(Path(c.backbone).resolve()),
            placement=c.placement,
            tune=c.tuning,
            layers=c.layers,
            reward_mean=split.mean,
            reward_std=split.std,
            reward_name=c.reward_name,
            loss=f"{c.loss} {c.lam:g}" if c.loss in MOVING else c.loss,
            train_tokens=tokens,
            prompt_template=template,
            base_name=c.base_name,
            stop_token=stop_token,
            made_by=provenance(),
        )
        with together(self.path, META_FILE) as room:
            save_changes(self.shared.model, weights, room, c.tuning)
            ValueCheckpoint(room, meta, self.shared.model.head.to_head()).save()

    def save_state(self, place: Place) -> None:
        """Writes `state.pt`: weights, optimiser, random generators and place."""
        device = self.accelerator.device
        random = [torch.get_rng_state()]
        if device.type == "cuda":
            random.append(torch.cuda.get_rng_state(device))
        everyone = [random]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            everyone = gather_object([random])
        model = self.shared.save(self.path, place.total)
        if self.main:
            state = {
                "key": self.key,
                "model": model,
                "random": everyone,
                "place": json.dumps(dataclasses.asdict(place)),
            }
            buffer = io.BytesIO()
            torch.save(state, buffer)
            with atomic_write(self.path / "state.pt", "wb") as handle:
                handle.write(buffer.getvalue())
        self.accelerator.wait_for_everyone()
        self.shared.body.tidy(self.path, place.total)

    def restore(self, anew: bool) -> Place | None:
        """Takes up `state.pt`, if there is one, and says where it stands.

        ConfigError for one of another run or a damaged one; with `anew` it counts as none.
        """
        state = self._read(anew) if self.main else None
        told: list[Any] = [{name: state.get(name) for name in ("key", "random", "place")} if state else None]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(told)
        if (found := told[0]) is None or (found["key"] != self.key and anew):
            return None
        if found["key"] != self.key:
            raise ConfigError(
                f"{self.path} holds a run with other settings or data, or of another version: name another output, or "
                "begin again with --restart"
            )
        self.shared.load(state["model"] if state else None, self.path)
        random = found["random"][self.accelerator.process_index % len(found["random"])]
        torch.set_rng_state(random[0])
        if self.accelerator.device.type == "cuda" and len(random) > 1:
            torch.cuda.set_rng_state(random[1], self.accelerator.device)
        place = Place(**json.loads(found["place"]))
        if self.main:
            print(f"continuing at epoch {place.epoch + 1}, step {place.step}", flush=True)
        return place

    def _read(self, anew: bool) -> dict[str, Any] | None:
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            return dict(load_torch_file(path))
        except ModelFileError as error:
            if anew:
                return None
            raise ConfigError(f"{path} is damaged: begin again with --restart, or name another output") from error

    def finish(self, place: Place, split: Split) -> dict[str, Any]:
        """Writes training.json and loss.png and returns the report; of the first process alone."""
        from .plot import loss_curve

        c = self.config
        if (self.path / META_FILE).is_file():  # maybe written elsewhere, or under other names
            ValueCheckpoint.open(self.path, Path(c.backbone).resolve()).called(c.reward_name, c.base_name).save()
        best = min(place.history, key=lambda h: h["loss"]) if place.history else {}
        report = {
            "config": dataclasses.asdict(c),
            "best": best,
            "epochs": place.history,
            "steps": place.total,
            "seconds": round(place.seconds, 1),
            "response_tokens": place.tokens,
            "training_trajectories": len(split.train),
            "held_out_trajectories": len(split.held_out),
            "dropped": split.dropped,
            "reward_mean": split.mean,
            "reward_std": split.std,
            "processes": self.accelerator.num_processes,
            "stopped_early": place.stale >= c.patience,
            "loss_curve": place.curve,
            **provenance(),
        }
        with atomic_write(self.path / "training.json") as handle:
            json.dump(finite(report), handle, indent=1, allow_nan=False)
        loss_curve(place.curve, place.history, self.path / "loss.png")
        print(f"best epoch {int(best.get('epoch', 0))}, {duration(place.seconds)} of training; wrote {self.path}")
        return report
