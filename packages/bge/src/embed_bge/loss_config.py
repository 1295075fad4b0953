"""Config of BGE-M3's unified loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from embed_core.config.component import LossConfig, Section
from embed_core.losses.config import MaskConfig

if TYPE_CHECKING:
    from embed_bge.loss import BGEUnifiedLoss
    from embed_core.config.context import BuildContext


class TermWeights(Section):
    """Weights of the four terms; their weighted sum is divided by 4, whatever the weights."""

    dense: float = Field(default=1.0, ge=0)
    sparse: float = Field(default=0.1, ge=0)
    multi: float = Field(default=1.0, ge=0)
    ensemble: float = Field(default=1.0, ge=0)


class EnsembleWeights(Section):
    """How the three kinds of score add up to the ensemble's: the third term, and the teacher of self-distillation."""

    dense: float = Field(default=1.0, ge=0)
    sparse: float = Field(default=0.3, ge=0)
    multi: float = Field(default=1.0, ge=0)


class SelfDistillWeights(Section):
    """Weights of the three self-distillation terms; their weighted sum is divided by 3, whatever the weights."""

    dense: float = Field(default=1.0, ge=0)
    sparse: float = Field(default=0.1, ge=0)
    multi: float = Field(default=1.0, ge=0)


class BGEUnifiedConfig(LossConfig):
    """BGE-M3's unified fine-tuning (Chen et al. 2024): dense, lexical and multi-vector retrieval and their ensemble.

    The defaults are FlagEmbedding's, except ``mask``: set all of it off to reproduce FlagEmbedding to the digit.
    """

    kind: Literal["bge-unified"] = "bge-unified"
    temperature: float = Field(default=0.02, gt=0)
    """Every score is divided by it; the ensemble adds up the divided scores."""
    unified_finetuning: bool = True
    """False trains the dense vectors alone; the weights and self-distillation then mean nothing."""
    weights: TermWeights = TermWeights()
    ensemble: EnsembleWeights = EnsembleWeights()
    use_self_distill: bool = False
    """The ensemble teaches each kind: the loss becomes its mean with the self-distillation terms."""
    self_distill_weights: SelfDistillWeights = SelfDistillWeights()
    self_distill_start_step: int = Field(default=-1, ge=-1)
    """Self-distillation starts after this many + 1 optimizer steps: -1 from the first step, as in FlagEmbedding."""
    knowledge_distillation: bool = False
    """Learn from the data's teacher scores (``pos_scores``, ``neg_scores``); rows without them keep the plain loss."""
    kd_loss_type: Literal["kl_div", "m3_kd_loss"] = "kl_div"
    """``kl_div`` adds the soft cross-entropy over the row's own group; ``m3_kd_loss`` replaces the hard one by the
    teacher-weighted sum over the group, each passage against the batch without the group's earlier ones."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Teacher scores are divided by it before the softmax: raw reranker scores are nearly one-hot at 1."""
    in_batch: bool = True
    """Passages of other rows are negatives too; False = only the row's own group counts."""
    mask: MaskConfig = MaskConfig()
    """False negatives, left out of every term alike; ``margin`` compares dense similarities."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not self.unified_finetuning:
            if self.use_self_distill:
                raise ValueError(
                    "use_self_distill needs unified_finetuning: true: a dense vector alone has no ensemble"
                )
            return self
        if not any(self.weights.model_dump().values()):
            raise ValueError("weights are all 0: give at least one of dense, sparse, multi, ensemble a value above 0")
        if self.use_self_distill and not any(self.self_distill_weights.model_dump().values()):
            raise ValueError("self_distill_weights are all 0: give one a value above 0, or set use_self_distill: false")
        if (self.weights.ensemble or self.use_self_distill) and not any(self.ensemble.model_dump().values()):
            raise ValueError("ensemble weights are all 0: give one a value above 0, or set weights.ensemble: 0")
        return self

    def build(self, context: BuildContext) -> BGEUnifiedLoss:
        """The loss; it has no parameters."""
        from embed_bge.loss import BGEUnifiedLoss

        return BGEUnifiedLoss(self)
