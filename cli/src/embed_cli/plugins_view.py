"""The table that ``embed plugins`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from embed_core.plugin.manager import PluginStatus

HEADER = ("plugin", "package", "version", "status", "cause")
NOTHING = "no plugin is installed: `pip install embed-bge` is a beginning"
STYLES = {"active": "bold green", "installed": "", "failed": "bold red"}


def print_plugins(console: Console, rows: Sequence[PluginStatus]) -> None:
    """Print a table on a terminal; elsewhere one aligned line per plugin, never cut, for ``grep`` and ``awk``."""
    if not rows:
        console.print(NOTHING, markup=False, highlight=False, soft_wrap=True)
    elif console.is_terminal:
        console.print(plugins_table(rows))
    else:
        for line in plugins_lines(rows):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def plugins_table(rows: Sequence[PluginStatus]) -> Table:
    """The plugins as a rich table; a long cause is folded, never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEADER[:4]:
        table.add_column(name, no_wrap=True)
    table.add_column(HEADER[4], overflow="fold")
    for row in rows:
        cells = [Text(cell) for cell in _cells(row)]
        cells[3].stylize(STYLES[row.status])
        table.add_row(*cells)
    return table


def plugins_lines(rows: Sequence[PluginStatus]) -> list[str]:
    """The plugins as aligned text, the header first; the cause comes last, on the same line."""
    cells = [HEADER, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cells(row: PluginStatus) -> tuple[str, str, str, str, str]:
    return row.name, row.package, row.version, row.status, row.cause
