"""The base class of the core's samplers: an epoch is planned as a whole, a draw is looked up in its plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from embed_core.protocols import Dataset


class EpochSampler(ABC):
    """A sampler whose epochs all have :attr:`draws_per_epoch` batches; see :class:`embed_core.protocols.Sampler`.

    A plan is a pure function of (seed, epoch), so that any draw can be answered at any time, on any rank; the last
    plan is kept. No row occurs twice in an epoch.
    """

    draws_per_epoch: int

    def __init__(self, seed: int, batch_size: int) -> None:
        self.seed = seed
        self.batch_size = batch_size
        self._kept: tuple[int, np.ndarray] | None = None

    def batch(self, draw: int) -> Sequence[int]:
        """Row ids of the ``draw``-th global batch, counted from 0 over all epochs."""
        epoch, at = divmod(draw, self.draws_per_epoch)
        # Read once: a prefetching thread may replace the plan meanwhile.
        kept = self._kept
        if kept is None or kept[0] != epoch:
            kept = self._kept = (epoch, self.plan(epoch))
        return [int(row) for row in kept[1][at]]

    @abstractmethod
    def plan(self, epoch: int) -> np.ndarray:
        """Row ids [draws_per_epoch, batch_size] of one epoch."""

    def generator(self, *stream: int) -> np.random.Generator:
        """The generator of this seed and of ``stream`` (the epoch, ...)."""
        import numpy as np

        return np.random.default_rng([self.seed, *stream])


def row_type(rows: int) -> np.dtype[np.signedinteger]:
    """The narrowest type of row ids below ``rows``: plans are what a sampler holds in memory, 4 bytes a row."""
    import numpy as np

    return np.dtype(np.int32 if rows <= 2**31 else np.int64)


def check_batch_size(dataset: Dataset, batch_size: int) -> None:
    """Raises ConfigError when a batch needs more rows than there are."""
    if batch_size > len(dataset):
        raise ConfigError(
            f"sampler.batch_size={batch_size}: {dataset.name} has only {len(dataset)} training rows: "
            f"set batch_size to at most {len(dataset)}"
        )
