"""The sampler kinds of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from embed_core.config.component import SamplerConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset, Sampler


class ShuffledConfig(SamplerConfig):
    """Rows in random order, another one every epoch; an incomplete last batch is left out."""

    kind: Literal["shuffled"] = "shuffled"

    def build(self, context: BuildContext, dataset: Dataset) -> Sampler:
        """Raises ConfigError when there are fewer rows than ``batch_size``."""
        from embed_core.samplers.shuffled import ShuffledSampler

        return ShuffledSampler(dataset, context.seed, self.batch_size)


class NoDuplicatesConfig(SamplerConfig):
    """No two rows of a batch share a query, a positive or a document id: no false negatives that are known."""

    kind: Literal["no-duplicates"] = "no-duplicates"

    def build(self, context: BuildContext, dataset: Dataset) -> Sampler:
        """Raises ConfigError when no batch can be filled."""
        from embed_core.samplers.no_duplicates import NoDuplicatesSampler

        return NoDuplicatesSampler(dataset, context.seed, self.batch_size, context.announce)


class BySourceConfig(SamplerConfig):
    """Every batch from one source (file), sources in proportion to their size."""

    kind: Literal["by-source"] = "by-source"

    def build(self, context: BuildContext, dataset: Dataset) -> Sampler:
        """Raises ConfigError when no source fills a batch."""
        from embed_core.samplers.by_source import BySourceSampler

        return BySourceSampler(dataset, context.seed, self.batch_size, context.announce)
