"""Which 8-byte identities have been seen, in 8 bytes each: Python's set needs ten times that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Seen:
    """Sorted runs whose sizes fall by half at least, merged as they are in a log-structured tree."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def new(self, identities: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Mask of those seen for the first time, in ``identities`` too; they count as seen from now on."""
        distinct, first = np.unique(identities, return_index=True)
        fresh = np.ones(len(distinct), dtype=np.bool_)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            fresh &= run[at] != distinct
        mask = np.zeros(len(identities), dtype=np.bool_)
        mask[first[fresh]] = True
        if fresh.any():
            self._add(distinct[fresh])
        return mask

    def _add(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        self._runs.append(run)
