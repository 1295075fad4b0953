"""All rows of several sources under one numbering, and the tables of their hashes."""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.index import store
from embed_core.datasets.index.hashes import RowTable, make_table, open_table
from embed_core.datasets.index.subset import Selection
from embed_core.datasets.split import held_out_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from embed_core.datasets.index.hashes import Blocks, TextBlocks
    from embed_core.datasets.row import Row
    from embed_core.datasets.sources.base import RowSource
    from embed_core.protocols import Announce

    Numbers = Callable[[], Iterable[NDArray[np.int64]]]
    """Gives ascending row numbers, in blocks, as often as it is called."""

ANNOUNCED_FROM = 500_000
"""Rows from which on validating takes long enough (10 seconds) to be announced."""
SPLIT_VERSION = 1


class Catalogue:
    """Rows of ``sources``, validated when it is made. Row ``n`` is counted over all sources, in their order.

    Raises DataError for any row that is wrong, and where the cache cannot be written.
    """

    def __init__(self, sources: Sequence[RowSource], cache: Path, announce: Announce) -> None:
        self.sources = sources
        self._cache = cache
        self._starts = [0]
        self._tables: list[RowTable] = []
        for source in sources:
            self._starts.append(self._starts[-1] + len(source))
            table = open_table(source, cache)
            if table is None and len(source) >= ANNOUNCED_FROM:
                announce(f"data: {source.name}: reading and checking {len(source):,} rows, once")
            self._tables.append(make_table(source, cache) if table is None else table)

    def __len__(self) -> int:
        return self._starts[-1]

    def source(self, number: int) -> RowSource:
        """The source of a row."""
        return self.sources[self._at(number)]

    def row(self, number: int) -> Row:
        """The row, parsed. Raises DataError where the file has changed."""
        at = self._at(number)
        return self.sources[at].row(number - self._starts[at])

    def rows(self, numbers: Numbers) -> Iterator[Row]:
        """Rows in order; read from front to back where most of a source's are asked for."""
        for at in range(len(self.sources)):
            source, count = self.sources[at], sum(map(len, self._of(at, numbers)))
            wanted = (int(index) for block in self._of(at, numbers) for index in block)
            if 2 * count < len(source):
                yield from map(source.row, wanted)
            else:
                yield from _picked(source.rows(), wanted)

    def identities(self, number: int) -> NDArray[np.uint64]:
        """64-bit ids of a row's query, positives and their external ids."""
        at = self._at(number)
        return self._tables[at].identities(number - self._starts[at])

    def identity_blocks(self, numbers: Numbers) -> Blocks:
        """(how many per row, :meth:`identities` row after row), in blocks."""
        for at, table in enumerate(self._tables):
            yield from table.identity_blocks(self._of(at, numbers))

    def text_blocks(self, numbers: Numbers) -> TextBlocks:
        """(the rows, how many texts each has, hashes of query, positives and negatives row after row), in blocks."""
        for at, table in enumerate(self._tables):
            for rows, counts, ids in table.text_blocks(self._of(at, numbers)):
                yield rows + self._starts[at], counts, ids

    def promptless(self) -> int | None:
        """The first row whose type puts the query's prompt on the passages, and that has none."""
        for start, table in zip(self._starts, self._tables, strict=False):
            if table.promptless is not None:
                return start + table.promptless
        return None

    def held_out(self, wanted: int) -> NDArray[np.int64]:
        """The rows that :func:`embed_core.datasets.split.held_out_rows` chooses; a choice that took long is kept."""
        every = Selection(len(self), np.empty(0, np.int64))

        def choose() -> NDArray[np.int64]:
            return held_out_rows(lambda: self.identity_blocks(every.blocks), wanted)

        keys = [source.table_key() for source in self.sources]
        if len(self) < ANNOUNCED_FROM or None in keys:
            return choose()
        key = "split-" + blake2b(repr((SPLIT_VERSION, wanted, keys)).encode(), digest_size=16).hexdigest()
        schema = {"rows": "int64"}
        table = store.find(self._cache, key, schema)
        if table is None:
            table = store.build(schema, lambda writers: _write(writers, choose()), self._cache, key)
        return table.columns["rows"].slice(0, len(table.columns["rows"])).astype(np.int64)

    def _at(self, number: int) -> int:
        return bisect_right(self._starts, number) - 1

    def _of(self, at: int, numbers: Numbers) -> Iterator[NDArray[np.int64]]:
        """The rows of a source among ``numbers``, counted from its first one, in blocks."""
        start, stop = self._starts[at], self._starts[at + 1]
        for block in numbers():
            first, last = np.searchsorted(block, [start, stop])
            if first < last:
                yield block[first:last] - start


def _picked(rows: Iterator[Row], wanted: Iterator[int]) -> Iterator[Row]:
    """Those of ``rows`` whose places ``wanted`` names, ascending."""
    following = next(wanted, None)
    for index, row in enumerate(rows):
        if following is None:
            return
        if index == following:
            yield row
            following = next(wanted, None)


def _write(writers: store.Writers, rows: NDArray[np.int64]) -> dict[str, int]:
    writers["rows"].extend(rows)
    return {}
