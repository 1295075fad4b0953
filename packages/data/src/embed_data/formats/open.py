"""Opens sources as rows: JSON Lines and BEIR folders are read where they are, all else from a table in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.datasets.row import ROW_VERSION, Row
from embed_core.datasets.sources.base import RowSource
from embed_core.datasets.sources.beir import BeirRows
from embed_core.datasets.sources.jsonl import JsonlRows
from embed_data.formats.convert import VERSION, read_source
from embed_data.formats.decompress import compression, opened
from embed_data.formats.detect import Source, find
from embed_data.formats.normalize import Normaliser, most_frequent

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_data.formats.columns import Columns
    from embed_data.formats.options import FileFields


class LinesInPlace(JsonlRows):
    """Rows of any shape, one JSON value per line, read where they are."""

    def __init__(self, source: Source, cache: Path, columns: Columns, *, strict: bool) -> None:
        super().__init__(Path(source.place), cache, only_objects=False)
        self.name = source.name
        self._normaliser = Normaliser(columns, strict=strict)
        self._read_as = json.dumps([dict(columns), strict], sort_keys=True, default=list)
        self.row(0)  # so that its shape is known
        self._describe()

    def parse(self, value: Any, place: str) -> Row:
        """The row of a record of any shape. Raises DataError, beginning with ``place``."""
        return self._normaliser.row(value, place)

    def rows(self) -> Iterator[Row]:
        """All rows in order; the format's description then counts all of them."""
        yield from super().rows()
        self._describe()

    def digest(self) -> str:
        """Digest of the file's bytes, and of the columns where the config maps them."""
        return super().digest() if not self._normaliser.columns else f"{super().digest()}|{self._read_as}"

    def table_key(self) -> str | None:
        """A digest of the content, and how it is read."""
        return f"lines|{VERSION}|{ROW_VERSION}|{self._read_as}|{super().digest()}"

    def _describe(self) -> None:
        self.format = f"JSONL, {most_frequent(self._normaliser.shapes)}"


def open_sources(
    path: str | Sequence[str],
    how: FileFields,
    context: BuildContext,
    *,
    strict: bool = False,
    no_in_batch_negatives: Sequence[str] = (),
) -> list[RowSource]:
    """The sources at one path or several, read as ``how`` says; ``strict`` as in :class:`Normaliser`.

    Those whose file or folder has one of ``no_in_batch_negatives`` in its name go without in-batch negatives.
    Raises DataError and ConfigError.
    """
    opened = []
    for source in find(path, how):
        rows = open_source(source, how, context, strict=strict)
        rows.in_batch_negatives = not any(mark in source.within for mark in no_in_batch_negatives)
        opened.append(rows)
    return opened


def open_source(source: Source, how: FileFields, context: BuildContext, *, strict: bool = False) -> RowSource:
    """The rows of one source. Raises DataError."""
    if source.folder is not None:
        return BeirRows(source.folder, source.split, context.cache_dir)
    strict = strict and source.format in ("json", "jsonl")
    if _is_lines(source) and how.on_bad_row == "error" and how.min_score is None:
        return LinesInPlace(source, context.cache_dir, how.columns, strict=strict)
    return read_source(source, how, context, strict=strict)


def _is_lines(source: Source) -> bool:
    """Whether a file is plain JSON Lines. One that begins with a bracket may be an array, which has no lines."""
    if source.format not in ("json", "jsonl") or compression(Path(source.place)) is not None:
        return False
    with opened(Path(source.place)) as stream:
        return not stream.peek(4096).lstrip().startswith(b"[")  # type: ignore[attr-defined] # a BufferedReader
