"""A dataset of single texts from other datasets' rows, addressed by number instead of held in a list."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embed_core.datasets.split import text_id
from embed_core.types import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embed_core.protocols import Dataset
    from embed_core.types import Item, RetrievalSet


@dataclass(frozen=True)
class Part:
    """A dataset and the numbers of the texts that were drawn from it."""

    dataset: Dataset
    slots: NDArray[np.int64]
    """Ascending: slot 2·row is a row's query, slot 2·row + 1 its positive."""


def drawn(rows: int, limit: int | None, seed: Sequence[int]) -> NDArray[np.int64]:
    """At most ``limit`` slots of a dataset of ``rows``, ascending; None = all. The same seed gives the same slots."""
    if limit is None or limit >= 2 * rows:
        return np.arange(2 * rows)
    rng = np.random.default_rng(list(seed))
    return np.sort(rng.choice(2 * rows, size=limit, replace=False, shuffle=False))


class PlainTexts:
    """Implements :class:`embed_core.protocols.Dataset`. Memory grows by 8 bytes a text."""

    def __init__(self, parts: Sequence[Part], name: str = "plain texts") -> None:
        self.name, self._parts = name, parts
        self._bounds: list[int] = np.cumsum([0, *(len(part.slots) for part in parts)]).tolist()

    def __len__(self) -> int:
        return self._bounds[-1]

    def example(self, row: int, rng: np.random.Generator) -> Example:
        """One text as query and passage. ``rng`` chooses one positive where the row has several."""
        part, slot = self._at(row)
        of = part.dataset.example(slot >> 1, rng)
        text = of.passages[0] if slot & 1 else of.query
        return Example(row, text, (text,), source=of.source or part.dataset.name, place=of.place)

    def identities(self, row: int) -> Iterable[bytes]:
        """The identities of the row that the text comes from."""
        part, slot = self._at(row)
        return part.dataset.identities(slot >> 1)

    def source(self, row: int) -> str:
        """The source of the row that the text comes from."""
        part, slot = self._at(row)
        return part.dataset.source(slot >> 1)

    def texts(self) -> Iterator[str]:
        """Yields every text that may be drawn, once."""
        seen = set[bytes]()
        for part in self._parts:
            for slot in part.slots.tolist():
                for item in _may_be(part.dataset, slot):
                    if isinstance(item, str) and (key := text_id(item)) not in seen:
                        seen.add(key)
                        yield item

    def held_out(self) -> RetrievalSet | None:
        """The evaluation split of the first dataset that has one."""
        return next((split for part in self._parts if (split := part.dataset.held_out()) is not None), None)

    def fingerprint(self) -> str:
        """Hex digest of the datasets and of the slots drawn from them."""
        digest = blake2b(digest_size=16)
        for part in self._parts:
            digest.update(part.dataset.fingerprint().encode())
            digest.update(part.slots.astype("<i8").tobytes())
        return digest.hexdigest()

    def _at(self, row: int) -> tuple[Part, int]:
        at = bisect_right(self._bounds, row) - 1
        return self._parts[at], int(self._parts[at].slots[row - self._bounds[at]])


def _may_be(dataset: Dataset, slot: int) -> tuple[Item, ...]:
    """The query, or every positive of the row, because the positive that is drawn changes from epoch to epoch."""
    of = dataset.example(slot >> 1, np.random.default_rng(0))
    if not slot & 1:
        return (of.query,)
    return of.positives or of.passages[:1]
