"""A sampler that puts rows of similar length into one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embed_core.errors import ConfigError
from embed_core.protocols import Dataset


class ByLength:
    """Rows are sorted by length and cut into batches, which are shuffled in each epoch.

    In-batch negatives of similar length cannot be told apart by length. Batches are full: the rows left over are at
    another end of the order in each epoch, so that none is always left out.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        """Raises ConfigError where the dataset does not fill one batch."""
        if batch_size > len(dataset):
            raise ConfigError(
                f"sampler.batch_size={batch_size}: {dataset.name} has only {len(dataset)} training rows: "
                f"set batch_size to at most {len(dataset)}"
            )
        lengths = [_characters(dataset, row) for row in range(len(dataset))]
        self._order = np.argsort(np.asarray(lengths), kind="stable")
        self._batch_size = batch_size
        self._seed = seed

    @property
    def draws_per_epoch(self) -> int:
        """Number of full batches in one epoch."""
        return len(self._order) // self._batch_size

    def batch(self, draw: int) -> Sequence[int]:
        """The rows of batch ``draw``, a function of seed and ``draw`` alone: no state is kept between draws."""
        epoch, index = divmod(draw, self.draws_per_epoch)
        rng = np.random.default_rng([self._seed, epoch])
        left_over = len(self._order) - self.draws_per_epoch * self._batch_size
        start = int(rng.integers(left_over + 1)) + int(rng.permutation(self.draws_per_epoch)[index]) * self._batch_size
        return [int(row) for row in self._order[start : start + self._batch_size]]


def _characters(dataset: Dataset, row: int) -> int:
    # It hardly matters here which positive is drawn, so every row uses the same rng.
    example = dataset.example(row, np.random.default_rng(0))
    return len(example.query) + max(len(passage) for passage in example.passages)
