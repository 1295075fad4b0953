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
    """What the losses that compare each vector with the teacher's of the same text have in common."""

    texts: TextsOf = "both"
    """Which vectors are compared; with ``both`` the mean is over all texts, however many passages a row has."""
    teacher_dims: Literal["first"] | None = None
    """``first`` cuts the teacher's vectors to as many values as the student's have, and brings them to unit length: for
    Matryoshka teachers, whose first values are a vector. None = the widths have to be equal."""
    normalize: bool = True
    """Bring the teacher's vectors to unit length; false takes them as the dataset gives them."""


class TeacherMSEConfig(EmbeddingMatchConfig):
    """Mean squared difference of the student's vectors and the teacher's (Reimers & Gurevych 2020, arXiv 2004.09813).

    The mean is over the values too: vectors of unit length start near 2 / width.
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

    Learns the structure and not the place (Jasper and Stella, arXiv 2412.19048): widths may differ.
    """

    kind: Literal["teacher-similarity"] = "teacher-similarity"
    texts: TextsOf = "both"
    """Which pairs are compared: all texts of the batch with one another, the queries alone, or the passages alone."""

    def build(self, context: BuildContext) -> TeacherSimilarity:
        """The loss; it has no parameters."""
        from embed_distill.losses.similarity import TeacherSimilarity

        return TeacherSimilarity(self)


class RankingConfig(LossConfig):
    """What the losses that learn how a teacher ranks a query's passages have in common."""

    source: Literal["auto", "vectors", "scores"] = "auto"
    """What the teacher says of a query and a passage: ``scores``, those of the dataset, in the rows that have them;
    ``vectors``, the cosine of the teacher's vectors; ``auto``, a row's scores, else its vectors."""
    over: Literal["group", "batch"] = "group"
    """``group``: the passages of the query's own row. ``batch``: all passages of the batch; by the vectors alone, since
    scores are of a row's own passages."""
    normalize: bool = True
    """Bring the teacher's vectors to unit length, so that their products are cosines."""

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

    Listwise (Lin et al. 2020, arXiv 2010.11386); widths may differ. The mean is over the rows that have a teacher and
    at least two passages.
    """

    kind: Literal["teacher-kl"] = "teacher-kl"
    temperature: float = Field(default=0.05, gt=0)
    """The student's similarities are divided by it before the softmax."""
    teacher_temperature: float | None = Field(default=None, gt=0)
    """Temperature of the teacher; None = 1 for the dataset's scores, ``temperature`` for similarities of vectors."""
    temperature_squared: bool = False
    """Multiply the loss by temperature² (Hinton et al. 2015), as sentence-transformers does. It evens out the size of
    the gradient where temperatures above 1 are compared; below 1 it makes the loss small."""

    def build(self, context: BuildContext) -> TeacherKL:
        """The loss; it has no parameters."""
        from embed_distill.losses.kl import TeacherKL

        return TeacherKL(self)


class MarginMSEConfig(RankingConfig):
    """Mean squared difference of the student's and the teacher's margins (Hofstätter et al. 2020, arXiv 2010.02666).

    A margin is the score of the positive minus that of another passage; the mean is over all of them.
    """

    kind: Literal["margin-mse"] = "margin-mse"
    teacher_scale: float = Field(default=1.0, gt=0)
    """The teacher's margins are multiplied by it: a reranker's raw scores reach further than cosines, whose margins are
    at most 2."""

    def build(self, context: BuildContext) -> MarginMSE:
        """The loss; it has no parameters."""
        from embed_distill.losses.margin_mse import MarginMSE

        return MarginMSE(self)


class SpreadOutConfig(LossConfig):
    """Vectors of different texts shall be orthogonal: global orthogonal regularisation (Zhang et al. 2017).

    Needs no teacher. The defaults are EmbeddingGemma's (arXiv 2509.20354): the second moment alone, queries plus
    passages.
    """

    kind: Literal["spread-out"] = "spread-out"
    mean_weight: float = Field(default=0.0, ge=0)
    """Weight of (the mean cosine)², which keeps vectors from pointing the same way."""
    second_moment_weight: float = Field(default=1.0, ge=0)
    """Weight of the mean squared cosine above 1 / width, which is that of vectors evenly spread on a sphere."""
    aggregation: Literal["sum", "mean"] = "sum"
    """How the queries' term and the passages' become one."""

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
    """What it is multiplied by; at 0 it is not computed."""


class WeightedSumConfig(LossConfig):
    """Several losses, of any kinds, added up."""

    kind: Literal["weighted-sum"] = "weighted-sum"
    terms: dict[str, TermConfig]
    """The losses by the names under which they are shown."""
    auto_scale: bool = False
    """Divide each term, before its weight, by the norm of its gradient (of the embeddings) in the run's first batch:
    weights then say how much each term moves the vectors at the start, whatever its own scale. Fixed from then on."""

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
        """The sum around its terms. Raises what they raise."""
        from embed_distill.losses.weighted_sum import WeightedSum

        losses = {name: term.loss.build(context) for name, term in self.terms.items() if term.weight}
        return WeightedSum(self, losses)


DEFAULT: dict[str, Any] = {"kind": "teacher-kl", "over": "batch"}
"""Scores of queries and passages: they have no width, so that any teacher suits any student."""


class DistilledConfig(LossConfig):
    """Another loss, and learning from a teacher besides: ``(1 - alpha) · inner + alpha · kd``.

    The dataset has to have a teacher's vectors (kind ``with-teacher``), or what ``kd`` needs instead.
    """

    kind: Literal["distilled"] = "distilled"
    inner: LossConfig
    """The loss, of any kind."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher: 0 = only ``inner``, 1 = only ``kd``."""
    kd: LossConfig = cast("LossConfig", DEFAULT)  # validated by its kind, as one in a file
    """How it learns from the teacher: any loss that does. The default has the student rank the batch's passages as the
    teacher does, whatever the widths of their vectors."""

    def build(self, context: BuildContext) -> DistilledLoss:
        """The loss around the two. Raises what they raise."""
        from embed_distill.losses.kd import DistilledLoss

        return DistilledLoss(self, self.inner.build(context), self.kd.build(context))
