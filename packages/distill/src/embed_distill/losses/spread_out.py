"""A regulariser that spreads vectors over the sphere (loss kind ``spread-out``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from embed_core.types import LossOutput
from embed_distill.losses.blocks import summed
from embed_distill.losses.teacher import dense_of

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import SpreadOutConfig


class SpreadOut(nn.Module):
    """``w₁·M₁² + w₂·max(0, M₂ − 1/D)``, M₁ and M₂ the mean and the mean square of the cosines of different texts:
    global orthogonal regularisation (Zhang et al. 2017, arXiv 1708.06320), as EmbeddingGemma's spread-out term.

    The queries' term and the passages' are summed or averaged. Repeats of one text form no pair: they cannot be
    separated. Every rank computes the whole batch, because the moments are not sums over rows.
    Metrics: ``loss``; ``mean`` and ``second_moment``, M₁ and M₂ averaged over both columns.
    """

    def __init__(self, config: SpreadOutConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The weighted terms. Raises ConfigError without dense vectors."""
        query_BD, passage_PD = dense_of(batch)
        moments = [moments_of(query_BD, targets.query_ids_B), moments_of(passage_PD, targets.passage_ids_P)]
        config, floor = self.config, 1 / query_BD.shape[1]
        terms = [
            config.mean_weight * first.square() + config.second_moment_weight * torch.relu(second - floor)
            for first, second in moments
        ]
        loss = torch.stack(terms).sum()
        if config.aggregation == "mean":
            loss = loss / len(terms)
        first, second = torch.stack(moments).detach().mean(0)
        return LossOutput(loss, {"loss": loss.detach(), "mean": first, "second_moment": second})


def moments_of(vectors_ND: Tensor, ids_N: Tensor) -> Tensor:
    """``[2]``: mean and mean square of the cosines of pairs with different ids; 0 where there is no such pair."""
    unit_ND = normalize(vectors_ND, dim=-1)
    N = unit_ND.shape[0]

    def block(rows: slice) -> Tensor:
        same_RN = ids_N[rows].unsqueeze(1) == ids_N
        cosines_RN = (unit_ND[rows] @ unit_ND.T).masked_fill(same_RN, 0)
        return torch.stack([cosines_RN.sum(), cosines_RN.square().sum()])

    _, counts_U = torch.unique(ids_N, return_counts=True)
    pairs = (N * N - counts_U.square().sum()).clamp(min=1)
    return summed(block, slice(0, N), N) / pairs
