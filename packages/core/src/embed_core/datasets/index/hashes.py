"""Hashes of every row's texts, made while all rows are validated: for samplers, the held-out split, text samples."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_core.datasets.index import store
from embed_core.datasets.split import key_id, text_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from embed_core.datasets.sources.base import RowSource

    Blocks = Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]
    TextBlocks = Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]]

ON_DISK_FROM = 100_000
"""Rows from which on a table is on disk; below, it takes 3 MB and a second."""
BLOCK = 1 << 14
"""Rows at a time."""
VERSION = 1
SCHEMA = {
    "texts": "uint64",
    "text_starts": "int64",
    "tied": "int32",
    "keys": "uint64",
    "key_starts": "int64",
}


class RowTable:
    """Hashes (64-bit blake2b) of the texts and external ids of every row of one source.

    ``texts`` has query, positives, negatives of each row; ``text_starts`` one value more than rows, where each begins;
    ``tied`` how many of them, from the query on, tie the row to others. ``keys``, ``key_starts``: the positives'
    external ids. 28 bytes for a pair of texts, on disk for sources from :data:`ON_DISK_FROM` rows.
    """

    def __init__(self, table: store.Table) -> None:
        self.texts, self.text_starts = table.columns["texts"], table.columns["text_starts"]
        self.tied = table.columns["tied"]
        self.keys, self.key_starts = table.columns["keys"], table.columns["key_starts"]
        self.promptless: int | None = table.facts["promptless"]
        """The first row whose type puts the query's prompt on the passages, and that has none."""

    def __len__(self) -> int:
        return len(self.tied)

    def identities(self, index: int) -> NDArray[np.uint64]:
        """Hashes of a row's query, positives and their external ids, which tie it to rows that have them too."""
        start = self.text_starts[index]
        texts = self.texts.slice(start, start + self.tied[index])
        if not len(self.keys):
            return _u64(texts)
        first, last = self.key_starts.slice(index, index + 2)
        return _u64(np.concatenate([texts, self.keys.slice(int(first), int(last))]))

    def identity_blocks(self, rows: Iterable[NDArray[np.int64]]) -> Blocks:
        """(identities per row, identities row after row) of ``rows``: ascending, in blocks."""
        for block in rows:
            first, last = int(block[0]), int(block[-1]) + 1
            at = block - first
            starts = self.text_starts.slice(first, last + 1)
            texts, counts = self.texts.slice(int(starts[0]), int(starts[-1])), self.tied.slice(first, last)[at]
            parts, sizes = [(texts, starts[at] - starts[0], counts)], counts.astype(np.int64)
            if len(self.keys):
                key_starts = self.key_starts.slice(first, last + 1)
                keys, key_counts = self.keys.slice(int(key_starts[0]), int(key_starts[-1])), np.diff(key_starts)[at]
                parts.append((keys, key_starts[at] - key_starts[0], key_counts))
                sizes = sizes + key_counts
            yield sizes, _interleaved(sizes, parts)

    def text_blocks(self, rows: Iterable[NDArray[np.int64]]) -> TextBlocks:
        """(the row, how many texts it has, all its texts) of ``rows``: ascending, in blocks."""
        for block in rows:
            first, last = int(block[0]), int(block[-1]) + 1
            starts = self.text_starts.slice(first, last + 1)
            texts, counts = self.texts.slice(int(starts[0]), int(starts[-1])), np.diff(starts)
            wanted = np.zeros(len(counts), dtype=bool)
            wanted[block - first] = True
            yield block, counts[block - first].astype(np.int64), _u64(texts[np.repeat(wanted, counts)])


def open_table(source: RowSource, cache: Path) -> RowTable | None:
    """The kept table of ``source``, or None where there is none yet."""
    key = _key(source)
    table = store.find(cache, key, SCHEMA) if key is not None and len(source) >= ON_DISK_FROM else None
    return None if table is None else RowTable(table)


def make_table(source: RowSource, cache: Path) -> RowTable:
    """Reads, and so validates, every row of ``source``. Raises DataError, for the first bad row too."""
    root = cache if len(source) >= ON_DISK_FROM else None
    return RowTable(store.build(SCHEMA, lambda writers: _fill(source, writers), root, _key(source)))


def _key(source: RowSource) -> str | None:
    key = source.table_key()
    return None if key is None else "table-" + blake2b(f"{VERSION}|{key}".encode(), digest_size=16).hexdigest()


def _fill(source: RowSource, writers: store.Writers) -> dict[str, Any]:
    promptless: int | None = None
    texts, keys, tied = _Lists(writers, "texts", "text_starts"), _Lists(writers, "keys", "key_starts"), array("l")
    for index, row in enumerate(source.rows()):
        texts.add(map(text_id, (row.query, *row.pos, *row.neg)))
        keys.add(map(key_id, row.pos_keys or ()))
        tied.append(1 + len(row.pos))
        if promptless is None and row.prompt is None and row.symmetric:
            promptless = index
        if len(tied) == BLOCK:
            _flush(writers, texts, keys, tied)
    _flush(writers, texts, keys, tied)
    return {"promptless": promptless}


class _Lists:
    """A list of hashes per row: the hashes one after another in one column, where each list begins in another."""

    def __init__(self, writers: store.Writers, values: str, starts: str) -> None:
        self._values, self._starts = writers[values], writers[starts]
        self._hashes: list[bytes] = []
        self._ends, self._done = array("q", [0]), 0

    def add(self, hashes: Iterable[bytes]) -> None:
        """The list of the next row."""
        before = len(self._hashes)
        self._hashes.extend(hashes)
        self._done += len(self._hashes) - before
        self._ends.append(self._done)

    def flush(self) -> None:
        """Write the lists that were added since the last call."""
        self._values.extend(np.frombuffer(b"".join(self._hashes), dtype=np.uint64))
        self._starts.extend(np.array(self._ends, dtype=np.int64))
        self._hashes.clear()
        del self._ends[:]


def _flush(writers: store.Writers, texts: _Lists, keys: _Lists, tied: array[int]) -> None:
    texts.flush()
    keys.flush()
    writers["tied"].extend(np.array(tied, dtype=np.int32))
    del tied[:]


def _interleaved(sizes: NDArray[np.int64], parts: list[tuple[Any, Any, Any]]) -> NDArray[np.uint64]:
    """The ranges of each part, row after row; a row's ranges follow each other in the order of the parts."""
    out = np.empty(int(sizes.sum()), dtype=np.uint64)
    into = np.cumsum(sizes) - sizes
    for values, starts, counts in parts:
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        out[np.repeat(into, counts) + within] = values[np.repeat(starts, counts) + within]
        into = into + counts
    return out


def _u64(values: NDArray[Any]) -> NDArray[np.uint64]:
    return values.astype(np.uint64, copy=False)
