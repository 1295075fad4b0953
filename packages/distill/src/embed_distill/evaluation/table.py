"""The 2×2 table of a run's last evaluation: read off its metrics, for the terminal and for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from embed_core.events import RunEvent

FILE = "two-by-two.md"
"""What a run's output directory holds besides."""
WAYS = ("student-student", "student-teacher", "teacher-student", "teacher-teacher")
"""Which model encodes the queries, and which the documents."""
KEPT, KEPT_ASYMMETRIC = "kept", "kept-asymmetric"
"""Student by student, and student's queries on the teacher's documents, as shares of teacher by teacher."""


@dataclass(frozen=True)
class Square:
    """One evaluator's figures by one measure."""

    evaluator: str
    measure: str
    values: Mapping[str, float]
    """The value of each of :data:`WAYS` that there is."""

    def cell(self, queries: str, documents: str) -> str:
        """A figure, with its share of the teacher's."""
        value = self.values.get(f"{queries}-{documents}")
        if value is None:
            return "–"
        whole = self.values["teacher-teacher"]
        share = f" ({value / whole:.1%})" if whole > 0 and (queries, documents) != ("teacher", "teacher") else ""
        return f"{value:.4f}{share}"


def squares(metrics: Mapping[str, float]) -> list[Square]:
    """Those that kind ``two-by-two`` gave, in the order of the metrics."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in metrics.items():
        evaluator, way, measure = (*name.split("/", 2), "", "")[:3]
        if way in WAYS:
            found.setdefault((evaluator, measure), {})[way] = value
    return [Square(*key, values) for key, values in found.items() if "teacher-teacher" in values]


def table(square: Square) -> Table:
    """For the terminal."""
    from rich.table import Table

    shown = Table(title=f"{square.evaluator}: {square.measure} (share of the teacher kept)", title_justify="left")
    shown.add_column("queries by")
    for documents in ("student", "teacher"):
        shown.add_column(f"documents by {documents}", justify="right")
    for queries in ("student", "teacher"):
        shown.add_row(queries, *(square.cell(queries, documents) for documents in ("student", "teacher")))
    return shown


def markdown(square: Square) -> str:
    """For a file."""
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
    """Print the table of each evaluator's first measure, and write all of them into the output directory.

    A file that cannot be written is said so: the run itself has succeeded.
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
