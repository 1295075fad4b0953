"""The 2×2 table of a run's last asymmetric evaluation, built from its metrics, for the terminal and for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from embed_core.events import RunEvent

FILE = "two-by-two.md"
"""Name of the file in the run's output directory that holds the tables."""
WAYS = ("student-student", "student-teacher", "teacher-student", "teacher-teacher")
"""The pairs of encoders: the first name encodes the queries, the second the documents."""
KEPT, KEPT_ASYMMETRIC = "kept", "kept-asymmetric"
"""Prefixes of the metrics that give student-student, and student-teacher, as shares of teacher-teacher."""


@dataclass(frozen=True)
class Square:
    """One evaluator's four figures of one measure."""

    evaluator: str
    measure: str
    values: Mapping[str, float]
    """Figures by pair of encoders; pairs of :data:`WAYS` that were not evaluated are absent."""

    def cell(self, queries: str, documents: str) -> str:
        """One figure as text, with its share of teacher-teacher."""
        value = self.values.get(f"{queries}-{documents}")
        if value is None:
            return "–"
        whole = self.values["teacher-teacher"]
        share = f" ({value / whole:.1%})" if whole > 0 and (queries, documents) != ("teacher", "teacher") else ""
        return f"{value:.4f}{share}"


def squares(metrics: Mapping[str, float]) -> list[Square]:
    """The tables found in the metrics that kind ``two-by-two`` reported, in the order of the metrics."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in metrics.items():
        evaluator, way, measure = (*name.split("/", 2), "", "")[:3]
        if way in WAYS:
            found.setdefault((evaluator, measure), {})[way] = value
    return [Square(*key, values) for key, values in found.items() if "teacher-teacher" in values]


def table(square: Square) -> Table:
    """The table as rich shows it in the terminal."""
    from rich.table import Table

    shown = Table(title=f"{square.evaluator}: {square.measure} (share of the teacher kept)", title_justify="left")
    shown.add_column("queries by")
    for documents in ("student", "teacher"):
        shown.add_column(f"documents by {documents}", justify="right")
    for queries in ("student", "teacher"):
        shown.add_row(queries, *(square.cell(queries, documents) for documents in ("student", "teacher")))
    return shown


def markdown(square: Square) -> str:
    """The table as Markdown."""
    lines = [
        f"## {square.evaluator}: {square.measure}",
        "",
        "| queries by | documents by student | documents by teacher |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {queries} | {square.cell(queries, 'student')} | {square.cell(queries, 'teacher')} |"
        for queries in ("student", "teacher")
    ]
    return "\n".join(lines)


def report(event: RunEvent) -> None:
    """Print the table of each evaluator's first measure, and write all tables into the output directory.

    If the file cannot be written, a line says so and the run still counts as a success.
    """
    last = event.evaluations[max(event.evaluations)] if event.evaluations else {}
    found = squares(last)
    if not found:
        return
    from rich.console import Console

    console, shown = Console(), set[str]()
    for square in found:
        if square.evaluator not in shown:
            shown.add(square.evaluator)
            console.print(table(square))
    text = "# Student and teacher\n\n" + "\n\n".join(map(markdown, found)) + "\n"
    try:
        (event.output_dir / FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        console.print(f"the table could not be written: {error}")
