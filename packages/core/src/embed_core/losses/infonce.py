"""InfoNCE on dense vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embed_core.losses import contrastive
from embed_core.scoring.dense import dense_scores
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.losses.config import InfoNCEConfig
    from embed_core.types import Batch, Targets


class InfoNCE(nn.Module):
    """``mean_b −log( exp(s[b,b⁺]/τ) / Σ_{p not masked for b} exp(s[b,p]/τ) )`` (van den Oord et al. 2018).

    ``s`` is the dot product, b⁺ the first passage of row b's group. Groups may differ in size and have no negatives.
    ``symmetric`` averages it with the same over ``s[b',b⁺]``, the queries b' competing for each positive.
    Metrics: ``loss``; ``accuracy``, the share of queries that rank their positive first; ``masked``, the share of
    candidate negatives left out as false ones.
    """

    def __init__(self, config: InfoNCEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows. Raises ConfigError where the model gives no dense vectors."""
        config, own_B = self.config, targets.positive_columns_B
        similarity_BP = dense_scores(batch.query, batch.passage)
        allowed_BP = None if config.in_batch else contrastive.own_group(targets)
        known_BP = contrastive.known_positives(targets, config.mask)
        false_BP = self._with_margin(known_BP, similarity_BP, own_B)
        mask_BP = false_BP if allowed_BP is None else false_BP | ~allowed_BP
        logits_BP = similarity_BP / config.temperature
        loss = contrastive.cross_entropy(logits_BP, mask_BP, own_B).mean()
        if config.symmetric:
            loss = (loss + self._opposite(similarity_BP, known_BP, own_B)) / 2
        return LossOutput(
            loss,
            {
                "loss": loss.detach(),
                "accuracy": contrastive.accuracy(logits_BP, mask_BP, own_B),
                "masked": contrastive.share(false_BP, allowed_BP),
            },
        )

    def _opposite(self, similarity_BP: Tensor, known_BP: Tensor, own_B: Tensor) -> Tensor:
        """Each positive looks for its query: a query that has it as a known positive is no negative of it."""
        similarity_BB = similarity_BP[:, own_B].T
        diagonal_B = torch.arange(own_B.shape[0], device=own_B.device)
        mask_BB = self._with_margin(known_BP[:, own_B].T, similarity_BB, diagonal_B)
        return contrastive.cross_entropy(similarity_BB / self.config.temperature, mask_BB, diagonal_B).mean()

    def _with_margin(self, mask_BP: Tensor, similarity_BP: Tensor, own_B: Tensor) -> Tensor:
        margin = self.config.mask.margin
        return mask_BP if margin is None else mask_BP | contrastive.above_positive(similarity_BP, own_B, margin)
