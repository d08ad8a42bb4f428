"""Trains a small reward model on preference pairs: a linear score on a frozen backbone's last hidden state.

What comes out is a Hugging Face sequence classifier with one output, which `--reward hf:FOLDER` reads.
Bradley and Terry (1952): the chosen answer wins with probability sigmoid(r(chosen) - r(rejected)).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sia_local.errors import ConfigError, DataError
from sia_local.files import together
from sia_local.progress import Progress

from ..data.hf_reward import longest, render, token_rows
from ..data.preferences import Pair
from ..formats.hf import load_whole


def train_reward_model(
    backbone: str | os.PathLike[str],
    pairs: Sequence[Pair],
    out: str | os.PathLike[str],
    held_out: float = 0.2,
    max_length: int = 512,
    batch: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """Writes the reward model to the folder `out`; returns the figures of the fit.

    The held-out pairs share no dialogue with the training ones, and a quarter of the latter choose the strength of
    the ridge. Of more than `max_length` tokens the first and the end are read, as `hf:` reads the model. Errors:
    ConfigError for a backbone that cannot be loaded, DataError for too few pairs.
    """
    import transformers

    if not 0.0 < held_out < 1.0:
        raise ConfigError(f"--held-out {held_out}: expected a share between 0 and 1")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it would warn that the score is new
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(backbone), trust_remote_code=False)
        kind = transformers.AutoModelForSequenceClassification
        model = load_whole(kind, str(backbone), "score", num_labels=1, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone {str(backbone)!r} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id

    which = split([pair.messages for pair in pairs], held_out, seed)
    texts = [render(tokenizer, chat) for pair in pairs for chat in pair.chats()]
    room = min(max_length, longest(model, tokenizer))
    states = last_states(model, token_rows(tokenizer, texts, room, "reward-model"), batch)
    differences = states[0::2] - states[1::2]
    scale = differences[which > 0].std(0) + 1e-6
    rows = differences / scale
    found = {ridge: fit(rows[which == 2], ridge) for ridge in (1e-3, 1e-2, 1e-1, 1.0)}
    ridge = min(found, key=lambda r: loss(rows[which == 1], found[r]))
    weight = fit(rows[which > 0], ridge)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy((weight / scale).astype(np.float32))[None])
    with together(out, "config.json") as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    longer = np.array([len(pair.chosen) > len(pair.rejected) for pair in pairs])[which == 0]
    return {
        "pairs": float((which > 0).sum()),
        "held_out": float((which == 0).sum()),
        "ridge": ridge,
        "accuracy_train": float((rows[which > 0] @ weight > 0).mean()),
        "accuracy": float((rows[which == 0] @ weight > 0).mean()),
        "accuracy_longer": float(max(longer.mean(), 1 - longer.mean())),
        "loss": loss(rows[which == 0], weight),
    }


def split(dialogues: Sequence[object], held_out: float, seed: int) -> np.ndarray:
    """0 for what is held out, 1 for what chooses the ridge, 2 for the rest; equal dialogues get the same."""
    distinct = list(dict.fromkeys(dialogues))
    first = max(1, round(len(distinct) * held_out))
    second = first + max(1, (len(distinct) - first) // 4)
    if second >= len(distinct):
        raise DataError(f"pairs over {len(distinct)} dialogues are too few to hold some out: give a hundred or more")
    order = np.random.default_rng(seed).permutation(len(distinct))
    groups = np.digitize(np.argsort(order), [first, second])
    found = dict(zip(distinct, groups, strict=True))
    return np.array([found[dialogue] for dialogue in dialogues])


@torch.no_grad()
def last_states(model: Any, rows: Sequence[Sequence[int]], batch: int) -> np.ndarray:
    """The final normed hidden state of the last token of each row of ids, float64 [n, n_embd]."""
    backbone = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    backbone.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.zeros((len(rows), model.config.hidden_size))
    progress = Progress("hidden states", len(rows))
    for at in range(0, len(order), batch):
        part = [rows[i] for i in order[at : at + batch]]
        # Padding stands behind what is read, and attention is causal: any token will do.
        ids = torch.zeros((len(part), max(map(len, part))), dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row)] = torch.tensor(row)
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in part])
        out[order[at : at + batch]] = states[torch.arange(len(part)), last].double().numpy()
        progress.update(len(part))
    return out


def loss(rows: np.ndarray, weight: np.ndarray) -> float:
    """Mean of -log sigmoid(rows @ weight)."""
    return float(np.logaddexp(0.0, -rows @ weight).mean())


def fit(rows: np.ndarray, ridge: float, steps: int = 50) -> np.ndarray:
    """The weight that minimises loss + ridge |w|^2 / 2, by Newton's method: no intercept, so no order of a pair."""
    weight = np.zeros(rows.shape[1])
    for _ in range(steps):
        wrong = 1.0 / (1.0 + np.exp(np.clip(rows @ weight, -500, 500)))
        gradient = ridge * weight - rows.T @ wrong / len(rows)
        hessian = (rows * (wrong * (1.0 - wrong))[:, None]).T @ rows / len(rows)
        hessian[np.diag_indices_from(hessian)] += ridge
        step = np.linalg.solve(hessian, gradient)
        weight -= step
        if np.abs(step).max() < 1e-8:
            break
    return weight
