"""Converts sources into tables, once: the cache knows a file by its path, size, time and the way it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.datasets.index import store
from embed_core.datasets.row import Row
from embed_core.datasets.sources.base import RowSource
from embed_core.errors import DataError
from embed_data.formats.arrow import Table, TableWriter
from embed_data.formats.bad_rows import BadRows
from embed_data.formats.normalize import Normaliser, check_characters, most_frequent

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_data.formats.detect import Source
    from embed_data.formats.options import FileFields

VERSION = 2
"""Raised with every change of what the same file is read into."""
SKIPPED = "skipped.jsonl"
NOTICE = 500_000
"""Rows after which reading says how far it is."""


@dataclass(frozen=True)
class Facts:
    """Counts and facts that reading a source gave."""

    rows: int
    """Rows that can be used."""
    read: int
    """Rows in the file."""
    skipped: int
    """Bad rows, under ``on_bad_row: skip``."""
    reasons: dict[str, int] = field(default_factory=dict)
    below_score: int = 0
    """Rows left out by ``min_score``."""
    shapes: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    """Hex digest of the rows' content."""
    first_bad: str = ""
    """Place and reason of the first bad row."""


class TableRows(RowSource):
    """The rows of a source that has been read into a table."""

    def __init__(self, source: Source, table: Table, facts: Facts) -> None:
        self.source, self.table, self.facts = source, table, facts
        self.name = source.name
        named = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet", "arrow": "Arrow"}
        self.format = f"{named.get(source.format, 'Hugging Face dataset')}, {most_frequent(facts.shapes)}"
        left_out = {"bad": facts.skipped, "below min_score": facts.below_score}
        self.left_out = {why: rows for why, rows in left_out.items() if rows}

    @property
    def skipped_file(self) -> Path:
        """Lists the skipped rows, where there are any."""
        return self.table.folder / SKIPPED

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Row:
        """Row ``index``, validated when the table was made."""
        return self.table.row(index)

    def rows(self) -> Iterator[Row]:
        """All rows in order, read in batches."""
        return self.table.scan()

    def digest(self) -> str:
        """Hex digest of the rows' content."""
        return self.facts.digest

    def table_key(self) -> str | None:
        """A digest of the rows; how they were made does not matter any more."""
        return f"table|{self.digest()}"

    def notes(self) -> Sequence[str]:
        """How many rows are left out, and where they are listed."""
        facts = self.facts
        bad = f"{facts.skipped} of {facts.read} rows are bad and skipped, listed in {self.skipped_file}"
        below = f"{facts.below_score} of {facts.read} rows are below min_score"
        return [*([bad] if facts.skipped else []), *([below] if facts.below_score else [])]


def read_source(source: Source, how: FileFields, context: BuildContext, *, strict: bool = False) -> TableRows:
    """The source's rows as a table under ``context.cache_dir``; rank 0 makes it, the others wait.

    Raises DataError for a row that cannot be used (unless ``how.on_bad_row`` is ``skip``), for a source without any
    usable row, and where the cache cannot be written.
    """
    folder = context.cache_dir / "tables" / _key(source, how, strict)
    with context.first():
        facts = _known(folder)
        if facts is None and context.rank == 0:
            facts = _make(source, how, folder, context, strict)
    facts = facts or _known(folder)
    if facts is None:
        raise DataError(f"{source.place}: another rank could not read it, whose message says why")
    if not facts.rows:
        reasons = [f"{facts.skipped} bad, listed in {folder / SKIPPED}, the first: {facts.first_bad}"]
        below = [f"{facts.below_score} below min_score"] if facts.below_score else []
        left = "; ".join([*below, *(reasons if facts.skipped else [])]) or "it has none"
        raise DataError(f"{source.place}: none of its {facts.read} rows can be used: {left}")
    return TableRows(source, Table(folder, source.place, source.separator), facts)


def _key(source: Source, how: FileFields, strict: bool) -> str:
    options = how.model_dump(mode="json", include={"columns", "header", "on_bad_row", "min_score"})
    options |= {"strict": True} if strict else {}
    text = json.dumps([VERSION, source.format, source.place, source.stamp, options], sort_keys=True)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _known(folder: Path) -> Facts | None:
    """The facts of a table that is in the cache; ``None`` where it is not."""
    known = store.facts(folder)
    try:
        return None if known is None else Facts(**known)
    except TypeError:  # of another version
        return None


def _make(source: Source, how: FileFields, folder: Path, context: BuildContext, strict: bool) -> Facts:
    found: list[Facts] = []

    def convert(made: Path) -> dict[str, Any]:
        found.append(_convert(source, how, made, context, strict))
        return asdict(found[0])

    store.make(folder, f"the rows of {source.place}", convert)
    return found[0]


def _convert(source: Source, how: FileFields, folder: Path, context: BuildContext, strict: bool) -> Facts:
    normaliser = Normaliser(how.columns, strict=strict)
    with BadRows(how.on_bad_row, folder / SKIPPED) as bad, TableWriter(folder) as writer:
        read = below = 0
        for line, row in _rows(source, normaliser, bad):
            read += 1
            if read % NOTICE == 0:
                context.announce(f"data: {source.place}: {read:,} rows read")
            if row is None:
                continue
            if how.min_score is not None and _pair_score(row) < how.min_score:
                below += 1
                continue
            writer.add(row, line)
        return Facts(writer.rows, read, bad.count, bad.reasons, below, normaliser.shapes, writer.digest(), bad.first)


def _pair_score(row: Row) -> float:
    """The score of a (text, text, score) row; infinite for every other row."""
    return row.pos_scores[0] if row.pos_scores is not None and len(row.pos) == 1 and not row.neg else math.inf


def _rows(source: Source, normaliser: Normaliser, bad: BadRows) -> Iterator[tuple[int, Row | None]]:
    """Line and row; ``None`` for one that was bad."""
    assert source.records is not None, "a BEIR folder is read where it is"
    records: Any = source.records()
    with closing(records):
        for record in records:
            row: Row | None = None
            place, reason = f"{source.place}{source.separator}{record.line}", record.fault
            if reason is None:
                try:
                    row = normaliser.row(record.value, place)
                    check_characters(row, place)
                except DataError as error:
                    row, reason = None, str(error).removeprefix(f"{place}: ")
            if reason is not None:
                bad.add(place, reason, record.value)
            yield record.line, row
