"""SigLIP's pairwise sigmoid loss (loss kind ``siglip``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from embed_core.embeddings import missing_kind
from embed_core.losses.false_negatives import KnownPositives
from embed_core.losses.tiled_cross_entropy import ACCELERATOR_TILE_BYTES, TILE_BYTES
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_vision.losses.config import SiglipLossConfig


class SiglipLoss(nn.Module):
    """``−1/B Σ_b Σ_p log σ(z[b,p] · (exp(logit_scale) · q_b·p_p + logit_bias))`` (Zhai et al. 2023, arXiv 2303.15343).

    z is 1 for a query and its own positive, −1 for it and every other passage of the batch, hard negatives included;
    pairs that are masked as known positives are left out. No pair depends on another, so ranks split the rows; blocks
    of rows beyond one tile are recomputed in the backward, for O(B + P) memory.
    Metrics: ``loss``; ``accuracy``, the share of queries whose positive scores highest; ``masked``, the share of
    negatives left out; ``scale`` and ``bias`` at this step.
    """

    shares_rows = True

    def __init__(self, config: SiglipLossConfig, scale: float, bias: float) -> None:
        """``scale`` is the logarithm of the scale at the start, ``bias`` the bias."""
        super().__init__()
        self.config = config
        # One element, not scalars: DeepSpeed broadcasts parameters as bytes, and a scalar has no byte view.
        self.logit_scale = nn.Parameter(torch.tensor([float(scale)]), requires_grad=config.learnable)
        self.logit_bias = nn.Parameter(torch.tensor([float(bias)]), requires_grad=config.learnable)

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows, or the share of ``targets.own_rows``. Raises ConfigError without dense vectors."""
        query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
        if query_BD is None or passage_PD is None:
            raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
        B, P = query_BD.shape[0], passage_PD.shape[0]
        known = KnownPositives(targets, self.config.mask)
        total, correct, masked = query_BD.new_zeros(()), query_BD.new_zeros(()), query_BD.new_zeros(())
        start, stop = targets.own_rows or (0, B)
        step = _rows_at_once(passage_PD)
        for first in range(start, stop, step):
            rows = slice(first, min(first + step, stop))
            positive_N = targets.positive_columns_B[rows]
            arguments = (query_BD[rows], passage_PD, positive_N, known.tile(rows, slice(0, P)))
            if step < stop - start:
                part = checkpoint(self._block, *arguments, use_reentrant=False)
            else:
                part = self._block(*arguments)
            total, correct, masked = total + part[0], correct + part[1], masked + part[2]
        loss, share = total / B, (stop - start) / B
        metrics = {
            "loss": loss.detach(),
            "accuracy": correct / B,
            "masked": masked / max(B * P - B, 1),
            "scale": self.logit_scale.detach().squeeze().exp().to(loss) * share,
            "bias": self.logit_bias.detach().squeeze().to(loss) * share,
        }
        return LossOutput(loss, metrics)

    def _block(
        self, query_ND: Tensor, passage_PD: Tensor, positive_N: Tensor, known_NP: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For some rows: the sum of the losses, how many rank their positive first, how many pairs are masked."""
        scale, bias = self.logit_scale.exp().to(query_ND.dtype), self.logit_bias.to(query_ND.dtype)
        similarity_NP = query_ND @ passage_PD.T
        own_N1 = positive_N.unsqueeze(1)
        near_NP = similarity_NP.detach()
        left_out_NP = torch.zeros_like(near_NP, dtype=torch.bool) if known_NP is None else known_NP
        if self.config.mask.margin is not None:
            above_NP = near_NP > near_NP.gather(1, own_N1) + self.config.mask.margin
            left_out_NP = left_out_NP | above_NP.scatter(1, own_N1, False)
        sign_NP = torch.full_like(near_NP, -1).scatter_(1, own_N1, 1)
        loss_NP = -functional.logsigmoid(sign_NP * (scale * similarity_NP + bias))
        best_N = near_NP.masked_fill(left_out_NP, -torch.inf).argmax(-1)
        correct = (best_N == positive_N).sum().to(query_ND.dtype)
        return loss_NP.masked_fill(left_out_NP, 0).sum(), correct, left_out_NP.sum().to(query_ND.dtype)


def _rows_at_once(passage_PD: Tensor) -> int:
    tile = TILE_BYTES if passage_PD.device.type == "cpu" else ACCELERATOR_TILE_BYTES
    return max(1, tile // (int(passage_PD.element_size()) * int(passage_PD.shape[0])))
