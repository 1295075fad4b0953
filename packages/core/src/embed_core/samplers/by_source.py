"""Draws batches of one source each."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from embed_core.errors import ConfigError
from embed_core.samplers.epoch import EpochSampler, check_batch_size, row_type

if TYPE_CHECKING:
    import numpy as np

    from embed_core.protocols import Announce, Dataset


class BySourceSampler(EpochSampler):
    """Every batch from one source, so that in-batch negatives are of its kind; sources follow each other at random.

    A source gives as many batches as it fills, hence in proportion to its size; its rows short of a batch are left out,
    different ones every epoch. Raises ConfigError when no source fills a batch; announces what is left out.
    """

    def __init__(self, dataset: Dataset, seed: int, batch_size: int, announce: Announce) -> None:
        import numpy as np

        super().__init__(seed, batch_size)
        check_batch_size(dataset, batch_size)
        kind = row_type(len(dataset))
        rows: dict[str, array[int]] = {}
        for row in range(len(dataset)):
            rows.setdefault(dataset.source(row), array(kind.char)).append(row)
        self.draws_per_epoch = sum(len(of) // batch_size for of in rows.values())
        if not self.draws_per_epoch:
            largest = max(rows, key=lambda name: len(rows[name]))
            raise ConfigError(
                f"sampler.batch_size={batch_size}: no source of {dataset.name} has that many rows; the largest, "
                f"{largest!r}, has {len(rows[largest])}: set batch_size to at most {len(rows[largest])}"
            )
        self.sources = [np.frombuffer(of, dtype=kind) for of in rows.values()]
        _announce_left_out(rows, batch_size, announce)

    def plan(self, epoch: int) -> np.ndarray:
        """Every source permuted and cut into batches; all batches then shuffled."""
        import numpy as np

        rng = self.generator(epoch)
        batches = [
            rng.permutation(rows)[: len(rows) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
            for rows in self.sources
        ]
        return rng.permutation(np.concatenate(batches))


def _announce_left_out(rows: dict[str, array[int]], batch_size: int, announce: Announce) -> None:
    short = [f"{name!r} ({len(of)})" for name, of in rows.items() if len(of) < batch_size]
    if short:
        named = ", ".join(short[:10]) + (f", … ({len(short)} in all)" if len(short) > 10 else "")
        announce(f"by-source: never drawn, for they have fewer rows than batch_size={batch_size}: {named}")
    left = sum(len(of) % batch_size for of in rows.values() if len(of) >= batch_size)
    if left:
        announce(
            f"by-source: {left} rows short of a batch of their source are left out of every epoch, others each time"
        )
