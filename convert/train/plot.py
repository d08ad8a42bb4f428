"""Plots, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sia_local.files import aside


def loss_curve(curve: Sequence[Sequence[float]], history: Sequence[dict[str, float]], path: Path) -> None:
    """Training loss by optimiser step, smoothed over 1/50 of the run, and held-out loss at the ends of epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    steps = [point[0] for point in curve]
    losses = [point[1] for point in curve]
    window = max(1, len(losses) // 50)
    smooth = [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
    axes.plot(steps, smooth, label="training", color="#4477aa")
    if history and steps:
        ends = [steps[-1] * entry["epoch"] / history[-1]["epoch"] for entry in history]
        axes.plot(ends, [entry["loss"] for entry in history], "o-", label="held out", color="#ee6677")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (standardised reward)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with aside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
