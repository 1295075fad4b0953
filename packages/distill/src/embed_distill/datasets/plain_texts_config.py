"""The dataset kind ``plain-texts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import DatasetConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset


class PlainTextsConfig(DatasetConfig):
    """Single texts, the queries and positives of the rows of other datasets: what a student learns a teacher's vectors
    on. A row is a text as its own query and passage, so that a model without prompts encodes it once."""

    kind: Literal["plain-texts"] = "plain-texts"
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    """Where the texts are from: datasets of any kind."""
    max_samples_per_dataset: int | None = Field(default=None, gt=0)
    """Texts drawn of each dataset at most, by the run's seed; None = all. A text that occurs in several rows may be
    drawn as often."""

    def build(self, context: BuildContext) -> Dataset:
        """Reads the datasets. Raises what they raise."""
        from embed_distill.datasets.plain_texts import Part, PlainTexts, drawn

        parts = []
        for number, config in enumerate(self.datasets):
            dataset = config.build(context)
            slots = drawn(len(dataset), self.max_samples_per_dataset, (context.seed, number))
            parts.append(Part(dataset, slots))
        texts = PlainTexts(parts)
        of = ", ".join(f"{len(part.slots):,} of {part.dataset.name}" for part in parts)
        context.announce(f"plain texts: {len(texts):,} ({of})")
        return texts
