"""The CoSENT loss, which puts the cosines of pairs in the order of their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from embed_core.embeddings import missing_kind
from embed_core.losses.contrastive import known_positives, rows_of
from embed_core.losses.false_negatives import KnownPositives
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_vision.losses.config import CoSENTLossConfig


class Pairs(NamedTuple):
    """Labelled pairs of a query and a passage."""

    row_K: Tensor
    column_K: Tensor
    label_K: Tensor


class CoSENTLoss(nn.Module):
    """``log(1 + Σ exp(scale · (cos_j − cos_i)))`` over all pairs i, j of the batch whose labels are label_i > label_j.

    A pair is a query with a passage of its own group; CoSENT compares pairs of different rows too. Labels are the
    scores of the data (``pos_scores``, ``neg_scores``), else 1 and 0; in a batch where only some rows have scores, the
    others are left out, because their labels would be on another scale. Sorting the labels makes it O(K log K) for K
    pairs instead of O(K²) (Huang et al. 2024, doi 10.1109/TASLP.2024.3402087).
    Metrics: ``loss``; ``pairs``, the pairs compared per row.
    """

    def __init__(self, config: CoSENTLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The loss of the whole batch, which is not a mean over rows. Raises ConfigError without dense vectors."""
        query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
        if query_BD is None or passage_PD is None:
            raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
        query_BD, passage_PD = functional.normalize(query_BD, dim=-1), functional.normalize(passage_PD, dim=-1)
        pairs = self._pairs(targets, passage_PD.shape[0])
        cosine_K = (query_BD[pairs.row_K] * passage_PD[pairs.column_K]).sum(-1)
        loss = ordered(self.config.scale * cosine_K, pairs.label_K)
        compared = pairs.label_K.shape[0] / query_BD.shape[0]
        return LossOutput(loss, {"loss": loss.detach(), "pairs": loss.detach().new_tensor(compared)})

    def _pairs(self, targets: Targets, P: int) -> Pairs:
        row_P = rows_of(targets.groups_B1, P)
        column_P = torch.arange(P, device=row_P.device)
        if targets.scores_P is not None:
            scored_P = targets.scores_P.isfinite()
            return Pairs(row_P[scored_P], column_P[scored_P], targets.scores_P[scored_P])
        if row_P.shape[0] == targets.row_ids_B.shape[0] and self.config.in_batch:  # no row has a negative
            return _all_pairs(targets, known_positives(targets, self.config.mask))
        label_P = torch.zeros(P, device=row_P.device).scatter_(0, targets.positive_columns_B, 1.0)
        real_P = ~KnownPositives(targets, self.config.mask).pairs(row_P)
        return Pairs(row_P[real_P], column_P[real_P], label_P[real_P])


def _all_pairs(targets: Targets, known_BP: Tensor) -> Pairs:
    """Every query with every passage, except its other known positives."""
    row_K, column_K = (~known_BP).nonzero(as_tuple=True)
    return Pairs(row_K, column_K, (targets.positive_columns_B[row_K] == column_K).to(torch.float32))


def ordered(logit_K: Tensor, label_K: Tensor) -> Tensor:
    """``log(1 + Σ_{label_i > label_j} exp(logit_j − logit_i))``, a scalar; 0, with a gradient, where no two differ."""
    order_K = torch.argsort(label_K, stable=True)
    label_K, logit_K = label_K[order_K], logit_K[order_K]
    # Log of the sum of exp(−logit) over the last n pairs, for every n; the sum over none is the smallest number.
    tail_K = torch.logcumsumexp(-logit_K.flip(0), 0).flip(0)
    tail_K1 = torch.cat([tail_K, tail_K.new_full((1,), torch.finfo(tail_K.dtype).min)])
    above_K = torch.searchsorted(label_K, label_K, right=True)
    some_K = above_K < label_K.shape[0]
    terms = torch.cat([logit_K.new_zeros(1), logit_K[some_K] + tail_K1[above_K[some_K]]])
    return torch.logsumexp(terms, 0) + 0 * logit_K.sum()
