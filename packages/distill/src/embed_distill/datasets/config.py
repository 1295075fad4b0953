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
    """Another dataset, whose rows also have a teacher's vectors of their query and passages.

    A vector is computed once and kept in the teacher store, for all ranks, phases and runs.
    """

    kind: Literal["with-teacher"] = "with-teacher"
    inner: DatasetConfig
    """The dataset, of any kind."""
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    """One or more. The vectors of several stand side by side, each of unit length, and so is the whole."""
    store: str | None = None
    """Folder of the vectors; None = ``teachers`` in the cache directory (``EMBED_CACHE``)."""
    dtype: Literal["fp16", "int8"] = "fp16"
    """How they are kept: 2 bytes a value, or 1 and a scale per vector."""
    compute: Literal["ahead", "lazy"] = Field(default="ahead", validation_alias=AliasChoices("compute", "build"))
    """`ahead` computes all before the first step, which is resumable; `lazy` those of a batch when it is drawn. Also
    written `build`."""

    def build(self, context: BuildContext) -> Dataset:
        """The dataset; with `ahead`, all ranks fill the store first. Raises what the inner one raises, CheckpointError
        for a teacher that is not there, ConfigError for one that cannot be used, DataError for the store."""
        return self._taught(self.inner.build(context), context)

    def around(self, dataset: Dataset, context: BuildContext) -> Dataset:
        """Wraps the rows that a Python program gives."""
        return self._taught(self.inner.around(dataset, context), context)

    def _taught(self, inner: Dataset, context: BuildContext) -> WithTeacher:
        from embed_distill.datasets.with_teacher import with_teacher
        from embed_distill.teacher.cached import Sources

        return with_teacher(inner, Sources.of(self.teachers, self.store, self.dtype, context), self.compute, context)


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
