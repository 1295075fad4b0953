"""Makes tables of size against quality from a run's metrics, for the terminal, for files and for the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embed_mrl.sizes import bytes_per_vector

if TYPE_CHECKING:
    from embed_core.events import RunEvent

TABLE, PLOT = "dimensions.md", "dimensions.png"
"""Files that are added to a run's output directory."""
_METRIC = re.compile(r"(?P<evaluator>[^/]+)/dense@(?P<dim>\d+)/(?P<precision>[^/]+)/(?P<measure>.+)")


@dataclass(frozen=True, slots=True)
class Point:
    """One way of storing vectors, and how well they retrieve."""

    dim: int
    precision: str
    size: int
    """Bytes of one vector."""
    values: Mapping[str, float]
    """Measure → value."""


def points(metrics: Mapping[str, float]) -> dict[str, list[Point]]:
    """Evaluator → its points in the order of the metrics, for evaluators of kind ``dimensions``; empty without any."""
    found: dict[str, dict[tuple[int, str], dict[str, float]]] = {}
    for name, value in metrics.items():
        match = _METRIC.fullmatch(name)
        if match is not None:
            key = int(match["dim"]), match["precision"]
            found.setdefault(match["evaluator"], {}).setdefault(key, {})[match["measure"]] = value
    return {
        evaluator: [Point(dim, precision, bytes_per_vector(dim, precision), values) for (dim, precision), values in by]
        for evaluator, by in ((name, table.items()) for name, table in found.items())
    }


def last(evaluations: Mapping[int, Mapping[str, float]]) -> dict[str, list[Point]]:
    """The points of the last evaluation of a run."""
    return points(evaluations[max(evaluations)]) if evaluations else {}


def rows(of: list[Point]) -> list[list[str]]:
    """A header and a row per point; the first measure also as a share of the first point's."""
    measures = list(of[0].values)
    whole = of[0].values[measures[0]]
    header = ["dimensions", "precision", "bytes", measures[0], "kept", *measures[1:]]
    cells = [header]
    for point in of:
        first = point.values[measures[0]]
        kept = f"{first / whole:.1%}" if whole > 0 else "-"
        others = [f"{point.values[measure]:.4f}" for measure in measures[1:]]
        cells.append([str(point.dim), point.precision, f"{point.size:,}", f"{first:.4f}", kept, *others])
    return cells


def markdown(of: list[Point]) -> str:
    """:func:`rows` as a table."""
    header, *body = rows(of)
    lines = ["| " + " | ".join(header) + " |", "|---|---" + "|---:" * (len(header) - 2) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def plain(of: list[Point]) -> list[str]:
    """:func:`rows` as aligned lines."""
    cells = rows(of)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def report(event: RunEvent) -> None:
    """Print the tables of a run's last evaluation and write them, and the plot, into its output directory.

    A file that cannot be written is only reported, because the run itself has succeeded.
    """
    tables = last(event.evaluations)
    for evaluator, of in tables.items():
        print(f"{evaluator}: size against quality", *(f"  {line}" for line in plain(of)), sep="\n", flush=True)
    if not tables:
        return
    text = "\n\n".join(f"## {evaluator}\n\n{markdown(of)}" for evaluator, of in tables.items())
    try:
        (event.output_dir / TABLE).write_text(f"# Size against quality\n\n{text}\n", encoding="utf-8")
        print(f"tables: {event.output_dir / TABLE}; {drawn(tables, event.output_dir)}", flush=True)
    except OSError as error:
        print(f"the tables and the plot could not be written: {error}", flush=True)


def drawn(tables: Mapping[str, list[Point]], directory: Path) -> str:
    """Draw :data:`PLOT` into ``directory``; returns a line that says what was done, or what it takes."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no plot: `pip install embed-mrl[plot]` draws one"
    from embed_mrl.plot import draw

    draw(tables, directory / PLOT)
    return f"plot: {directory / PLOT}"
