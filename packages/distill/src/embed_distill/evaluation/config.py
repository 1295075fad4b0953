"""The evaluator kind ``two-by-two``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.evaluation.config import RetrievalEvaluatorConfig
from embed_distill.teacher.config import TeacherConfig
from embed_distill.teacher.train_config import TrainedTeacher

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset
    from embed_distill.evaluation.asymmetric import TwoByTwoEvaluator


class TwoByTwoConfig(RetrievalEvaluatorConfig):
    """Asymmetric evaluation: exact retrieval with student or teacher as encoder of the queries and of the documents.

    The mixed pairs, such as student's queries on the teacher's index, are evaluated where both have vectors of one
    width. Teacher vectors come from the teacher store and are computed once.
    """

    kind: Literal["two-by-two"] = "two-by-two"  # type: ignore[assignment] # another kind, with the same fields
    teachers: tuple[TeacherConfig, ...] = ()
    """The teachers, as in the dataset kind `with-teacher`. Give either these or ``teacher``."""
    teacher: TrainedTeacher | None = None
    """A teacher that is trained first, as in the dataset kind `with-trained-teacher`."""
    store: str | None = None
    """Folder of the teacher store; None = ``teachers`` in the cache directory (``EMBED_CACHE``)."""
    dtype: Literal["fp16", "int8"] = "fp16"
    """Storage format of the vectors, as in `with-teacher`."""
    measures: tuple[str, ...] = Field(default=("nDCG@10",), min_length=1)
    """The measures to report, by their ir-measures names."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (not self.teachers) == (self.teacher is None):
            raise ValueError("kind 'two-by-two' needs either `teachers` or `teacher`, one of the two")
        return self

    @field_validator("ways")
    @classmethod
    def _dense_only(cls, ways: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if ways is not None:
            raise ValueError(
                "ways: kind 'two-by-two' ranks by dense vectors alone: leave the key out, or use kind 'retrieval'"
            )
        return ways

    def build(self, context: BuildContext, dataset: Dataset) -> TwoByTwoEvaluator:
        """The evaluator. Raises ConfigError without data to evaluate on, DataError for a folder that cannot be read."""
        from embed_distill.evaluation.asymmetric import TwoByTwoEvaluator
        from embed_distill.teacher.cached import Sources
        from embed_distill.teacher.train import trained_teacher

        trained = () if self.teacher is None else (trained_teacher(self.teacher, context),)
        sources = Sources.of(self.teachers or trained, self.store, self.dtype, context)
        return TwoByTwoEvaluator(self, self._data(dataset), context.announce, sources)
