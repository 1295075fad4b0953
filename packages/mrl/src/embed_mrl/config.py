"""Configs of the loss, the evaluator and the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator

from embed_core.config.component import CheckpointConfig, LossConfig
from embed_core.evaluation.config import RetrievalEvaluatorConfig
from embed_core.export.config import TransformersCheckpointConfig
from embed_mrl.dims import checked, checked_choice, checked_count, checked_weights

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_core.protocols import Checkpointer, Dataset
    from embed_mrl.evaluator import DimensionsEvaluator
    from embed_mrl.loss import MatryoshkaLoss

Precision = Literal["fp32", "int8", "binary"]


class MatryoshkaConfig(LossConfig):
    """Another loss on the first d values of each dense vector, for several d at once, added up (Kusupati et al. 2022).

    Vectors are brought to unit length at every dimension.
    """

    kind: Literal["matryoshka"] = "matryoshka"
    inner: LossConfig
    """The loss, of any kind."""
    dims: tuple[int, ...] | None = None
    """The dimensions; the full one is always trained too. None = the full one and its halves, at most four, from 16."""
    weights: tuple[float, ...] | None = None
    """Factors of the losses, one for each of ``dims``; None = 1 each. The full dimension, where ``dims`` does not list
    it, has 1."""
    n_dims_per_step: int = Field(default=-1, ge=-1)
    """Dimensions trained per step: the full one, and others drawn for each step. -1 = all of them in every step."""

    @field_validator("dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return checked(dims)

    @field_validator("inner")
    @classmethod
    def _not_nested(cls, config: LossConfig) -> LossConfig:
        inner: object = config
        while isinstance(inner, LossConfig):
            if isinstance(inner, MatryoshkaConfig):
                raise ValueError("kind 'matryoshka' inside kind 'matryoshka': give all dimensions to one of them")
            inner = getattr(inner, "inner", None)
        return config

    @field_validator("weights")
    @classmethod
    def _weights(cls, weights: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        return checked_weights(weights, info.data.get("dims"))

    @field_validator("n_dims_per_step")
    @classmethod
    def _count(cls, count: int) -> int:
        return checked_count(count)

    def build(self, context: BuildContext) -> MatryoshkaLoss:
        """The loss around the inner one. Raises what the inner one raises."""
        from embed_mrl.loss import MatryoshkaLoss

        return MatryoshkaLoss(self, self.inner.build(context), context.seed)


class DimensionsEvaluatorConfig(RetrievalEvaluatorConfig):
    """Exact retrieval by the first d values of the dense vectors, for several d, in fp32, int8 and binary.

    Everything is encoded once; a rank keeps the vectors of its documents in memory.
    """

    kind: Literal["dimensions"] = "dimensions"  # type: ignore[assignment] # another kind, with the same fields
    dims: tuple[int, ...] | None = None
    """Dimensions besides the full one; None = its halves, at most four, from 16."""
    precisions: tuple[Precision, ...] = ("fp32", "int8", "binary")
    """``int8``: documents in 256 steps between the smallest and the largest value of each dimension; queries stay
    fp32. ``binary``: the signs; documents are found by Hamming distance and ordered by the fp32 query."""
    rescore_multiplier: int = Field(default=4, ge=1)
    """``binary`` finds this many times the documents that are kept, and orders them by the fp32 query."""

    @field_validator("dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return checked(dims)

    @field_validator("precisions")
    @classmethod
    def _different(cls, precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
        if not precisions:
            raise ValueError("precisions []: name at least one of fp32, int8, binary")
        return tuple(dict.fromkeys(precisions))

    @field_validator("ways")
    @classmethod
    def _dense_only(cls, ways: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if ways is not None:
            raise ValueError(
                "ways: kind 'dimensions' ranks by dense vectors alone: leave the key out, or use kind 'retrieval'"
            )
        return ways

    def build(self, context: BuildContext, dataset: Dataset) -> DimensionsEvaluator:
        """The evaluator. Raises ConfigError without data to evaluate on, DataError for a folder that cannot be read."""
        from embed_mrl.evaluator import DimensionsEvaluator

        return DimensionsEvaluator(self, self._data(dataset), context.announce)


class MatryoshkaCheckpointConfig(CheckpointConfig):
    """Another layout, whose files also name the dimensions to which the vectors may be cut."""

    kind: Literal["matryoshka"] = "matryoshka"
    inner: CheckpointConfig = TransformersCheckpointConfig()
    """The layout, of any kind."""
    dims: tuple[int, ...] | None = None
    """Dimensions to name, as in the loss; None = the full one and its halves, at most four, from 16."""
    truncate_dim: int | None = Field(default=None, gt=0)
    """Dimensions that sentence-transformers cuts to unless told otherwise; None = it does not cut."""

    @field_validator("dims")
    @classmethod
    def _dims(cls, dims: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return checked(dims)

    @field_validator("truncate_dim")
    @classmethod
    def _truncate_dim(cls, dim: int | None, info: ValidationInfo) -> int | None:
        return checked_choice(dim, info.data.get("dims"))

    @field_validator("inner")
    @classmethod
    def _only_a_layout(cls, inner: CheckpointConfig) -> CheckpointConfig:
        if isinstance(inner, MatryoshkaCheckpointConfig):
            raise ValueError("kind 'matryoshka' inside kind 'matryoshka': one of them is enough")
        for name, field in CheckpointConfig.model_fields.items():
            # A resolved config has every default written out, so only another value was set by somebody.
            if name != "kind" and getattr(inner, name) != field.default:
                raise ValueError(f"{name} has no effect here: say when to save beside `inner`, not inside")
        return inner

    def build(self, context: BuildContext) -> Checkpointer:
        """The exporter around the inner one."""
        from embed_mrl.checkpoint import MatryoshkaCheckpointer

        return MatryoshkaCheckpointer(self, self.inner.build(context))
