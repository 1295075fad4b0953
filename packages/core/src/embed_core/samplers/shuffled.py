"""Draws rows in random order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.samplers.epoch import EpochSampler, check_batch_size, row_type

if TYPE_CHECKING:
    import numpy as np

    from embed_core.protocols import Dataset


class ShuffledSampler(EpochSampler):
    """A new permutation every epoch; the rows left over by the last full batch wait for another epoch."""

    def __init__(self, dataset: Dataset, seed: int, batch_size: int) -> None:
        super().__init__(seed, batch_size)
        check_batch_size(dataset, batch_size)
        self.rows = len(dataset)
        self.draws_per_epoch = self.rows // batch_size

    def plan(self, epoch: int) -> np.ndarray:
        """Draw a permutation and cut it into batches."""
        import numpy as np

        # The order is the same as with 64-bit row ids, in half the memory.
        order = self.generator(epoch).permutation(np.arange(self.rows, dtype=row_type(self.rows)))
        return order[: self.draws_per_epoch * self.batch_size].reshape(-1, self.batch_size)
