"""Reports a person opens in a browser: one answer word by word, and an evaluation. One file, no requests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from ..errors import DataError
from ..files import finite

Record = Mapping[str, Any]
_NO_FACTS = ("prompt", "title", "kl_steering")
_BEFORE = 24  # characters of context in the table of junctions


def answer_report(trace_records: Sequence[Record], meta: Mapping[str, Any]) -> str:
    """HTML of one answer from its trace (`generate --trace`): entropy as shade, junctions, candidates.

    meta: `prompt` and `title` are shown by name, `kl_steering` (nats: the part of the KL that steering spent) in
    the summary, every other entry (model, value, gate, beta, seed …) as a fact. Raises DataError for a record that
    is no trace.
    """
    records = [_checked(index, record) for index, record in enumerate(trace_records)]
    top = max([r["entropy"] for r in records], default=0.0) or 1.0
    tokens, data, junctions, written, number = [], [], [], "", 0
    for index, record in enumerate(records):
        steered = bool(record["steered"])
        number += steered
        view = _Junction(record)
        lead, text = _split(record["text"], index == len(records) - 1)
        tokens.append(
            {
                "index": record["index"],
                "lead": lead,
                "text": text,
                "shade": max(0.0, record["entropy"]) / top,
                "steered": steered,
                "turned": view.turned,
                "number": number if steered else None,
                "spoken": _spoken(record, view, number),
            }
        )
        data.append(view.panel(number))
        if steered:
            junctions.append(view.row(number, written))
        written += record["text"]
    turned = sum(view["turned"] for view in tokens)
    known = all(r["kl"] is not None for r in records)
    spent = f", {meta['kl_steering']:.2f} of them by steering" if meta.get("kl_steering") is not None else ""
    kl = f"{math.fsum(r['kl'] for r in records):.2f} nats in all{spent}" if known else "not known"
    summary = (
        f"{len(records)} tokens, {number} of them junctions ({_share(number, len(records))}); steering changed the "
        f"likeliest word at {turned}. KL from the base: {kl}."
        if number
        else f"{len(records)} tokens, no junction: nothing was steered."
    )
    facts = [(key, value) for key, value in meta.items() if key not in _NO_FACTS and value is not None]
    return render(
        "answer.html",
        title=meta.get("title") or "Where the answer was turned",
        summary=summary,
        facts=facts,
        prompt=meta.get("prompt"),
        tokens=tokens,
        junctions=junctions,
        top=top,
        data=_json(data),
        script=markup(_template("answer.js")),
    )


class _Junction:
    """A trace record with the questions a reader asks of it."""

    def __init__(self, record: Record):
        self.record = record
        self.kl = "not known" if record["kl"] is None else f"{record['kl']:.3f}"
        self.nats = self.kl if record["kl"] is None else f"{self.kl} nats"
        self.candidates: list[Record] = list(record.get("candidates") or [])
        self.steered = bool(record["steered"])
        self.chosen = next((c for c in self.candidates if c["token"] == record["token"]), None)
        self.lean = max(self.candidates, key=lambda c: c["p_base"], default=None)
        self.likeliest = max(self.candidates, key=lambda c: c["p_steered"], default=None)
        valued = [c for c in self.candidates if c.get("value") is not None]
        self.best = max(valued, key=lambda c: c["value"], default=None)
        self.turned = self.steered and self.lean is not self.likeliest

    def story(self) -> str:
        if not self.steered:
            return "The base model was left alone here."
        if self.lean is None or self.likeliest is None or self.best is None:
            return "Steered; the trace holds no candidates."
        text = f"The base leaned to {_quoted(self.lean)} ({_percent(self.lean['p_base'])}); "
        text += f"the values favoured {_quoted(self.best)}. "
        if self.turned:
            text += (
                f"Steering made {_quoted(self.likeliest)} the likeliest, "
                f"from {_percent(self.likeliest['p_base'])} to {_percent(self.likeliest['p_steered'])}. "
            )
        else:
            text += "Steering left the likeliest word as it was. "
        if self.chosen is not None:
            text += f"Drawn: {_quoted(self.chosen)}."
        return text

    def panel(self, number: int) -> dict[str, Any]:
        title = f"Junction {number}" if self.steered else f"Token {self.record['index']}"
        return {
            "title": f"{title}: {_visible(self.record['text']) or '(no text)'}",
            "story": self.story(),
            "steered": self.steered,
            "cost": f"Entropy {self.record['entropy']:.2f} nats, KL of this step {self.nats}.",
            "candidates": [
                {
                    "text": _visible(c["text"]),
                    "p_base": c["p_base"],
                    "p_steered": c["p_steered"],
                    "value": c.get("value"),
                    "chosen": c["token"] == self.record["token"],
                }
                for c in self.candidates
            ],
        }

    def row(self, number: int, written: str) -> dict[str, Any]:
        def piece(candidate: Record | None) -> str:
            return _visible(candidate["text"]) if candidate is not None else "–"

        return {
            "number": number,
            "before": _visible(written[-_BEFORE:]),
            "lean": piece(self.lean),
            "best": piece(self.best),
            "chosen": piece(self.chosen) if self.chosen is not None else _visible(self.record["text"]),
            "p_base": _percent(self.chosen["p_base"]) if self.chosen is not None else "–",
            "p_steered": _percent(self.chosen["p_steered"]) if self.chosen is not None else "–",
            "entropy": self.record["entropy"],
            "kl": self.kl,
            "turned": self.turned,
        }


def _checked(index: int, record: Record) -> Record:
    missing = [key for key in ("index", "token", "text", "entropy", "steered", "kl") if key not in record]
    if missing:
        raise DataError(
            f"trace record {index} lacks {', '.join(missing)}; expected the lines that `generate --trace` writes"
        )
    return record


def _spoken(record: Record, view: _Junction, number: int) -> str:
    text = _visible(record["text"]).strip() or "white space"
    if not view.steered:
        return text
    return f"{text}, junction {number}" + (", turned" if view.turned else "")


def _split(text: str, last: bool) -> tuple[str, str]:
    """Spaces before a word stay unmarked; an end token has no text, and neither has half a character."""
    if not text:
        return "", "∎" if last else "\u2060"
    word = text.lstrip(" ")
    return (text[: len(text) - len(word)], word.replace("\n", "↵\n")) if word else ("", text)


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "⇥")


def _quoted(candidate: Record) -> str:
    text = _visible(candidate["text"])
    return f"“{text.strip() or text}”"


def _percent(p: float) -> str:
    return f"{100 * p:.0f}\u00a0%" if p >= 0.0995 else f"{100 * p:.1f}\u00a0%"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}\u00a0%" if whole else "0\u00a0%"


def _json(data: Any) -> Any:
    # `<` would let a text close the script element.
    return markup(json.dumps(finite(data), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"))


def markup(text: str) -> Any:
    """Text that `render` leaves as it is."""
    from markupsafe import Markup

    return Markup(text)


def _template(name: str) -> str:
    return (resources.files("sia_local.views") / "templates" / name).read_text(encoding="utf-8")


def render(name: str, **values: Any) -> str:
    """A template of this package with `values`, everything escaped that is not `markup`."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_template(name)).render(base_css=markup(_template("base.css")), **values)
