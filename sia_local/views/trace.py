"""What happened at each token, as plain data: trace records, JSON Lines, and the closing line of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import IO, Any, Protocol

from ..config import SiaConfig
from ..reasoning import ANSWER
from ..records import Stats, Step

TokenText = Callable[[int], str]


class Vocabulary(Protocol):
    def piece(self, token: int) -> bytes: ...
    def token_text(self, token: int) -> str: ...


def token_text(model: Vocabulary) -> TokenText:
    """Text of single tokens for display; control tokens by their name, part of a character as U+FFFD."""

    def text(token: int) -> str:
        return model.piece(token).decode("utf-8", "replace") or model.token_text(token)

    return text


def record(step: Step, text: TokenText) -> dict[str, Any]:
    """A step as one JSON object. Entropy and kl in nats; value is null where the value model was not asked."""
    candidates = []
    if (c := step.candidates) is not None:
        for i, token in enumerate(c.ids.tolist()):
            value = float(c.values[i])
            candidates.append(
                {
                    "token": token,
                    "text": text(token),
                    "logit": float(c.logits[i]),
                    "value": None if math.isnan(value) else value,
                    "p_base": float(c.p_base[i]),
                    "p_steered": float(c.p_steered[i]),
                }
            )
    return {
        "index": step.index,
        "token": step.token,
        "text": step.reasoning + step.text,
        **({"part": step.part} if step.part != ANSWER else {}),
        "entropy": step.entropy,
        "steered": step.steered,
        "kl": None if math.isnan(step.kl) else step.kl,
        "candidates": candidates,
    }


def write(out: IO[str], records: Iterable[dict[str, Any]]) -> None:
    """JSON Lines, one record a token."""
    for one in records:
        out.write(json.dumps(one, ensure_ascii=False) + "\n")


def stats_dict(stats: Stats) -> dict[str, float | None]:
    """Stats with the figures derived from them. Times in ms, KL in nats; what is not known is null."""
    whole = asdict(stats)
    del whole["began"]
    whole = {"tokens": whole.pop("steps"), **whole} | {
        "junction_rate": stats.junction_rate,
        "tokens_per_second": stats.tokens_per_second,
        "value_ms_per_junction": stats.value_ms_per_junction,
    }
    return {name: None if math.isnan(value) else value for name, value in whole.items()}


class Written(Protocol):
    """What the line behind a text reads of its Generation."""

    @property
    def stats(self) -> Stats: ...
    @property
    def texts(self) -> int: ...
    @property
    def remark(self) -> str: ...


def closing_line(written: Written, config: SiaConfig | None = None) -> str:
    """Speed, junctions, value cost and KL of a text in one line; of several texts, the KL of one on average.

    With the `config` it was made with, what was spent of its KL budget, too. Of nudging, whose KL nobody knows, the
    speed and its own remark.
    """
    stats, texts = written.stats, written.texts
    parts = [f"{texts} texts" if texts > 1 else "", f"{stats.tokens} tokens", f"{stats.tokens_per_second:.1f} tokens/s"]
    if not math.isnan(stats.kl):
        parts.append(f"{100 * stats.junction_rate:.1f} % junctions ({stats.junctions}, {stats.flips} turned)")
        if stats.junctions:
            parts.append(f"value {stats.value_ms_per_junction:.1f} ms/junction")
        kl, spent, cut = stats.kl / texts, stats.kl_steering / texts, stats.kl_truncation / texts
        unit = "nats a text" if texts > 1 else "nats"
        parts.append(f"KL {kl:.2f} {unit} (steering {spent:.2f}, truncation {cut:.2f})")
        parts += [
            f"KL budget: {one['spent']:.3g} of {one['allowed']:.3g} {'nats' if name == 'total' else 'nats a token'}"
            for name, one in (kl_budgets(stats, config, texts) if config is not None else {}).items()
        ]
    return " · ".join(filter(None, [*parts, written.remark]))


def short_line(written: Written) -> str:
    """The line under an answer in a chat, where /stats tells the rest."""
    stats = written.stats
    thought = f", {stats.thought} of them reasoning" if stats.thought else ""
    parts = [f"{stats.tokens} tokens{thought}", f"{stats.tokens_per_second:.0f} tokens/s"]
    if stats.junctions and not math.isnan(stats.kl):
        parts.insert(1, f"{stats.junctions} steered, {stats.flips} turned")
    return " · ".join([*parts, *filter(None, [written.remark.partition(";")[0]])])


def kl_budgets(stats: Stats, config: SiaConfig, texts: int = 1) -> dict[str, dict[str, float]]:
    """Allowed and spent nats of the budgets that are set: `total` a text, `per_token`.

    A budget counts what the values changed: KL from the same step without them.
    """
    out = {}
    if config.kl_total is not None:
        out["total"] = {"allowed": config.kl_total, "spent": stats.kl_steering / texts}
    if config.kl_per_token is not None:
        out["per_token"] = {"allowed": config.kl_per_token, "spent": stats.kl_steering / max(1, stats.tokens)}
    return out


def config_dict(config: SiaConfig) -> dict[str, Any]:
    """A configuration as plain data for JSON; the grammar by its presence only."""
    fields = asdict(config)
    fields["sampling"]["grammar"] = bool(config.sampling.grammar)
    return fields


def report_facts(config: SiaConfig) -> dict[str, Any]:
    """The settings a reader of a report wants to see, by name."""
    facts: dict[str, Any] = {"gate": config.gate}
    names: dict[str, tuple[str, ...]] = {
        "entropy": ("threshold",),
        "rate": ("rate",),
        "random": ("rate",),
        "first-n": ("first_n",),
        "ratio": ("ratio",),
        "varentropy": ("varentropy_threshold",),
        "gain": ("rate",) if config.gain_threshold is None else ("gain_threshold",),
    }
    for gate in config.gate.split("+"):
        facts |= {name: getattr(config, name) for name in names.get(gate, ())}
    beta = f"{config.beta:g}" + (" spreads" if config.beta_unit == "spread" else "")
    facts |= {"steered": config.steer} if config.steer != "all" else {}
    return facts | {"beta": beta, "candidates": config.k, "temperature": config.sampling.temperature}
