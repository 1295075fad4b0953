"""A teacher that the run trains itself: its section, and the dataset kind ``with-trained-teacher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from embed_core.config.component import DatasetConfig, LossConfig, ModelConfig, SamplerConfig, Section
from embed_core.config.run import TrainConfig

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset


class TrainedTeacher(Section):
    """A teacher that a run of its own trains where it is first needed. It is kept in the cache and used ever after."""

    model: ModelConfig
    """What is trained; exported by the checkpoint kind `transformers`."""
    data: DatasetConfig
    """What it is trained on. Another content of it is another teacher."""
    sampler: SamplerConfig
    """How its batches are drawn."""
    loss: LossConfig
    """What it is trained by."""
    train: TrainConfig = TrainConfig()
    """How long it is trained."""
    seed: int = Field(default=42, ge=0)
    """Seed of the teacher's own run."""
    max_length: int = Field(default=512, ge=3)
    """Tokens at which it cuts texts as a teacher."""


class WithTrainedTeacherConfig(DatasetConfig):
    """Another dataset with a teacher's vectors, as kind `with-teacher`; the teacher is trained first, once."""

    kind: Literal["with-trained-teacher"] = "with-trained-teacher"
    inner: DatasetConfig
    """The dataset, of any kind."""
    teacher: TrainedTeacher
    """The teacher that is trained, and how."""
    store: str | None = None
    """Folder of the vectors; None = ``teachers`` in the cache directory (``EMBED_CACHE``)."""

    def build(self, context: BuildContext) -> Dataset:
        """All ranks take part in the training. Raises what a run raises."""
        from embed_distill.datasets.config import WithTeacherConfig
        from embed_distill.teacher.train import trained_teacher

        teacher = trained_teacher(self.teacher, context)
        return WithTeacherConfig(inner=self.inner, teachers=(teacher,), store=self.store).build(context)
