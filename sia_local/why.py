"""`/why`: the junctions of an answer as tables that a person new to steering can read. Plain text, no colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .config import SiaConfig
from .decode import Candidates, Step
from .steering import softmax
from .trace import TokenText

_BEFORE = 24  # characters of the text before a junction
_WIDEST = 16  # characters of a token


def overview(steps: Sequence[Step], config: SiaConfig, text: TokenText, last: int = 6) -> str:
    """One row for each of the last junctions: what the base wanted, what the values said, what was chosen."""
    junctions = [i for i, step in enumerate(steps) if step.steered and step.candidates is not None]
    if not junctions:
        return _no_junction(steps, config)
    turned = sum(step.flipped for step in steps)
    rows = []
    for number, i in list(enumerate(junctions, 1))[-last:]:
        step, c = steps[i], _candidates(steps[i])
        alone = softmax(c.logits, config.sampling.temperature)
        favourite, chosen = int(np.argmax(c.logits)), np.flatnonzero(c.ids == step.token)
        # With a kept tail the token can be one beyond the candidates.
        chance = f"{_percent(alone[chosen[0]])} → {_percent(c.p_steered[chosen[0]])}" if len(chosen) else "not scored"
        said = _opinion(c, favourite, text)
        rows.append(
            [
                str(number),
                _before(steps[:i]),
                f"{shown(text(int(c.ids[favourite])))} {_percent(alone[favourite])}",
                said,
                shown(text(step.token)),
                chance,
                "turned" if step.flipped else "",
            ]
        )
    head = ["#", "after", "the base wanted", "the values said", "chosen", "its chance", ""]
    junction = "junction" if len(junctions) == 1 else "junctions"
    lines = [
        f"{len(junctions)} {junction} in {len(steps)} tokens. There the base was unsure"
        f"{_because(config)}, so the value model",
        f"scored its candidates and the likely ones it likes became likelier. {turned} of them got another favourite.",
        "",
        *_table(head, rows),
        "",
        f"/why {len(junctions)} shows every candidate of junction {len(junctions)}.",
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
    return "\n".join(
        [
            f"Junction {number}, after “{_before(steps[:at])}”: entropy {step.entropy:.2f} nats, "
            f"beta {step.beta:.3g}, KL {step.kl:.3f} nats",
            "",
            *_table(["", "candidate", "base alone", "value", "steered"], rows, right=(2, 3, 4)),
        ]
    )


def shown(text: str) -> str:
    """A token's text on one line: without its leading space, line breaks as ⏎, shortened."""
    text = _one_line(text).strip() or "␣"
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _candidates(step: Step) -> Candidates:
    assert step.candidates is not None
    return step.candidates


def _opinion(c: Candidates, favourite: int, text: TokenText) -> str:
    best = int(np.nanargmax(c.values))
    liked = f"{shown(text(int(c.ids[best])))} {c.values[best]:+.2f}"
    if best == favourite or np.isnan(c.values[favourite]):
        return liked
    return f"{liked}, {shown(text(int(c.ids[favourite])))} {c.values[favourite]:+.2f}"


def _because(config: SiaConfig) -> str:
    return f" (entropy {config.threshold:g} nats or more)" if config.gate == "entropy" else f" (gate {config.gate})"


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
    text = _one_line(text)
    return "…" + text[-_BEFORE:].lstrip() if len(text) > _BEFORE else text or "(start)"


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
