"""The distinct texts of training rows: all of them in order, or a sample, which takes reading only its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.dedup import distinct, repetitions
from embed_core.datasets.split import text_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from embed_core.datasets.index.rows import Catalogue

CANDIDATES = 1 << 16
"""Hashes kept in a pass over all of them; four times as many are kept where these were too few."""
FIRST_READ = 1 << 10
"""Texts read at first; four times as many each time."""


class TrainingTexts:
    """Iterator over queries, positives and negatives of the rows ``numbers`` gives, in their order, each text once."""

    def __init__(self, catalogue: Catalogue, numbers: Callable[[], Iterable[NDArray[np.int64]]]) -> None:
        self._catalogue, self._numbers = catalogue, numbers
        self._all = self._iterate()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._all)

    def sample(self, max_characters: int) -> tuple[list[str], str]:
        """The texts with the smallest hashes, up to ``max_characters`` in all, and a digest of all the texts.

        A pass over all texts would find the same (:mod:`embed_core.models.from_scratch.unigram`), from the
        hashes that were made when the rows were validated. At least one text, where one is not blank.
        """
        candidates, kept = CANDIDATES, _Sample(max_characters)
        while True:
            total, smallest = self._smallest(candidates)
            start, step = kept.seen, FIRST_READ
            while start < len(smallest) and not kept.full:
                numbers = smallest[start : start + step]
                texts = self._texts(numbers)
                kept.add(texts[number] for number in numbers.tolist())
                start, step = start + step, 4 * step
            if kept.full or len(smallest) < candidates:
                return kept.texts, f"{total:032x}"
            candidates *= 4

    def _iterate(self) -> Iterator[str]:
        repeated = repetitions(self._hashes)
        for row in self._catalogue.rows(self._numbers):
            yield from (text for text in (row.query, *row.pos, *row.neg) if not next(repeated))

    def _hashes(self) -> Iterator[NDArray[np.uint64]]:
        return (ids for _, _, ids in self._catalogue.text_blocks(self._numbers))

    def _smallest(self, wanted: int) -> tuple[int, NDArray[np.uint64]]:
        """The sum of the distinct hashes, read as big-endian numbers, and the ``wanted`` smallest, ascending."""
        total, parts = 0, [np.empty(0, np.uint64)]
        for part in distinct(self._hashes):
            values = part.view(">u8").astype(np.uint64)
            total += (int((values >> np.uint64(32)).sum()) << 32) + int((values & np.uint64(0xFFFFFFFF)).sum())
            parts.append(np.partition(values, wanted - 1)[:wanted] if len(values) > wanted else values)
        return total % (1 << 128), np.sort(np.concatenate(parts))[:wanted]

    def _texts(self, wanted: NDArray[np.uint64]) -> dict[int, str]:
        """The texts of the hashes ``wanted`` (ascending)."""
        found: dict[int, str] = {}
        for numbers, counts, ids in self._catalogue.text_blocks(self._numbers):
            values = ids.view(">u8").astype(np.uint64)
            near = np.flatnonzero((values >= wanted[0]) & (values <= wanted[-1]))
            hits = near[wanted[np.searchsorted(wanted, values[near])] == values[near]]
            owners = np.repeat(numbers, counts)[hits]
            for value, number in zip(values[hits].tolist(), owners.tolist(), strict=True):
                if value not in found:
                    row = self._catalogue.row(number)
                    found |= {int.from_bytes(text_id(text), "big"): text for text in (row.query, *row.pos, *row.neg)}
        return found


class _Sample:
    """Texts up to a number of characters; at least one, where one is not blank."""

    def __init__(self, max_characters: int) -> None:
        self.texts: list[str] = []
        self.full = False
        self.seen = 0
        self._left = max_characters

    def add(self, texts: Iterable[str]) -> None:
        """Take the next texts, up to the first that does not fit."""
        for text in texts:
            self.seen += 1
            if self.full or not text.strip():
                continue
            self._left -= len(text)
            if self._left < 0 and self.texts:
                self.full = True
            else:
                self.texts.append(text)
