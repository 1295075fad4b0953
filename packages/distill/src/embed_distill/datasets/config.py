"""The dataset kinds ``with-teacher`` and ``plain-texts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, Field

from embed_core.config.component import DatasetConfig
from embed_distill.teacher.config import TeacherConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset
    from embed_distill.datasets.with_teacher import WithTeacher


class WithTeacherConfig(DatasetConfig):
    """Another dataset, whose rows also carry a teacher's vectors of their query and passages.

    A vector is computed once and kept in the teacher store, for all ranks, phases and runs.
    """

    kind: Literal["with-teacher"] = "with-teacher"
    inner: DatasetConfig
    """The dataset that supplies the rows, of any kind."""
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    """One or more. The vectors of several are scaled to unit length and concatenated to one of unit length."""
    store: str | None = None
    """Folder of the teacher store; None = ``teachers`` in the cache directory (``EMBED_CACHE``)."""
    dtype: Literal["fp16", "int8"] = "fp16"
    """Storage format of the vectors: `fp16` takes 2 bytes a value, `int8` 1 byte and one scale per vector."""
    compute: Literal["ahead", "lazy"] = Field(default="ahead", validation_alias=AliasChoices("compute", "build"))
    """`ahead` computes all vectors before the first step and can be resumed; `lazy` computes a batch's vectors when the
    batch is drawn. The key may also be written `build`."""

    def build(self, context: BuildContext) -> Dataset:
        """Build the dataset; with `ahead`, all ranks fill the store. Raises what the inner one raises, CheckpointError
        for a missing teacher, ConfigError for one that cannot be used, DataError for the store."""
        return self._taught(self.inner.build(context), context)

    def around(self, dataset: Dataset, context: BuildContext) -> Dataset:
        """Wrap a dataset that was passed from Python as :meth:`build` would wrap its own."""
        return self._taught(self.inner.around(dataset, context), context)

    def _taught(self, inner: Dataset, context: BuildContext) -> WithTeacher:
        from embed_distill.datasets.with_teacher import with_teacher
        from embed_distill.teacher.cached import Sources

        return with_teacher(inner, Sources.of(self.teachers, self.store, self.dtype, context), self.compute, context)


class PlainTextsConfig(DatasetConfig):
    """Single texts, taken from the queries and positives of other datasets: a student learns a teacher's vectors on
    them. Each row has one text as both query and passage, so a model without prompts encodes it only once."""

    kind: Literal["plain-texts"] = "plain-texts"
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    """Datasets of any kind that supply the texts."""
    max_samples_per_dataset: int | None = Field(default=None, gt=0)
    """Largest number of texts to draw from each dataset, by the run's seed; None = all. A text that occurs in several
    rows may be drawn several times."""

    def build(self, context: BuildContext) -> Dataset:
        """Build the datasets and draw the texts. Raises what they raise."""
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
