"""Query → passage rows of one or several sources as a training dataset."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from embed_core.datasets.draw import DrawOptions, draw_example
from embed_core.datasets.held_out import choose_held_out, retrieval_set, row_identities, text_id
from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np

    from embed_core.datasets.rows import Row
    from embed_core.datasets.sources import RowSource
    from embed_core.protocols import Announce
    from embed_core.types import Example, RetrievalSet

ROWS_IN_MEMORY = 2048


class RetrievalDataset:
    """Rows of ``sources``, validated at construction, parsed on access; see :class:`embed_core.protocols.Dataset`.

    ``held_out_rows`` of them are set aside for evaluation with every row that shares a query or a positive with them;
    ``limit`` keeps at most so many training rows, evenly spread over the sources. ``held_out`` is an evaluation set
    made elsewhere. Raises DataError for any row that is wrong, ConfigError where no training row would be left.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[RowSource],
        options: DrawOptions,
        announce: Announce,
        held_out_rows: int | None = 0,
        limit: int | None = None,
        held_out: RetrievalSet | None = None,
    ) -> None:
        self.name = name
        self._sources = sources
        self._options = options
        self._split = (held_out_rows, limit)
        self._starts = [0]
        for source in sources:
            self._starts.append(self._starts[-1] + len(source))
        self._cached_row = lru_cache(ROWS_IN_MEMORY)(self._parse)
        self._ids, self._id_offsets = array("Q"), array("q", [0])
        self._promptless = ""
        self._scan()
        mask = self._choose(held_out_rows)
        self._rows = self._limited(mask, limit)
        self._held_out = held_out if held_out is not None else self._retrieval_set(mask)
        self._announce(announce)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """Row ``row``, drawn; see :func:`embed_core.datasets.draw.draw_example`."""
        number = int(self._rows[row])
        return draw_example(self._cached_row(number), row, self._source_of(number).name, self._options, rng)

    def identities(self, row: int) -> Iterable[bytes]:
        """8-byte ids of the query, the positives and the positives' external ids."""
        return (value.to_bytes(8, sys.byteorder) for value in self._identity_numbers(int(self._rows[row])))

    def source(self, row: int) -> str:
        """Stem of the file, or name of the BEIR folder."""
        return self._source_of(int(self._rows[row])).name

    def texts(self) -> Iterator[str]:
        """Queries, positives and negatives of the training rows, each text once."""
        seen: set[bytes] = set()
        for number in self._rows:
            row = self._parse(int(number))
            for text in (row.query, *row.pos, *row.neg):
                key = text_id(text)
                if key not in seen:
                    seen.add(key)
                    yield text

    def held_out(self) -> RetrievalSet | None:
        """The evaluation split, or None where ``held_out_rows`` is 0."""
        return self._held_out

    def fingerprint(self) -> str:
        """Hex digest of the sources' bytes and of what selects the training rows."""
        parts = [*(f"{source.name}:{source.digest()}" for source in self._sources), repr(self._split)]
        return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def _source_of(self, number: int) -> RowSource:
        return self._sources[bisect_right(self._starts, number) - 1]

    def _parse(self, number: int) -> Row:
        at = bisect_right(self._starts, number) - 1
        return self._sources[at].row(number - self._starts[at])

    def _identity_numbers(self, number: int) -> array[int]:
        return self._ids[self._id_offsets[number] : self._id_offsets[number + 1]]

    def _scan(self) -> None:
        """Validate every row once and keep its identities: 8 bytes each, instead of the texts."""
        for number in range(self._starts[-1]):
            row = self._parse(number)
            self._ids.extend(int.from_bytes(value, sys.byteorder) for value in row_identities(row))
            self._id_offsets.append(len(self._ids))
            if row.symmetric and row.prompt is None and self._options.query_prompt is None and not self._promptless:
                self._promptless = f"{row.place}: type {row.type}"

    def _choose(self, held_out_rows: int | None) -> np.ndarray:
        """A mask of the rows held out. By default enough to measure by, and never a large part of the data."""
        import numpy as np

        total = self._starts[-1]
        wanted = min(200, max(1, total // 10), total - 1) if held_out_rows is None else held_out_rows
        if not wanted:
            return np.zeros(total, dtype=bool)
        if wanted >= total:
            raise ConfigError(f"held_out_rows={wanted}: {self.name} has {total} rows: set at most {total - 1}")
        mask = choose_held_out([self._identity_numbers(number) for number in range(total)], wanted)
        if not mask.any() and held_out_rows is not None:
            raise ConfigError(
                f"held_out_rows={wanted}: every group of rows of {self.name} that share a query or a positive is "
                "larger than that: raise it, or evaluate on a BEIR folder"
            )
        return mask

    def _limited(self, held_out: np.ndarray, limit: int | None) -> np.ndarray:
        import numpy as np

        rows = np.flatnonzero(~held_out)
        if limit is None or limit >= len(rows):
            return rows
        return rows[np.arange(limit) * len(rows) // limit]

    def _retrieval_set(self, mask: np.ndarray) -> RetrievalSet | None:
        rows = [self._parse(int(number)) for number in mask.nonzero()[0]]
        return retrieval_set(f"{self.name}-held-out", rows) if rows else None

    def _announce(self, announce: Announce) -> None:
        formats = ", ".join(dict.fromkeys(source.format for source in self._sources))
        sources = f" from {len(self._sources)} sources" if len(self._sources) > 1 else ""
        held = ""
        if self._held_out is not None:
            held = f"; held out {len(self._held_out.queries)} queries, {len(self._held_out.corpus)} documents"
        announce(f"data: {self.name}, {formats}: {len(self)} training rows{sources}{held}")
        if self._promptless:
            announce(
                f"{self._promptless} puts the query's prompt on the passages, but neither the row nor `query_prompt` "
                "gives one: passages keep the model's own passage prompt"
            )
