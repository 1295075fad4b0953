"""Configs of the distillation losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import LossConfig, Section

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_distill.losses.cosine import TeacherCosine
    from embed_distill.losses.kd import DistilledLoss
    from embed_distill.losses.kl import TeacherKL
    from embed_distill.losses.l2 import TeacherL2
    from embed_distill.losses.margin_mse import MarginMSE
    from embed_distill.losses.mse import TeacherMSE
    from embed_distill.losses.similarity import TeacherSimilarity
    from embed_distill.losses.spread_out import SpreadOut
    from embed_distill.losses.weighted_sum import WeightedSum


TextsOf = Literal["both", "queries", "passages"]


class EmbeddingMatchConfig(LossConfig):
    """Common keys of the losses that compare each vector with the teacher's vector of the same text."""

    texts: TextsOf = "both"
    """Which texts are compared; with ``both`` the mean is over all texts, however many passages a row has."""
    teacher_dims: Literal["first"] | None = None
    """``first`` cuts the teacher's vectors to the student's width and scales them to unit length: for Matryoshka
    teachers, whose first values are a usable vector. None = the widths have to be equal."""
    normalize: bool = True
    """Scale the teacher's vectors to unit length; false takes them as the dataset gives them."""


class TeacherMSEConfig(EmbeddingMatchConfig):
    """Mean squared difference of the student's vectors and the teacher's (Reimers & Gurevych 2020, arXiv 2004.09813).

    The mean is over the values too, so for vectors of unit length the loss starts near 2 / width.
    """

    kind: Literal["teacher-mse"] = "teacher-mse"

    def build(self, context: BuildContext) -> TeacherMSE:
        """The loss; it has no parameters."""
        from embed_distill.losses.mse import TeacherMSE

        return TeacherMSE(self)


class TeacherCosineConfig(EmbeddingMatchConfig):
    """One minus the cosine of the student's vectors and the teacher's (Jasper and Stella, arXiv 2412.19048)."""

    kind: Literal["teacher-cosine"] = "teacher-cosine"

    def build(self, context: BuildContext) -> TeacherCosine:
        """The loss; it has no parameters."""
        from embed_distill.losses.cosine import TeacherCosine

        return TeacherCosine(self)


class TeacherL2Config(EmbeddingMatchConfig):
    """Euclidean distance of the student's vectors and the teacher's (EmbedDistill, arXiv 2301.12005; LEAF)."""

    kind: Literal["teacher-l2"] = "teacher-l2"

    def build(self, context: BuildContext) -> TeacherL2:
        """The loss; it has no parameters."""
        from embed_distill.losses.l2 import TeacherL2

        return TeacherL2(self)


class TeacherSimilarityConfig(LossConfig):
    """Mean squared difference of the student's and the teacher's cosines of all pairs of the batch's texts.

    The student learns the geometry, not the coordinates (Jasper and Stella, arXiv 2412.19048), so widths may differ.
    """

    kind: Literal["teacher-similarity"] = "teacher-similarity"
    texts: TextsOf = "both"
    """Which pairs: all texts of the batch with one another, the queries alone, or the passages alone."""

    def build(self, context: BuildContext) -> TeacherSimilarity:
        """The loss; it has no parameters."""
        from embed_distill.losses.similarity import TeacherSimilarity

        return TeacherSimilarity(self)


class RankingConfig(LossConfig):
    """Common keys of the losses that learn how a teacher ranks a query's passages."""

    source: Literal["auto", "vectors", "scores"] = "auto"
    """The teacher's scores: ``scores`` takes the dataset's, in the rows that have them; ``vectors`` takes the cosine of
    the teacher's vectors; ``auto`` takes a row's scores if it has them, else its vectors."""
    over: Literal["group", "batch"] = "group"
    """``group``: the passages of the query's own row. ``batch``: all passages of the batch, by the vectors alone, since
    scores exist only for a row's own passages."""
    normalize: bool = True
    """Scale the teacher's vectors to unit length, so that their dot products are cosines."""

    @model_validator(mode="after")
    def _scores_are_of_groups(self) -> Self:
        if self.over == "batch" and self.source == "scores":
            raise ValueError(
                "source: scores with over: batch: a dataset scores a row's own passages only: "
                "set over: group, or source: vectors"
            )
        return self


class TeacherKLConfig(RankingConfig):
    """Kullback-Leibler divergence of the student's distribution over passages from the teacher's.

    A listwise loss (Lin et al. 2020, arXiv 2010.11386); widths may differ. The mean is over the rows that have a
    teacher and at least two passages.
    """

    kind: Literal["teacher-kl"] = "teacher-kl"
    temperature: float = Field(default=0.05, gt=0)
    """Divisor of the student's similarities before the softmax."""
    teacher_temperature: float | None = Field(default=None, gt=0)
    """Divisor of the teacher's; None = 1 for the dataset's scores, ``temperature`` for similarities of vectors."""
    temperature_squared: bool = False
    """Multiply the loss by temperature² (Hinton et al. 2015), as sentence-transformers does. This keeps gradients of
    equal size when temperatures above 1 are compared; below 1 it makes the loss small."""

    def build(self, context: BuildContext) -> TeacherKL:
        """The loss; it has no parameters."""
        from embed_distill.losses.kl import TeacherKL

        return TeacherKL(self)


class MarginMSEConfig(RankingConfig):
    """Mean squared difference of the student's and the teacher's margins (Hofstätter et al. 2020, arXiv 2010.02666).

    A margin is the positive's score minus another passage's score; the mean is over all margins.
    """

    kind: Literal["margin-mse"] = "margin-mse"
    teacher_scale: float = Field(default=1.0, gt=0)
    """Factor on the teacher's margins: a reranker's raw scores have a wider range than cosines, whose margins are at
    most 2."""

    def build(self, context: BuildContext) -> MarginMSE:
        """The loss; it has no parameters."""
        from embed_distill.losses.margin_mse import MarginMSE

        return MarginMSE(self)


class SpreadOutConfig(LossConfig):
    """Pushes vectors of different texts to be orthogonal: global orthogonal regularisation (Zhang et al. 2017).

    It needs no teacher. The defaults are EmbeddingGemma's (arXiv 2509.20354): the second moment alone, queries plus
    passages.
    """

    kind: Literal["spread-out"] = "spread-out"
    mean_weight: float = Field(default=0.0, ge=0)
    """Weight of (mean cosine)², the term that keeps vectors from pointing the same way."""
    second_moment_weight: float = Field(default=1.0, ge=0)
    """Weight of the mean squared cosine above 1 / width, its value for vectors evenly spread on a sphere."""
    aggregation: Literal["sum", "mean"] = "sum"
    """How the queries' term and the passages' term are combined."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.mean_weight and not self.second_moment_weight:
            raise ValueError("mean_weight and second_moment_weight are both 0: give one of them a value above 0")
        return self

    def build(self, context: BuildContext) -> SpreadOut:
        """The loss; it has no parameters."""
        from embed_distill.losses.spread_out import SpreadOut

        return SpreadOut(self)


class TermConfig(Section):
    """One term of a weighted sum."""

    loss: LossConfig
    """The loss, of any kind."""
    weight: float = Field(default=1.0, ge=0)
    """Factor of the loss in the sum; at 0 it is not computed."""


class WeightedSumConfig(LossConfig):
    """The weighted sum of several losses, of any kinds."""

    kind: Literal["weighted-sum"] = "weighted-sum"
    terms: dict[str, TermConfig]
    """The losses; their names are those of the metrics."""
    auto_scale: bool = False
    """Divide each term, before its weight, by the norm of its gradient (with respect to the embeddings) in the run's
    first batch. Weights then say how much each term moves the vectors at the start. The divisor stays fixed."""

    @field_validator("terms")
    @classmethod
    def _something_is_trained(cls, terms: dict[str, TermConfig]) -> dict[str, TermConfig]:
        if not any(term.weight for term in terms.values()):
            raise ValueError("terms have no weight above 0: give at least one term, with a weight above 0")
        for name in terms:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"the term {name!r}: names have letters, digits, - and _ only")
        return terms

    def build(self, context: BuildContext) -> WeightedSum:
        """The sum of the terms. Raises what they raise."""
        from embed_distill.losses.weighted_sum import WeightedSum

        losses = {name: term.loss.build(context) for name, term in self.terms.items() if term.weight}
        return WeightedSum(self, losses)


DEFAULT: dict[str, Any] = {"kind": "teacher-kl", "over": "batch"}
"""The default ``kd`` compares scores, which have no width, so it works with any pair of teacher and student."""


class DistilledConfig(LossConfig):
    """Another loss combined with learning from a teacher: ``(1 - alpha) · inner + alpha · kd``.

    The dataset has to have a teacher's vectors (kind ``with-teacher``), or whatever else ``kd`` needs.
    """

    kind: Literal["distilled"] = "distilled"
    inner: LossConfig
    """The task's loss, of any kind."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher's loss: 0 = only ``inner``, 1 = only ``kd``."""
    kd: LossConfig = cast("LossConfig", DEFAULT)  # validated by its kind, as one in a file
    """The loss that learns from the teacher, of any kind. By default the student learns to rank the batch's passages as
    the teacher does, whatever the widths of their vectors."""

    def build(self, context: BuildContext) -> DistilledLoss:
        """The combined loss. Raises what the two raise."""
        from embed_distill.losses.kd import DistilledLoss

        return DistilledLoss(self, self.inner.build(context), self.kd.build(context))
