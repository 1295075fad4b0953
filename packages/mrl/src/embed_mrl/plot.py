"""Plots quality against bytes per vector, one curve per precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed_mrl.report import Point

MARKERS = {"fp32": "o", "int8": "s", "binary": "^"}


def draw(tables: Mapping[str, list[Point]], path: Path) -> None:
    """Write a PNG with one panel per evaluator, of its first measure. Needs matplotlib; no display."""
    # The object interface is used because pyplot would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(tables), 4.2), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (evaluator, points) in zip(panels, tables.items(), strict=True):
        _panel(axes, evaluator, points)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, evaluator: str, points: list[Point]) -> None:
    measure = next(iter(points[0].values))
    for precision in dict.fromkeys(point.precision for point in points):
        curve = sorted((point for point in points if point.precision == precision), key=lambda point: point.size)
        values = [point.values[measure] for point in curve]
        axes.plot([point.size for point in curve], values, marker=MARKERS[precision], label=precision)
        for point, value in zip(curve, values, strict=True):
            axes.annotate(str(point.dim), (point.size, value), textcoords="offset points", xytext=(0, 6), ha="center")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda size, place: f"{size:,g}")
    axes.margins(y=0.1)
    axes.set(title=evaluator, xlabel="bytes per vector (labels: dimensions)", ylabel=measure)
    axes.grid(alpha=0.3)
    axes.legend()
