"""Tables of what a run changed: one per evaluator, ways of scoring down, measures across, before → after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

LABELS = {"multi": "multi-vector"}
"""Display names of the ways of scoring whose short name in the metrics is unclear."""

Grid = list[list[str]]
"""Rows of cells, starting with the header."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One evaluator's figures at the first and the last evaluation of a run."""

    evaluator: str
    ways: tuple[str, ...]
    measures: tuple[str, ...]
    first_step: int
    last_step: int
    before: Mapping[tuple[str, str], float]
    """(way, measure) → value at ``first_step``."""
    after: Mapping[tuple[str, str], float]
    """(way, measure) → value at ``last_step``; if a run was evaluated once, the same as ``before``."""

    @property
    def title(self) -> str:
        """``held-out: step 0 → step 300``."""
        steps = f"step {self.first_step}"
        if self.last_step != self.first_step:
            steps += f" → step {self.last_step}"
        return f"{self.evaluator}: {steps}"


def compare(evaluations: Mapping[int, Mapping[str, float]]) -> list[Comparison]:
    """Compare the first with the last step of ``evaluations`` (step → ``evaluator/way/measure`` → value).

    Evaluators, ways and measures come in the order in which they were reported.
    """
    if not evaluations:
        return []
    first, last = min(evaluations), max(evaluations)
    before, after = _by_evaluator(evaluations[first]), _by_evaluator(evaluations[last])
    comparisons = []
    for evaluator in dict.fromkeys([*before, *after]):
        old, new = before.get(evaluator, {}), after.get(evaluator, {})
        cells = dict.fromkeys([*old, *new])
        ways = tuple(dict.fromkeys(way for way, _ in cells))
        measures = tuple(dict.fromkeys(measure for _, measure in cells))
        comparisons.append(Comparison(evaluator, ways, measures, first, last, old, new))
    return comparisons


def split_key(key: str) -> tuple[str, str, str]:
    """Split ``evaluator/way/measure``; a metric without a way (``sts/spearman``) gets an empty one."""
    evaluator, _, rest = key.partition("/")
    way, _, measure = rest.rpartition("/")
    return evaluator, way, measure


def way_label(way: str) -> str:
    """The display name of a way of scoring."""
    return LABELS.get(way, way)


def grid(comparison: Comparison, width: int) -> Grid:
    """Cells of the table: ways × measures if that fits ``width`` columns, else one row per way and measure."""
    wide = _wide(comparison)
    return wide if grid_width(wide) <= width else _long(comparison)


def grid_width(rows: Grid) -> int:
    """Terminal columns that the rows take, with two blanks between cells."""
    return sum(_column_widths(rows)) + 2 * (len(rows[0]) - 1)


def plain_lines(comparison: Comparison, width: int = 120) -> list[str]:
    """The table as aligned text: its title, then its rows."""
    rows = grid(comparison, width - 2)
    widths = _column_widths(rows)
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [comparison.title, *("  " + line for line in lines)]


def rich_table(comparison: Comparison, width: int) -> Table:
    """The table for a terminal ``width`` columns wide, gains in green and losses in red."""
    header, *rows = grid(comparison, width)
    # Without a box three measures just fit 80 columns.
    table = Table(
        title=comparison.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    for index, name in enumerate(header):
        table.add_column(name, no_wrap=True, style="cyan" if index == 0 else None)
    for row in rows:
        table.add_row(*(_coloured(cell) for cell in row))
    return table


def _by_evaluator(metrics: Mapping[str, float]) -> dict[str, dict[tuple[str, str], float]]:
    found: dict[str, dict[tuple[str, str], float]] = {}
    for key, value in metrics.items():
        evaluator, way, measure = split_key(key)
        found.setdefault(evaluator, {})[way, measure] = value
    return found


def _wide(c: Comparison) -> Grid:
    cells = [[way_label(way), *(_change(c, way, measure) for measure in c.measures)] for way in c.ways]
    return [["", *c.measures], *cells]


def _long(c: Comparison) -> Grid:
    # One before → after cell per line fits any terminal.
    cells = [[way_label(way), measure, _change(c, way, measure)] for way in c.ways for measure in c.measures]
    return [["", "", "before → after" if c.last_step != c.first_step else "value"], *cells]


def _change(c: Comparison, way: str, measure: str) -> str:
    old, new = c.before.get((way, measure)), c.after.get((way, measure))
    if c.first_step == c.last_step:
        return _number(old)
    if old is None or new is None:
        return f"{_number(old)} → {_number(new)}"
    return f"{_number(old)} → {_number(new)} {new - old:+.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _column_widths(rows: Grid) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def _coloured(cell: str) -> Text:
    text = Text(cell)
    difference: Sequence[str] = cell.split(" ")[3:]
    if difference and difference[0].strip("+-0."):
        text.stylize("green" if difference[0].startswith("+") else "red", len(cell) - len(difference[0]))
    return text
