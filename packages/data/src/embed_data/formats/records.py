"""Records: what the reader of every format yields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Record(NamedTuple):
    """One row as the file has it, or the reason why it cannot be read."""

    line: int
    """Line of the file it starts at, or number of the row in a table, both from 1."""
    value: Any = None
    """A JSON value: an object by column name, or a list of texts."""
    fault: str | None = None


Records = Iterator[Record]
