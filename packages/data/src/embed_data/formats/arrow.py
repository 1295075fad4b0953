"""Rows on disk as Arrow: written once in batches, then mapped into memory by Hugging Face `datasets`."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from embed_core.datasets.row import Row

ROWS_FILE = "rows.arrow"
BATCH_ROWS = 20_000
BATCH_BYTES = 16 * 2**20
"""A batch is written when it has so many rows, or so many characters: few batches make a table quick to open."""

GIVE_BACK_ROWS = 20_000
"""Rows read after which the pages they were on are given back to the system."""
ROW_ALONE = 1_000
"""A row read alone counts as so many: of each of its columns the system maps what is around it too, up to 256 KiB where
it was measured."""

_TEXTS, _SCORES = pa.list_(pa.string()), pa.list_(pa.float64())
SCHEMA = pa.schema(
    {
        "query": pa.string(),
        "pos": _TEXTS,
        "neg": _TEXTS,
        "pos_scores": _SCORES,
        "neg_scores": _SCORES,
        "prompt": pa.string(),
        "type": pa.string(),
        "pos_keys": _TEXTS,
        "neg_keys": _TEXTS,
        "masked": _TEXTS,
        "line": pa.int64(),
    }
)


class TableWriter:
    """Writes rows into an empty folder, and makes a digest of their content."""

    def __init__(self, folder: Path) -> None:
        self._sink = pa.OSFile(str(folder / ROWS_FILE), "wb")
        self._arrow = pa.ipc.new_stream(self._sink, SCHEMA)
        self._digest = blake2b(digest_size=16)
        self._batch: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._bytes = 0
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                self._arrow.close()
        finally:
            self._sink.close()

    def add(self, row: Row, line: int) -> None:
        """``line``: of the file, or number of the row."""
        values = (
            row.query, row.pos, row.neg, row.pos_scores, row.neg_scores,
            row.prompt, row.type, row.pos_keys, row.neg_keys, row.masked,
        )  # fmt: skip
        for column, value in zip(self._batch.values(), (*values, line), strict=True):
            column.append(value)
        self._digest.update(repr(values).encode())
        self.rows += 1
        self._bytes += len(row.query) + sum(map(len, row.pos)) + sum(map(len, row.neg))
        if len(self._batch["line"]) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def digest(self) -> str:
        """Hex digest of all rows so far, in their order."""
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._batch["line"]:
            self._arrow.write_batch(pa.record_batch(self._batch, schema=SCHEMA))
            for column in self._batch.values():
                column.clear()
            self._bytes = 0


class Table:
    """The rows of a folder that a :class:`TableWriter` filled, memory-mapped; nothing of them is held in memory."""

    def __init__(self, folder: Path, place: str, separator: str = ":") -> None:
        import datasets

        self.folder, self.place = folder, place
        with (folder / ROWS_FILE).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # What Dataset.from_file does, over a map of ours: pages that were read can be given back.
        rows = pa.ipc.open_stream(pa.py_buffer(self._map)).read_all()
        # Without a fingerprint of ours it would hash, that is copy, the whole table.
        self._rows: Any = datasets.Dataset(datasets.table.InMemoryTable(rows), fingerprint=folder.name)
        self._read = 0
        self._give_back()
        self._separator = separator

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """Row ``index``."""
        self._note(ROW_ALONE)
        return self._row(self._rows[index])

    def scan(self, size: int = 1000) -> Iterator[Row]:
        """All rows in their order, read in batches."""
        for batch in self._rows.iter(size):
            self._note(size)
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield self._row(dict(zip(names, values, strict=True)))

    def _note(self, rows: int) -> None:
        self._read += rows
        if self._read >= GIVE_BACK_ROWS:
            self._give_back()

    def _give_back(self) -> None:
        """Pages of a map count as the process's own until it needs them no more; they stay in the system's cache."""
        self._read = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _row(self, values: dict[str, Any]) -> Row:
        return Row(
            query=values["query"],
            pos=tuple(values["pos"]),
            neg=tuple(values["neg"]),
            pos_scores=_tuple(values["pos_scores"]),
            neg_scores=_tuple(values["neg_scores"]),
            prompt=values["prompt"],
            type=values["type"],
            pos_keys=_tuple(values["pos_keys"]),
            neg_keys=_tuple(values["neg_keys"]),
            masked=tuple(values["masked"]),
            place=f"{self.place}{self._separator}{values['line']}",
        )


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
