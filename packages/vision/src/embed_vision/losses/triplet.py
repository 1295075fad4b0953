"""The triplet margin loss (loss kind ``triplet``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from embed_core.embeddings import missing_kind
from embed_core.losses.contrastive import rows_of
from embed_core.losses.false_negatives import KnownPositives
from embed_core.losses.tiled_cross_entropy import fits_in_a_tile
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_vision.losses.config import TripletLossConfig

NONE = -1
"""Stands for a column where there is none."""


class TripletLoss(nn.Module):
    """``mean_b mean_n max(0, d(q_b, p_b⁺) − d(q_b, p_n) + margin)`` (Schroff et al. 2015, arXiv 1503.03832).

    n runs over the row's own hard negatives, or is the nearest of them; if a row has none, n is the nearest passage of
    the other rows (Hermans et al. 2017, arXiv 1703.07737). The nearest is found without a graph, so memory is that of
    the vectors. Metrics: ``loss``; ``active``, the share of rows with a triplet inside the margin; ``distance_gap``,
    the mean of d(negative) − d(positive).
    """

    shares_rows = True

    def __init__(self, config: TripletLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows, or the share of ``targets.own_rows``. Raises ConfigError without dense vectors."""
        query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
        if query_BD is None or passage_PD is None:
            raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
        if self.config.distance == "cosine":
            query_BD, passage_PD = (functional.normalize(v, dim=-1) for v in (query_BD, passage_PD))
        B = query_BD.shape[0]
        own = slice(*(targets.own_rows or (0, B)))
        row_T, column_T = self._triplets(query_BD[own], passage_PD, targets, own)
        query_ND, positive_N = query_BD[own], targets.positive_columns_B[own]
        near_N = self._distance(query_ND, passage_PD[positive_N])
        gap_T = self._distance(query_ND[row_T], passage_PD[column_T]) - near_N[row_T]
        count_N = torch.bincount(row_T, minlength=query_ND.shape[0]).clamp(min=1)
        weight_T = 1 / (count_N[row_T] * B).to(gap_T.dtype)
        loss_T = functional.relu(self.config.margin - gap_T)
        # Without any triplet too, the loss needs a gradient, which is zero.
        loss = (loss_T * weight_T).sum() + 0 * query_BD.sum() + 0 * passage_PD.sum()
        active_N = torch.zeros_like(near_N.detach()).index_add(0, row_T, (loss_T.detach() > 0).to(near_N.dtype)) > 0
        metrics = {
            "loss": loss.detach(),
            "active": active_N.sum().to(loss.dtype) / B,
            "distance_gap": (gap_T.detach() * weight_T).sum(),
        }
        return LossOutput(loss, metrics)

    def _triplets(self, query_ND: Tensor, passage_PD: Tensor, targets: Targets, own: slice) -> tuple[Tensor, Tensor]:
        """The row (counted from the start of ``own``) and the column of the negative, for every triplet."""
        row_P = rows_of(targets.groups_B1, passage_PD.shape[0])
        known = KnownPositives(targets, self.config.mask)
        false_P = known.pairs(row_P)
        false_P[targets.positive_columns_B] = True
        mine_P = (row_P >= own.start) & (row_P < own.stop)
        column_T = (mine_P & ~false_P).nonzero().squeeze(1)
        row_T = row_P[column_T] - own.start
        alone_N = torch.bincount(row_T, minlength=query_ND.shape[0]) == 0
        if self.config.negatives == "hardest":
            row_T, column_T = self._nearest(query_ND, passage_PD, row_T, column_T)
        if self.config.in_batch and bool(alone_N.any()):
            row_M = alone_N.nonzero().squeeze(1)
            column_M = self._nearest_of_all(query_ND, passage_PD, row_M, known, own.start, targets)
            row_T, column_T = torch.cat([row_T, row_M]), torch.cat([column_T, column_M])
        real_T = column_T != NONE
        return row_T[real_T], column_T[real_T]

    @torch.no_grad()
    def _nearest(self, query_ND: Tensor, passage_PD: Tensor, row_T: Tensor, column_T: Tensor) -> tuple[Tensor, Tensor]:
        """Keep each row's triplet with the nearest negative, the first of equals."""
        distance_T = self._distance(query_ND[row_T], passage_PD[column_T])
        order_T = torch.argsort(distance_T, stable=True)
        order_T = order_T[torch.argsort(row_T[order_T], stable=True)]
        row_T, column_T = row_T[order_T], column_T[order_T]
        first_T = torch.ones_like(row_T, dtype=torch.bool)
        first_T[1:] = row_T[1:] != row_T[:-1]
        return row_T[first_T], column_T[first_T]

    @torch.no_grad()
    def _nearest_of_all(
        self, query_ND: Tensor, passage_PD: Tensor, row_M: Tensor, known: KnownPositives, start: int, targets: Targets
    ) -> Tensor:
        """Column of the nearest passage in the batch that answers none of the rows ``row_M``, or NONE; in blocks."""
        found_M = torch.full_like(row_M, NONE)
        size = _rows_of_a_tile(query_ND, passage_PD)
        for first in range(0, row_M.shape[0], size):
            row_m = row_M[first : first + size]
            far_mP = self._table(query_ND[row_m], passage_PD)
            low, high = int(row_m[0]), int(row_m[-1]) + 1
            answers = known.tile(slice(low + start, high + start), slice(0, passage_PD.shape[0]))
            if answers is not None:
                far_mP.masked_fill_(answers[row_m - low], torch.inf)
            far_mP.scatter_(1, targets.positive_columns_B[row_m + start].unsqueeze(1), torch.inf)
            least_m, column_m = far_mP.min(-1)
            found_M[first : first + size] = column_m.masked_fill(least_m.isinf(), NONE)
        return found_M

    def _distance(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        """Distances ``[N]`` of vectors row by row."""
        if self.config.distance == "cosine":
            return 1 - (a_ND * b_ND).sum(-1)
        # This norm's gradient at zero is zero; a square root's would be NaN.
        order = 2 if self.config.distance == "euclidean" else 1
        distance_N: Tensor = torch.linalg.vector_norm(a_ND - b_ND, ord=order, dim=-1)
        return distance_N

    def _table(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        """Distances ``[N, M]`` of all pairs."""
        if self.config.distance == "cosine":
            return 1 - a_ND @ b_MD.T
        return torch.cdist(a_ND, b_MD, p=2.0 if self.config.distance == "euclidean" else 1.0)


def _rows_of_a_tile(query_ND: Tensor, passage_PD: Tensor) -> int:
    """Number of rows whose table with all passages fits one tile."""
    size = int(query_ND.shape[0])
    while size > 1 and not fits_in_a_tile(query_ND[:size], passage_PD):
        size = -(-size // 2)
    return size
