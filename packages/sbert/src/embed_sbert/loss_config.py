"""Configs of the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from embed_core.config.component import LossConfig
from embed_core.errors import did_you_mean
from embed_core.losses.config import MaskConfig
from embed_sbert.loss_names import REFUSED, SUPPORTED

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext
    from embed_sbert.loss import GivenLoss
    from embed_sbert.ranking import MultipleNegativesRanking


class MultipleNegativesRankingConfig(LossConfig):
    """``MultipleNegativesRankingLoss`` by the core's `infonce`: cross-entropy of cosines times ``scale``.

    Its value and gradient are the same (Henderson et al. 2017, arXiv 1705.00652), computed in tiles instead of a table
    of all similarities, each rank its own rows.
    """

    kind: Literal["multiple-negatives-ranking"] = "multiple-negatives-ranking"
    scale: float = Field(default=20.0, gt=0)
    """Similarities are multiplied by it: 1 / temperature."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """`cosine` brings the vectors to unit length; `dot` takes them as they are."""
    symmetric: bool = False
    """Average with the opposite direction: each positive must find its query among the batch's queries."""
    mask: MaskConfig = MaskConfig()
    """Passages that must not serve as a query's negatives. sentence-transformers leaves none out; if a batch has no
    repeated texts (sampler `no-duplicates`), neither does this."""

    def build(self, context: BuildContext) -> MultipleNegativesRanking:
        """The loss; it has no parameters."""
        from embed_sbert.ranking import MultipleNegativesRanking

        return MultipleNegativesRanking(self)


class SentenceTransformersLossConfig(LossConfig):
    """A loss of sentence-transformers itself, computed from the embeddings of the global batch.

    All work except those that run a model of their own; the error for these names an alternative.
    """

    kind: Literal["sentence-transformers-loss"] = "sentence-transformers-loss"
    name: str
    """The name of its class, such as ``CoSENTLoss``."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor, without the model. A function or a distance is given by name (``dot_score``,
    ``COSINE``), a class of torch by path (``torch.nn.L1Loss``)."""

    @field_validator("name")
    @classmethod
    def _can_be_computed(cls, name: str) -> str:
        if name in REFUSED:
            raise ValueError(f"{name} cannot be computed from embeddings: {REFUSED[name]}")
        if name not in SUPPORTED:
            same = [one for one in SUPPORTED if one.lower() == name.lower()]
            raise ValueError(f"there is no loss {name!r}: {did_you_mean(same[0] if same else name, SUPPORTED)}")
        return name

    @model_validator(mode="after")
    def _engine_does_it(self) -> Self:
        if self.arguments.get("gather_across_devices"):
            raise ValueError(
                "arguments.gather_across_devices: true is always so here: the loss sees the batch of all ranks; "
                "leave the key out"
            )
        if "model" in self.arguments:
            raise ValueError("arguments.model: the loss is given embeddings, no model: leave the key out")
        return self

    def build(self, context: BuildContext) -> GivenLoss:
        """The loss. Raises ConfigError for arguments that it does not take."""
        from embed_sbert.loss import build_loss

        return build_loss(self, context)
