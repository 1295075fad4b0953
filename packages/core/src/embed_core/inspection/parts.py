"""Builds the dataset, sampler, model and loss of a run for `explain`, `plan` and `prove`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embed_core.acceleration.auto import resolve_auto
from embed_core.batch.loader import Batches
from embed_core.config.registry import Registry
from embed_core.config.run import RunConfig
from embed_core.datasets.wrappers import check_loss
from embed_core.distributed.process_group import Ranks
from embed_core.errors import ConfigError
from embed_core.protocols import Announce, Dataset
from embed_core.train.build import build_context, seed_everything


class Parts:
    """Holds the dataset and sampler of a run, and builds a new model or loss at every call."""

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        ranks: Ranks,
        *,
        dataset: Dataset | None = None,
        announce: Announce = lambda line: None,
    ) -> None:
        """A run with phases gives its first one; :meth:`RunConfig.only` makes another one the first. ``dataset``
        takes the place of ``config.data``'s. Raises EmbedError for everything a user can mend."""
        whole = config.model_copy(update={"engine": resolve_auto(config.engine, ranks)})
        self.config = whole.in_phase(0)
        self._context = build_context(whole, registry, ranks, announce, dataset)
        seed_everything(config.seed)
        own = config.phases[0].data if config.phases else None
        if own is not None and own.waits():
            raise ConfigError(
                f"phase {config.phases[0].name!r}: its rows are made with the model of the phases before it, during "
                "the run: look at another phase"
            )
        self.dataset = self._context.dataset()
        in_phase = replace(self._context, phase=config.phases[0].name if config.phases else "")
        if own is not None:
            self.dataset = own.build(in_phase)
        self.sampler = self.config.sampler.build(in_phase, self.dataset)
        self._built: Any = None
        self.batches = Batches(self.config, self.dataset, self.sampler)

    def model(self) -> Any:
        """Build a new model on CPU, seeded, so that the weights are the same each time."""
        seed_everything(self.config.seed)
        self._built = self.config.model.build(self._context)
        return self._built

    def loss(self) -> Any:
        """Build a new loss."""
        loss = self.config.loss.build(replace(self._context, model=self._built))
        check_loss(loss, self.dataset)
        return loss
