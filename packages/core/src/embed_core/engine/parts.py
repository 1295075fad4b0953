"""A run's parts outside a run: the same data, batches and models, for the commands that look at a run or check it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embed_core.config.run import RunConfig
from embed_core.context import BuildContext
from embed_core.engine.host_batch import HostBatch, draw, prepare, share
from embed_core.engine.ranks import Ranks
from embed_core.engine.run import seed_everything
from embed_core.errors import ConfigError
from embed_core.protocols import Announce, Dataset
from embed_core.registry import Registry
from embed_core.types import Example


class Parts:
    """Dataset and sampler of a run, and models and losses built anew as often as they are asked for."""

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        ranks: Ranks,
        *,
        dataset: Dataset | None = None,
        announce: Announce = lambda line: None,
    ) -> None:
        """``dataset`` takes the place of ``config.data``'s. Raises EmbedError for everything a user can mend."""
        self.config = config
        self._context = BuildContext(
            registry=registry,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            announce=announce,
            barrier=ranks.barrier,
        )
        self._context.dataset_factory = lambda: dataset if dataset is not None else config.data.build(self._context)
        seed_everything(config.seed)
        self.dataset = self._context.dataset()
        self.sampler = config.sampler.build(self._context, self.dataset)

    def model(self) -> Any:
        """A new model, on CPU; the same seed before each, so that the weights are the same each time."""
        seed_everything(self.config.seed)
        return self.config.model.build(self._context)

    def loss(self) -> Any:
        """A new loss."""
        return self.config.loss.build(self._context)

    def rows(self, number: int, rank: int, world_size: int) -> Sequence[int]:
        """Row ids of ``rank``'s share of the ``number``-th global batch. Raises ConfigError where ranks go without."""
        drawn = self.sampler.batch(number)
        if len(drawn) < world_size:
            raise ConfigError(
                f"sampler.kind {self.config.sampler.kind!r}: batch {number} has {len(drawn)} rows for {world_size} "
                "ranks: every rank needs one, use fewer ranks or a larger sampler.batch_size"
            )
        return share(drawn, rank, world_size)

    def examples(self, number: int, rank: int = 0, world_size: int = 1) -> list[Example]:
        """What the loop draws for that share: a function of (seed, number, row)."""
        return draw(self.dataset, self.rows(number, rank, world_size), self.config.seed, number)

    def batch(
        self, model: Any, number: int, rank: int = 0, world_size: int = 1, *, deduplicate: bool | None = None
    ) -> HostBatch:
        """That share, tokenised; ``deduplicate`` as in ``engine.deduplicate`` where it is ``None``."""
        once = self.config.engine.deduplicate if deduplicate is None else deduplicate
        return prepare(model, self.examples(number, rank, world_size), deduplicate=once)
