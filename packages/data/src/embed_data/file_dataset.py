"""Rows of files as a training dataset: on disk as memory-mapped tables, whatever format they came in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.sampling import DrawOptions, draw_example
from embed_core.datasets.split import held_out_rows, retrieval_set, text_id
from embed_core.errors import ConfigError
from embed_core.samplers.epochs import row_type
from embed_data.formats.arrow import AT_ONCE
from embed_data.formats.seen import Seen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.datasets.dedup import Blocks
    from embed_core.datasets.row import Row
    from embed_core.protocols import Announce
    from embed_core.types import Example, RetrievalSet
    from embed_data.formats.convert import Read

ROWS_IN_MEMORY = 2048
TEXTS_AT_A_TIME = 10_000


class FileDataset:
    """The rows of one or several sources; see :class:`embed_core.protocols.Dataset`.

    ``held_out_rows`` of them are set aside for evaluation with every row that shares a query or a positive with them
    (None = a tenth, at most 200); ``limit`` keeps at most so many training rows, evenly spread. Memory: 4 bytes a row.
    Raises ConfigError where no training row would be left.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Read],
        options: DrawOptions,
        announce: Announce,
        held_out_rows: int | None = 0,
        limit: int | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        """``lenient``: where no group of rows is small enough to be held out, none is, without an error."""
        self.name, self.sources, self._options = name, sources, options
        self._split = (held_out_rows, limit)
        self._starts = [0]
        for source in sources:
            self._starts.append(self._starts[-1] + len(source.table))
        left_out = self._choose(held_out_rows, lenient)
        self.held_out_count = len(left_out)
        """Rows held out."""
        self._rows = _selected(self._starts[-1], left_out, limit)
        self._held_out = self._retrieval_set(left_out)
        self._cached_row = lru_cache(ROWS_IN_MEMORY)(self._parse)
        self._announce(announce)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """Row ``row``, drawn; see :func:`embed_core.datasets.sampling.draw_example`."""
        number = int(self._rows[row])
        return draw_example(self._cached_row(number), row, self._source_of(number).source.name, self._options, rng)

    def identities(self, row: int) -> Iterable[bytes]:
        """8-byte ids of the query, the positives and the positives' external ids."""
        raw = self.identities_of(np.asarray([row]))[1].tobytes()
        return [raw[start : start + 8] for start in range(0, len(raw), 8)]

    def identities_of(self, rows: NDArray[np.signedinteger]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """How many identities each of ``rows`` (ascending) has, and the identities, row after row."""
        numbers = self._rows[rows].astype(np.int64)
        bounds = np.searchsorted(numbers, self._starts)
        parts = [
            read.table.identities(numbers[first:last] - start)
            for read, start, first, last in zip(self.sources, self._starts, bounds, bounds[1:], strict=False)
            if first < last
        ]
        return np.concatenate([counts for counts, _ in parts]), np.concatenate([ids for _, ids in parts])

    def identity_blocks(self) -> Blocks:
        """The same of all rows, in blocks: what the no-duplicates sampler asks for."""
        for start in range(0, len(self), AT_ONCE):
            yield self.identities_of(np.arange(start, min(start + AT_ONCE, len(self))))

    def source(self, row: int) -> str:
        """Name of the file, without its suffixes, or of the folder or dataset."""
        return self._source_of(int(self._rows[row])).source.name

    def texts(self) -> Iterator[str]:
        """Queries, positives and negatives of the training rows, each text once."""
        return self._texts(self._rows)

    def texts_of(self, rows: NDArray[np.signedinteger]) -> Iterator[str]:
        """The same of these training rows."""
        return self._texts(self._rows[rows])

    def _texts(self, numbers: NDArray[np.integer]) -> Iterator[str]:
        seen = Seen()
        for texts in self._texts_in_batches(numbers):
            ids = np.frombuffer(b"".join(map(text_id, texts)), dtype=np.uint64)
            for at in np.flatnonzero(seen.new(ids)):
                yield texts[at]

    def held_out(self) -> RetrievalSet | None:
        """The evaluation split, or None where ``held_out_rows`` is 0."""
        return self._held_out

    def fingerprint(self) -> str:
        """Hex digest of the rows' content and of what selects the training rows."""
        parts = [*(f"{read.source.name}:{read.facts.digest}" for read in self.sources), repr(self._split)]
        return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def row(self, row: int) -> Row:
        """Training row ``row`` with all that is known of it."""
        return self._parse(int(self._rows[row]))

    def sharing(self, identities: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which training rows have any of these identities."""
        whole = np.concatenate([read.table.sharing(identities) for read in self.sources])
        mask: NDArray[np.bool_] = whole[self._rows]
        return mask

    def _at(self, number: int) -> tuple[int, int]:
        """Source and index in it."""
        at = bisect_right(self._starts, number) - 1
        return at, number - self._starts[at]

    def _source_of(self, number: int) -> Read:
        return self.sources[bisect_right(self._starts, number) - 1]

    def _parse(self, number: int) -> Row:
        at, index = self._at(number)
        return self.sources[at].table.row(index)

    def _texts_in_batches(self, numbers: NDArray[np.integer]) -> Iterator[list[str]]:
        """In the order of the files; rows that are not wanted are read and passed over."""
        wanted = np.zeros(self._starts[-1], dtype=np.bool_)
        wanted[numbers] = True
        texts: list[str] = []
        for start, read in zip(self._starts, self.sources, strict=False):
            if not wanted[start : start + len(read.table)].any():
                continue
            for index, row in enumerate(read.table.scan(), start):
                if wanted[index]:
                    texts += (row.query, *row.pos, *row.neg)
                if len(texts) >= TEXTS_AT_A_TIME:
                    yield texts
                    texts = []
        if texts:
            yield texts

    def _choose(self, wanted: int | None, lenient: bool) -> NDArray[np.int64]:
        """As the core's `retrieval` does: by default enough to measure by, and never a large part of the data."""
        total = self._starts[-1]
        rows = min(200, max(1, total // 10), total - 1) if wanted is None else wanted
        if not rows:
            return np.empty(0, dtype=np.int64)
        if rows >= total:
            raise ConfigError(f"held_out_rows={rows}: {self.name} has {total} rows: set at most {total - 1}")
        chosen: NDArray[np.int64] = held_out_rows(self._all_identities, rows)
        if not len(chosen) and wanted is not None and not lenient:
            raise ConfigError(
                f"held_out_rows={rows}: every group of rows of {self.name} that share a query or a positive is "
                "larger than that: raise it, or evaluate on a BEIR folder"
            )
        return chosen

    def _all_identities(self) -> Blocks:
        for read in self.sources:
            size = len(read.table)
            for start in range(0, size, AT_ONCE):
                yield read.table.identities(np.arange(start, min(start + AT_ONCE, size)))

    def _retrieval_set(self, numbers: NDArray[np.int64]) -> RetrievalSet | None:
        rows = (self._parse(int(number)) for number in numbers)
        return retrieval_set(f"{self.name}-held-out", rows) if len(numbers) else None

    def _announce(self, announce: Announce) -> None:
        formats = "; ".join(dict.fromkeys(read.described() for read in self.sources))
        sources = f" from {len(self.sources)} sources" if len(self.sources) > 1 else ""
        held = ""
        if self._held_out is not None:
            held = f"; held out {len(self._held_out.queries)} queries, {len(self._held_out.corpus)} documents"
        announce(f"data: {self.name}, {formats}: {len(self)} training rows{sources}{held}")
        for read in self.sources:
            facts = read.facts
            if facts.skipped:
                announce(
                    f"data: {read.source.name}: {facts.skipped} of {facts.read} rows are bad and skipped, "
                    f"listed in {read.skipped_file}"
                )
            if facts.below_score:
                announce(f"data: {read.source.name}: {facts.below_score} of {facts.read} rows are below min_score")


def _selected(total: int, left_out: NDArray[np.int64], limit: int | None) -> NDArray[np.integer]:
    """The rows that are not left out, ascending; of these ``limit``, evenly spread."""
    rows = np.delete(np.arange(total, dtype=row_type(total)), left_out)
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.arange(limit) * len(rows) // limit]
