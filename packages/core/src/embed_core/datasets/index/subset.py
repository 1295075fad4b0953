"""The numbers of the training rows, computed from their position: no list of them is held."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Selection:
    """The numbers below ``total`` that are not in ``left_out`` (ascending); at most ``limit`` of them, evenly spread.

    Memory grows with the length of ``left_out`` only.
    """

    def __init__(self, total: int, left_out: NDArray[np.int64], limit: int | None = None) -> None:
        self._available = total - len(left_out)
        self._length = self._available if limit is None else min(limit, self._available)
        # How many kept numbers come before each that is left out.
        self._before = array("q", (left_out - np.arange(len(left_out))).tobytes())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: int) -> int:
        """The ``at``-th selected number."""
        if not 0 <= at < self._length:
            raise IndexError(at)
        place = at * self._available // self._length  # the same `at` where nothing is limited
        return place + bisect_right(self._before, place)

    def blocks(self, size: int = 1 << 14) -> Iterator[NDArray[np.int64]]:
        """All selected numbers, ascending, ``size`` at a time."""
        for start in range(0, self._length, size):
            yield self._numbers(np.arange(start, min(start + size, self._length)))

    def blocks_of(self, places: NDArray[np.integer], size: int = 1 << 14) -> Iterator[NDArray[np.int64]]:
        """The selected numbers at ``places`` (ascending), ``size`` at a time."""
        for start in range(0, len(places), size):
            yield self._numbers(places[start : start + size].astype(np.int64))

    def _numbers(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        place = at * self._available // self._length
        return place + np.searchsorted(np.frombuffer(self._before, dtype=np.int64), place, side="right")
