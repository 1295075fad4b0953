"""The evaluator kinds ``image-text-retrieval`` and ``validation-loss``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from embed_core.config.component import DatasetConfig, EvaluatorConfig, LossConfig
from embed_core.errors import ConfigError
from embed_core.evaluation.measures import parse_measures

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Dataset, Evaluator
    from embed_core.types import RetrievalSet


class ImageTextRetrievalConfig(EvaluatorConfig):
    """Exact retrieval over image-text rows, in either direction, with an optional gallery of results."""

    kind: Literal["image-text-retrieval"] = "image-text-retrieval"
    name: str = Field(default="held-out", min_length=1, pattern=r"^[^/]+$")
    """Prefix of the metrics."""
    data: DatasetConfig | None = None
    """Rows to evaluate on, all of them, of kind `image-text`; None = the rows that the run's data holds out."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward` searches passages with queries (in t2i: pictures with texts), `reverse` queries with passages."""
    measures: tuple[str, ...] = Field(default=("R@1", "R@5", "nDCG@10", "RR@10"), min_length=1)
    """Measures by their ir-measures names; `Recall@1` and `MRR@10` are the same as `R@1` and `RR@10`."""
    query_limit: int | None = Field(default=None, gt=0)
    """Largest number of queries, chosen by a hash of their ids; None = all."""
    corpus_limit: int | None = Field(default=None, gt=0)
    """Largest number of documents besides the relevant ones, which all stay; None = all."""
    tile: int = Field(default=256, gt=0)
    """Documents encoded and scored at a time on one rank; it bounds the memory and changes no result."""
    gallery: int = Field(default=0, ge=0)
    """Number of sample queries drawn with their results, before and after, in `gallery-{name}.png`; 0 = none."""
    gallery_depth: int = Field(default=5, ge=1, le=20)
    """Number of results drawn for each sample query."""

    @field_validator("measures")
    @classmethod
    def _measures_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        parse_measures(names)
        return names

    def build(self, context: BuildContext, dataset: Dataset) -> Evaluator:
        """The evaluator. Raises ConfigError without rows to evaluate on, and what reading them raises."""
        from embed_vision.datasets.dataset import reversed_set
        from embed_vision.evaluation.evaluator import ImageTextEvaluator

        data = self._set(context, dataset)
        return ImageTextEvaluator(self, reversed_set(data) if self.direction == "reverse" else data, context.announce)

    def _set(self, context: BuildContext, dataset: Dataset) -> RetrievalSet:
        if self.data is not None:
            rows: Any = self.data.build(context)
            if not hasattr(rows, "as_retrieval_set"):
                raise ConfigError(
                    f"evaluation {self.name!r}: data of kind {self.data.kind!r} are no image-text rows: use kind "
                    "'image-text'"
                )
            found: RetrievalSet = rows.as_retrieval_set()
            return found
        held_out = dataset.held_out()
        if held_out is None:
            raise ConfigError(
                f"evaluation {self.name!r} has nothing to evaluate on: dataset {dataset.name!r} holds no rows out; set "
                "the evaluation's `data` to other rows, or `data.held_out_rows` to a number of rows"
            )
        return held_out


class ValidationLossConfig(EvaluatorConfig):
    """The training loss on rows that are not trained on, the same on all ranks. Lower is better."""

    kind: Literal["validation-loss"] = "validation-loss"
    name: str = Field(default="validation", min_length=1, pattern=r"^[^/]+$")
    """Prefix of the metrics."""
    data: DatasetConfig | None = None
    """The rows, from any kind of dataset; None = the queries that the run's data holds out, each with one positive."""
    loss: LossConfig
    """The loss of the run. Its trained parameters (such as a logit scale) are used with their current values."""
    batch_size: int = Field(default=64, gt=0)
    """Rows that are each other's negatives; only losses of equal batch size are comparable. The last rows, if they do
    not fill a batch, are left out, unless there are no others."""
    limit: int | None = Field(default=None, gt=0)
    """Largest number of rows, evenly spread; None = all."""

    def build(self, context: BuildContext, dataset: Dataset) -> Evaluator:
        """The evaluator. Raises ConfigError without rows to evaluate on, and what reading them raises."""
        from embed_vision.evaluation.validation import ValidationLoss, held_out_rows, rows_of_dataset

        if self.data is not None:
            rows = rows_of_dataset(self.data.build(context), context.seed, self.limit)
        else:
            held_out = dataset.held_out()
            if held_out is None:
                raise ConfigError(
                    f"evaluation {self.name!r} has no rows: dataset {dataset.name!r} holds none out; set the "
                    "evaluation's `data` to other rows, or `data.held_out_rows` to a number of rows"
                )
            rows = held_out_rows(held_out, self.limit)
        return ValidationLoss(self.name, rows, self.loss.build(context), self.batch_size, context.announce)
