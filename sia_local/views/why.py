"""`/why`: the junctions of an answer, for a person new to steering. Plain text, no colour."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from ..config import SiaConfig
from ..records import Candidates, Step
from ..steering.tilt import softmax
from .trace import TokenText

_BEFORE, _LEAST_BEFORE = 24, 10  # characters of the text before a junction
_WIDEST = 16  # characters of a token
_PROSE = 80  # characters of a line of prose


def overview(steps: Sequence[Step], config: SiaConfig, text: TokenText, most: int = 6, width: int | None = None) -> str:
    """The junctions whose words owe most to steering, in the order of the text: what the base wanted, what the values
    said, what was chosen.

    A table, one row each; where that is wider than `width` characters, three lines each.
    """
    junctions = [i for i, step in enumerate(steps) if step.steered and step.candidates is not None]
    if not junctions:
        return _no_junction(steps, config)
    owed = sorted(range(len(junctions)), key=lambda j: _gained(steps[junctions[j]], config), reverse=True)
    rows = [_row(steps, j + 1, junctions[j], config, text) for j in sorted(owed[:most])]
    turned, better = sum(step.flipped for step in steps), "better" if config.beta >= 0 else "worse"
    n, example = len(junctions), owed[0] + 1
    told = f" Below, the {most} words that owe most to it." if n > most else ""
    prose = (
        f"{n} {'junction' if n == 1 else 'junctions'} in {len(steps)} tokens: {_where(config)}. There the value model "
        f"scored the candidates for the next word (more is better), and steering made the {better} ones likelier. At "
        f"{turned} (*) it changed the favourite.{told}"
    )
    lines = [
        *textwrap.wrap(prose, min(width or _PROSE, _PROSE)),
        "",
        *_fitting(rows, width),
        "",
        f"/why {example} shows every candidate of junction {example}, /report page.html all of them.",
    ]
    return "\n".join(lines)


def detail(steps: Sequence[Step], number: int, config: SiaConfig, text: TokenText) -> str:
    """Every candidate of one junction (1 = the first): chance without steering, value, chance with it."""
    junctions = [i for i, step in enumerate(steps) if step.steered and step.candidates is not None]
    if not junctions:
        return _no_junction(steps, config)
    if not 1 <= number <= len(junctions):
        return f"there is no junction {number}; the last answer has 1 to {len(junctions)}"
    at = junctions[number - 1]
    step, c = steps[at], _candidates(steps[at])
    alone = softmax(c.logits, config.sampling.temperature)
    rows = [
        [
            "→" if int(token) == step.token else "",
            shown(text(int(token))),
            _percent(alone[i]),
            "" if np.isnan(c.values[i]) else f"{c.values[i]:+.3f}",
            _percent(c.p_steered[i]),
        ]
        for i, token in enumerate(c.ids)
    ]
    if step.token not in c.ids:
        rows.append(["→", shown(text(step.token)), "", "", ""])
    lines = [
        f"Junction {number}, after “{_before(steps[:at])}”",
        f"entropy {step.entropy:.2f} nats, beta {step.beta:.3g}, KL {step.kl:.3f} nats",
        "",
        *_table(["", "candidate", "base alone", "value", "steered"], rows, right=(2, 3, 4)),
    ]
    # With other settings the chance is not that product.
    if config.sampling.temperature == 1 and config.clip is None and not np.isnan(c.values).any():
        lines += ["", "steered is base alone × e^(beta · value), scaled to 100 %; → was drawn."]
    return "\n".join(lines)


def shown(text: str) -> str:
    """A token's text on one line: without its leading space, line breaks as ⏎, shortened; signs in quotes."""
    text = _one_line(text).strip() or "␣"
    if not any(c.isalnum() for c in text):
        text = f"“{text}”"
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _candidates(step: Step) -> Candidates:
    assert step.candidates is not None
    return step.candidates


def _row(steps: Sequence[Step], number: int, at: int, config: SiaConfig, text: TokenText) -> list[str]:
    """Number, text before, the base's favourite, the values' opinion, the token drawn and its chance."""
    step, c = steps[at], _candidates(steps[at])
    alone = softmax(c.logits, config.sampling.temperature)
    favourite, chosen = int(np.argmax(c.logits)), np.flatnonzero(c.ids == step.token)
    # With a kept tail the token can be one beyond the candidates.
    chance = f"{_percent(alone[chosen[0]])} → {_percent(c.p_steered[chosen[0]])}" if len(chosen) else "not scored"
    return [
        f"{number}{'*' if step.flipped else ''}",
        _before(steps[:at]),
        f"{shown(text(int(c.ids[favourite])))} {_percent(alone[favourite])}",
        _opinion(c, favourite, text),
        shown(text(step.token)),
        chance,
    ]


def _gained(step: Step, config: SiaConfig) -> float:
    """By what factor steering made the token likelier that was drawn; 0 for one that was not scored."""
    c = _candidates(step)
    chosen = np.flatnonzero(c.ids == step.token)
    if not len(chosen):
        return 0.0
    alone = float(softmax(c.logits, config.sampling.temperature)[chosen[0]])
    return float(c.p_steered[chosen[0]]) / alone if alone else math.inf


def _fitting(rows: list[list[str]], width: int | None) -> list[str]:
    head = ["#", "after", "base wanted", "values said", "chosen", "its chance"]
    table = _table(head, rows)
    excess = 0 if width is None else max(map(len, table)) - width
    room = max(len(row[1]) for row in rows) - excess
    if excess <= 0:
        return table
    if room >= _LEAST_BEFORE:
        return _table(head, [[row[0], _end(row[1], room), *row[2:]] for row in rows])
    margin = max(len(row[0]) for row in rows) + 4
    return [
        line
        for number, before, wanted, said, chosen, chance in rows
        for line in (
            f"  {number}".ljust(margin) + f"after “{before}”",
            " " * margin + f"base: {wanted}; values: {said}",
            " " * margin + f"chosen: {chosen}, chance {chance}",
        )
    ]


def _opinion(c: Candidates, favourite: int, text: TokenText) -> str:
    best = int(np.nanargmax(c.values))
    liked = f"{shown(text(int(c.ids[best])))} {c.values[best]:+.2f}"
    if best == favourite or np.isnan(c.values[favourite]):
        return liked
    return f"{liked}, {shown(text(int(c.ids[favourite])))} {c.values[favourite]:+.2f}"


def _where(config: SiaConfig) -> str:
    if config.gate == "entropy":
        words = math.exp(min(config.threshold, 99))
        return (
            "where the base was unsure of the next word "
            f"(entropy {config.threshold:.3g} nats or more, as among {words:.2g} equally likely words)"
        )
    if config.gate == "rate":
        return f"the {100 * config.rate:.3g} % where the base was least sure"
    if config.gate == "gain":
        if config.gain_threshold is not None:
            return f"where steering changes {config.gain_threshold:.3g} nats or more"
        return f"about the {100 * config.rate:.3g} % where steering changes most"
    return "every token" if config.gate == "dense" else f"where the gate {config.gate} opened"


def _no_junction(steps: Sequence[Step], config: SiaConfig) -> str:
    if not steps:
        return "there is no answer yet; ask something first"
    if config.gate == "off":
        return "the last answer was not steered: steering is off (/sia on)"
    most = max(step.entropy for step in steps)
    return (
        f"no junction in the last answer: the base's entropy reached {most:.2f} nats at most"
        f"{', the threshold is ' + format(config.threshold, 'g') if config.gate == 'entropy' else ''}; "
        "lower it with /threshold, or steer a share of the tokens with /rate 0.3"
    )


def _before(steps: Sequence[Step]) -> str:
    text = ""
    for step in reversed(steps):
        text = step.text + text
        if len(text) > _BEFORE:
            break
    return _end(_one_line(text).strip(), _BEFORE + 1) or "(start)"


def _end(text: str, room: int) -> str:
    return text if len(text) <= room else "…" + text[len(text) - room + 1 :].lstrip()


def _one_line(text: str) -> str:
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _percent(p: float) -> str:
    return f"{100 * p:.0f} %" if p >= 0.0095 or p == 0 else "<1 %"


def _table(head: list[str], rows: list[list[str]], right: Sequence[int] = ()) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return ("  " + "  ".join(padded)).rstrip()

    return [line(head), *map(line, rows)]
