"""A run's parts outside a run: the same data, batches and models, for the commands that look at a run or check it."""

from __future__ import annotations

from typing import Any

from embed_core.config.run import RunConfig
from embed_core.engine.batches import Batches
from embed_core.engine.building import build_context, seed_everything
from embed_core.engine.choose import chosen
from embed_core.engine.ranks import Ranks
from embed_core.protocols import Announce, Dataset
from embed_core.registry import Registry


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
        self.config = config.model_copy(update={"engine": chosen(config.engine, ranks)})
        self._context = build_context(self.config, registry, ranks, announce, dataset)
        seed_everything(config.seed)
        self.dataset = self._context.dataset()
        self.sampler = config.sampler.build(self._context, self.dataset)
        self.batches = Batches(self.config, self.dataset, self.sampler)

    def model(self) -> Any:
        """A new model, on CPU; the same seed before each, so that the weights are the same each time."""
        seed_everything(self.config.seed)
        return self.config.model.build(self._context)

    def loss(self) -> Any:
        """A new loss."""
        return self.config.loss.build(self._context)
