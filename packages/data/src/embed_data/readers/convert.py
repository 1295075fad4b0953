"""Sources into tables, once: the cache knows a file by its path, size, time and the way it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.datasets.rows import Row
from embed_core.datasets.sources import BeirRows
from embed_core.errors import DataError
from embed_data.readers import cache
from embed_data.readers.bad_rows import BadRows
from embed_data.readers.normal import Normaliser
from embed_data.readers.table import Table, TableWriter

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_data.readers.config import FileFields
    from embed_data.readers.detect import Source

VERSION = 2
"""Raised with every change of what the same file is read into."""
SKIPPED = "skipped.jsonl"
NOTICE = 500_000
"""Rows after which reading says how far it is."""


@dataclass(frozen=True)
class Facts:
    """What reading a source showed."""

    rows: int
    """That can be used."""
    read: int
    """That are in the file."""
    skipped: int
    """Bad rows, under ``on_bad_row: skip``."""
    reasons: dict[str, int] = field(default_factory=dict)
    below_score: int = 0
    """Left out by ``min_score``."""
    shapes: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    """Of the rows' content."""
    first_bad: str = ""
    """Place and reason of the first bad row."""


@dataclass(frozen=True)
class Read:
    """A source that has been read."""

    source: Source
    table: Table
    facts: Facts

    @property
    def skipped_file(self) -> Path:
        """Lists the skipped rows, where there are any."""
        return self.table.folder / SKIPPED

    def described(self) -> str:
        """Format and shape, for the user."""
        if self.source.format == "beir":
            return "BEIR folder"
        named = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet", "arrow": "Arrow"}
        shapes = ", ".join(sorted(self.facts.shapes, key=lambda name: -self.facts.shapes[name])[:3])
        return f"{named.get(self.source.format, 'Hugging Face dataset')}, {shapes}"


def read_source(source: Source, how: FileFields, context: BuildContext) -> Read:
    """The source's rows as a table under ``context.cache_dir``; rank 0 makes it, the others wait.

    Raises DataError for a row that cannot be used (unless ``how.on_bad_row`` is ``skip``), for a source without any
    usable row, and where the cache cannot be written.
    """
    folder = context.cache_dir / "tables" / _key(source, how)
    with context.first():
        facts = _known(folder)
        if facts is None and context.rank == 0:
            facts = _make(source, how, folder, context)
    facts = facts or _known(folder)
    if facts is None:
        raise DataError(f"{source.place}: another rank could not read it, whose message says why")
    if not facts.rows:
        reasons = [f"{facts.skipped} bad, listed in {folder / SKIPPED}, the first: {facts.first_bad}"]
        below = [f"{facts.below_score} below min_score"] if facts.below_score else []
        left = "; ".join([*below, *(reasons if facts.skipped else [])]) or "it has none"
        raise DataError(f"{source.place}: none of its {facts.read} rows can be used: {left}")
    return Read(source, Table(folder, source.place, source.separator), facts)


def _key(source: Source, how: FileFields) -> str:
    options = how.model_dump(mode="json", include={"columns", "header", "on_bad_row", "min_score"})
    text = json.dumps([VERSION, source.format, source.place, source.stamp, options], sort_keys=True)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _known(folder: Path) -> Facts | None:
    """What the cache says of the source."""
    known = cache.facts(folder)
    try:
        return None if known is None else Facts(**known)
    except TypeError:  # of another version
        return None


def _make(source: Source, how: FileFields, folder: Path, context: BuildContext) -> Facts:
    found: list[Facts] = []

    def convert(made: Path) -> dict[str, Any]:
        found.append(_convert(source, how, made, context))
        return asdict(found[0])

    cache.make(folder, source.place, convert)
    return found[0]


def _convert(source: Source, how: FileFields, folder: Path, context: BuildContext) -> Facts:
    normaliser = Normaliser(how.columns)
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
    """Of a (text, text, score) row; other rows are as good as can be."""
    return row.pos_scores[0] if row.pos_scores is not None and len(row.pos) == 1 and not row.neg else math.inf


def _rows(source: Source, normaliser: Normaliser, bad: BadRows) -> Iterator[tuple[int, Row | None]]:
    """Line and row; ``None`` for one that was bad."""
    if source.folder is not None:
        rows = BeirRows(source.folder, source.split)
        for index in range(len(rows)):
            judged = rows.row(index)
            yield int(judged.place.rsplit(":", 1)[-1]), judged
        return
    assert source.records is not None
    records: Any = source.records()
    with closing(records):
        for record in records:
            row: Row | None = None
            reason = record.fault
            if reason is None:
                try:
                    row = normaliser.row(record.value)
                except DataError as error:
                    reason = str(error)
            if reason is not None:
                bad.add(f"{source.place}{source.separator}{record.line}", reason, record.value)
            yield record.line, row
