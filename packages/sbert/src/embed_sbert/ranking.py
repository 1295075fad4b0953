"""MultipleNegativesRankingLoss, computed by the core's InfoNCE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional

from embed_core.losses.config import InfoNCEConfig
from embed_core.losses.infonce import InfoNCE
from embed_core.types import Batch, Embeddings, LossOutput, Targets

if TYPE_CHECKING:
    from embed_sbert.loss_config import MultipleNegativesRankingConfig


class MultipleNegativesRanking(nn.Module):
    """InfoNCE on cosines: ``mean_b −log softmax_p(scale · cos(q_b, p))`` at the row's positive.

    Metrics are those of :class:`embed_core.losses.infonce.InfoNCE`; so are memory and the sharing of rows.
    """

    shares_rows = True

    def __init__(self, config: MultipleNegativesRankingConfig) -> None:
        super().__init__()
        self.cosine = config.similarity == "cosine"
        self.infonce = InfoNCE(
            InfoNCEConfig(temperature=1 / config.scale, symmetric=config.symmetric, mask=config.mask)
        )

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows, or ``targets.own_rows``' part of it. Raises ConfigError without dense vectors."""
        if self.cosine:
            batch = Batch(_unit(batch.query), _unit(batch.passage))
        output: LossOutput = self.infonce(batch, targets)
        return output


def _unit(embeddings: Embeddings) -> Embeddings:
    if embeddings.dense_ND is None:  # the core's loss says so
        return embeddings
    return embeddings._replace(dense_ND=functional.normalize(embeddings.dense_ND, dim=-1))
