"""Small charts as SVG text: lines with intervals and end labels, and a histogram. Light and dark by CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Scale = Callable[[float], float]
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "ring")
LEFT, RIGHT, TOP, BOTTOM = 62.0, 208.0, 14.0, 46.0

STYLE = """
.chart { --c-ink: #1c1b19; --c-soft: #5d5a54; --c-line: #d8d4cb; --c-paper: #fdfcf9; --c0: #4a4a4a; --c1: #0b61a4;
  --c2: #b3470e; --c3: #7a3b96; --c4: #1c7a4f; --c5: #a3296a; font: 12px system-ui, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { .chart { --c-ink: #eceae4; --c-soft: #aaa69d; --c-line: #3d3a35;
  --c-paper: #161513; --c0: #bdbdbd; --c1: #7cbcf0; --c2: #f2955c; --c3: #c99be0; --c4: #6cc79b; --c5: #ee8fc0; } }
.chart text { fill: var(--c-ink); } .chart .soft { fill: var(--c-soft); }
.chart .grid { stroke: var(--c-line); stroke-width: 1; } .chart .rule { stroke: var(--c-ink); stroke-dasharray: 2 3; }
.chart .box { fill: var(--c1); fill-opacity: .55; }
"""


@dataclass(frozen=True)
class Series:
    """Points (x, y, low, high) of one arm; `group` picks colour and marker, `dash` the line ("" = no line)."""

    label: str
    points: Sequence[tuple[float, float, float, float]]
    group: int = 0
    dash: str = "none"
    notes: Sequence[str] = ()
    bare: int = 0  # so many points at the start belong to the line, but to another series' markers


def lines(
    series: Sequence[Series], x_label: str, y_label: str, *, title: str, width: int = 720, height: int = 420
) -> str:
    """An SVG chart; every point carries its interval as a whisker and its note as a tooltip."""
    points = [p for s in series for p in s.points if all(map(math.isfinite, p))]
    if not points:
        return ""
    xs = ticks(min(0.0, *(p[0] for p in points)), max(p[0] for p in points))
    ys = ticks(min(p[2] for p in points), max(p[3] for p in points))

    def px(x: float) -> float:
        return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (width - LEFT - RIGHT)

    def py(y: float) -> float:
        return height - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (height - TOP - BOTTOM)

    parts = _frame(xs, ys, px, py, x_label, y_label, width, height)
    labels = []
    for s in series:
        kept = [(p, n) for p, n in zip(s.points, [*s.notes, *[""] * len(s.points)], strict=False) if _finite(p)]
        if not kept:
            continue
        colour = f"var(--c{s.group % 6})"
        if s.dash and len(kept) > 1:
            path = " ".join(f"{px(p[0]):.1f},{py(p[1]):.1f}" for p, _ in kept)
            dash = "" if s.dash == "none" else f' stroke-dasharray="{s.dash}"'
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for (x, y, low, high), note in kept[s.bare :]:
            tip = escape(f"{s.label}: {note or f'{y:.3f}'} [{low:.3f}, {high:.3f}]")
            parts.append(f"<g><title>{tip}</title>")
            if high > low:
                whisker = _line(px(x), py(low), px(x), py(high))
                parts.append(f'{whisker} stroke="{colour}" stroke-opacity=".55"/>')
            parts.append(_marker(MARKERS[s.group % len(MARKERS)], px(x), py(y), colour) + "</g>")
        x, y = kept[-1][0][:2]
        labels.append((py(y), px(x), s.label, colour))
    parts += _end_labels(labels, width, height)
    return _svg(parts, title, width, height)


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    x_label: str,
    *,
    title: str,
    rules: Sequence[tuple[float, str]] = (),
    width: int = 720,
    height: int = 240,
) -> str:
    """Bars of `counts` between `edges`, as shares of the sum, with dashed vertical rules (x, label)."""
    total = sum(counts)
    if not total:
        return ""
    shares = [100 * c / total for c in counts]
    xs, ys = ticks(min(edges), max(edges)), ticks(0.0, max(shares))

    def px(x: float) -> float:
        return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (width - LEFT - 20)

    def py(y: float) -> float:
        return height - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (height - TOP - BOTTOM - 14)

    parts = _frame(xs, ys, px, py, x_label, "% of tokens", width, height)
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        broad = max(0.5, px(high) - px(low) - 1)
        parts.append(
            f'<rect class="box" x="{px(low) + 0.5:.1f}" y="{py(share):.1f}" width="{broad:.1f}" '
            f'height="{py(0) - py(share):.1f}"><title>{low:.2f} to {high:.2f}: {share:.1f} %</title></rect>'
        )
    for index, (x, label) in enumerate(rules):
        top = TOP + 11 * (index % 2)
        parts.append(
            f'{_line(px(x), top + 3, px(x), py(0))} class="rule"/>'
            f'<text x="{px(x) + 3:.1f}" y="{top + 8:.1f}">{escape(label)}</text>'
        )
    return _svg(parts, title, width, height)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `wanted` steps apart."""
    if high - low <= 1e-8 * max(1.0, abs(low), abs(high)):  # nothing but rounding
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = size * next(m for m in (1, 2, 2.5, 5, 10) if m * size >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _finite(point: Sequence[float]) -> bool:
    return all(map(math.isfinite, point))


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'


def _frame(
    xs: list[float], ys: list[float], px: Scale, py: Scale, x_label: str, y_label: str, width: int, height: int
) -> list[str]:
    parts = []
    for y in ys:
        parts.append(f'{_line(px(xs[0]), py(y), px(xs[-1]), py(y))} class="grid"/>')
        parts.append(f'<text class="soft" x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in xs:
        at = f'x="{px(x):.1f}" y="{height - BOTTOM + 16:.1f}"'
        parts.append(f'<text class="soft" {at} text-anchor="middle">{x:g}</text>')
    middle = (px(xs[0]) + px(xs[-1])) / 2
    parts.append(f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    centre = (py(ys[0]) + py(ys[-1])) / 2
    parts.append(
        f'<text transform="translate(14 {centre:.1f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _marker(kind: str, x: float, y: float, colour: str, r: float = 4.5) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}"/>'
    if kind == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="var(--c-paper)" stroke="{colour}" stroke-width="2"/>'
    if kind == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" fill="{colour}"/>'
    if kind == "cross":
        path = f"M{x - r:.1f},{y - r:.1f}l{2 * r},{2 * r}m0,{-2 * r}l{-2 * r},{2 * r}"
        return f'<path d="{path}" stroke="{colour}" stroke-width="2.5"/>'
    corners = [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)] if kind == "triangle" else [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)]
    at = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{at}" fill="var(--c-paper)" stroke="{colour}" stroke-width="2"/>'


def _end_labels(labels: list[tuple[float, float, str, str]], width: int, height: int) -> list[str]:
    """Names at the right edge, pushed apart so that none covers another, with a thin line to their arm."""
    labels.sort()
    gap, last = 14.0, TOP - 4
    slots = []
    for y, *_ in labels:
        last = max(y, last + gap)
        slots.append(last)
    overflow = max(0.0, (slots[-1] if slots else 0) - (height - BOTTOM))
    if overflow:
        slots = [slot - overflow for slot in slots]
    x = width - RIGHT + 12
    return [
        f'{_line(from_x + 7, y, x - 3, slot)} stroke="{colour}" stroke-opacity=".35"/>'
        f'<text x="{x}" y="{slot + 4:.1f}" style="fill:{colour}">{escape(label)}</text>'
        for (y, from_x, label, colour), slot in zip(labels, slots, strict=True)
    ]


def _svg(parts: list[str], title: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>' + "".join(parts) + "</svg>"
    )


def standalone(svg: str) -> str:
    """The same chart as a file of its own, with its style and a background, for an <img>."""
    head, rest = svg.split(">", 1)
    box = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    background = f'<rect width="{box[0]}" height="{box[1]}" fill="var(--c-paper)"/>'
    return f'{head} width="{box[0]}" height="{box[1]}"><style>{STYLE}</style>{background}{rest}\n'
