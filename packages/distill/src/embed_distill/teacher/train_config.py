"""The section of a teacher that the run trains itself, and the dataset kind ``with-trained-teacher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import DatasetConfig, LossConfig, ModelConfig, SamplerConfig, Section
from embed_core.config.run import TrainConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset


class TrainedTeacher(Section):
    """A teacher that is trained in a run of its own when it is first needed, and then kept in the cache."""

    model: ModelConfig
    """The model to train; it is exported by the checkpoint kind `transformers`."""
    data: DatasetConfig
    """The data to train on. If its content changes, another teacher is trained."""
    sampler: SamplerConfig
    """How its batches are drawn."""
    loss: LossConfig
    """The loss of its training."""
    train: TrainConfig = TrainConfig()
    """The length of its training."""
    seed: int = Field(default=42, ge=0)
    """Seed of its training."""
    max_length: int = Field(default=512, ge=3)
    """Number of tokens at which it cuts texts as a teacher."""


class WithTrainedTeacherConfig(DatasetConfig):
    """Another dataset with a teacher's vectors, like kind `with-teacher`; the teacher is trained first, once."""

    kind: Literal["with-trained-teacher"] = "with-trained-teacher"
    inner: DatasetConfig
    """The dataset, of any kind."""
    teacher: TrainedTeacher
    """The teacher and its training."""
    store: str | None = None
    """Folder of the teacher store; None = ``teachers`` in the cache directory (``EMBED_CACHE``)."""

    def build(self, context: BuildContext) -> Dataset:
        """Train the teacher, on all ranks, and build the dataset. Raises what a run raises."""
        from embed_distill.datasets.config import WithTeacherConfig
        from embed_distill.teacher.train import trained_teacher

        teacher = trained_teacher(self.teacher, context)
        return WithTeacherConfig(inner=self.inner, teachers=(teacher,), store=self.store).build(context)
