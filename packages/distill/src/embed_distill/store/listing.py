"""Lists the distinct texts of a dataset with their roles, for the precompute."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from embed_distill.store.keys import digest, keys_array, salt_of, sorted_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.protocols import Dataset
    from embed_core.types import Item, Role
    from embed_distill.teacher.cached import Source

_PLAIN = salt_of()
AT_ONCE = 10_000
"""Number of texts that are compared with the queries at a time."""


def asked_of(dataset: Dataset) -> Iterator[tuple[Item, Role]]:
    """Yields queries, positives and drawn negatives row by row, then all other texts, as passages; with repeats.

    An item that a dataset draws at random and does not list in ``texts()`` may be missing: it is computed when it is
    drawn.
    """
    rng, asked = np.random.default_rng(0), array("Q")
    for row in range(len(dataset)):
        example = dataset.example(row, rng)
        asked.append(_number(example.query))
        yield example.query, "query"
        for item in (*example.passages, *example.positives):
            yield item, "passage"
    queries = np.unique(np.frombuffer(asked, dtype=np.uint64))
    texts = dataset.texts()
    while some := list(islice(texts, AT_ONCE)):
        numbers = np.fromiter(map(_number, some), dtype=np.uint64, count=len(some))
        for at in np.flatnonzero(~np.isin(numbers, queries)).tolist():
            yield some[at], "passage"


def _number(item: Item) -> int:
    return int.from_bytes(digest(item, _PLAIN)[:8], "little")


class Listing:
    """The distinct texts of a dataset, by their keys for one teacher, in the order in which they first occur.

    Memory is 16 bytes a text, and more while it is built; :meth:`blocks` reads the texts again.
    """

    def __init__(self, dataset: Dataset, source: Source) -> None:
        self._dataset = dataset
        every_N2 = keys_array(source.key(item, role) for item, role in asked_of(dataset))
        self._first: NDArray[np.int64] = np.sort(sorted_once(every_N2))
        self.keys_N2 = every_N2[self._first]

    def __len__(self) -> int:
        return len(self._first)

    def blocks(self, size: int, wanted: set[int]) -> Iterator[list[tuple[Item, Role]]]:
        """Yields the blocks of ``size`` texts whose numbers are in ``wanted``, in ascending order."""
        if not wanted:
            return
        block: list[tuple[Item, Role]] = []
        at, end = 0, min((max(wanted) + 1) * size, len(self))
        for place, asked in enumerate(asked_of(self._dataset)):
            if place != self._first[at]:
                continue
            if at // size in wanted:
                block.append(asked)
            at += 1
            if block and (at % size == 0 or at == end):
                yield block
                block = []
            if at == end:
                return
