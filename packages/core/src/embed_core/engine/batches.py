"""A run's global batches by number: which rows, whose, drawn and tokenised. Functions of the seed and the number."""

from __future__ import annotations

from collections.abc import Sequence

from embed_core.config.run import RunConfig
from embed_core.engine.host_batch import HostBatch, draw, prepare, share
from embed_core.errors import ConfigError
from embed_core.protocols import CompletesExamples, Dataset, Sampler
from embed_core.tokens.cached import Tokenizes
from embed_core.types import Example


class Batches:
    """What ``sampler`` draws from ``dataset``, in the shares of any number of ranks."""

    def __init__(self, config: RunConfig, dataset: Dataset, sampler: Sampler) -> None:
        self.config, self.dataset, self.sampler = config, dataset, sampler

    def rows(self, number: int, rank: int, world_size: int) -> Sequence[int]:
        """Row ids of ``rank``'s share of the ``number``-th global batch.

        Raises ConfigError where ranks would go without: on every rank, since every rank sees the whole batch.
        """
        drawn = self.sampler.batch(number)
        if len(drawn) < world_size:
            raise ConfigError(
                f"sampler.kind {self.config.sampler.kind!r}: batch {number} has {len(drawn)} rows for {world_size} "
                "ranks: every rank needs one, use fewer ranks or a larger sampler.batch_size"
            )
        return share(drawn, rank, world_size)

    def examples(self, number: int, rank: int = 0, world_size: int = 1) -> list[Example]:
        """What the loop draws for that share: a function of (seed, number, row)."""
        drawn = draw(self.dataset, self.rows(number, rank, world_size), self.config.seed, number)
        return self.dataset.complete(drawn) if isinstance(self.dataset, CompletesExamples) else drawn

    def host(
        self, model: Tokenizes, number: int, rank: int = 0, world_size: int = 1, *, deduplicate: bool | None = None
    ) -> HostBatch:
        """That share, tokenised; ``deduplicate`` as in ``engine.deduplicate`` where it is ``None``."""
        once = self.config.engine.deduplicate if deduplicate is None else deduplicate
        return prepare(model, self.examples(number, rank, world_size), deduplicate=once)
