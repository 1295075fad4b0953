"""InfoNCE on dense vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embed_core.embeddings import missing_kind
from embed_core.losses import contrastive
from embed_core.losses.false_negatives import KnownPositives
from embed_core.losses.tiled_cross_entropy import (
    CrossEntropyResult,
    CrossEntropyTask,
    fits_in_a_tile,
    tiled_cross_entropy,
)
from embed_core.types import LossOutput

if TYPE_CHECKING:
    from embed_core.losses.config import InfoNCEConfig
    from embed_core.types import Batch, Targets


class InfoNCE(nn.Module):
    """``mean_b −log( exp(s[b,b⁺]/τ) / Σ_{p not masked for b} exp(s[b,p]/τ) )`` (van den Oord et al. 2018).

    ``s`` is the dot product, b⁺ the first passage of row b's group. Groups may differ in size and have no negatives.
    ``symmetric`` averages it with the same over ``s[b',b⁺]``, the queries b' competing for each positive.
    Memory is O((B + P)·D): large tables of similarities are computed in tiles, twice
    (:mod:`embed_core.losses.tiled_cross_entropy`).
    On several ranks each computes the rows it drew.
    Metrics: ``loss``; ``accuracy``, the share of queries that rank their positive first; ``masked``, the share of
    candidate negatives left out as false ones.
    """

    shares_rows = True

    def __init__(self, config: InfoNCEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets, table_NP: Tensor | None = None) -> LossOutput:
        """The mean over the B rows, or ``targets.own_rows``' part of it. Raises ConfigError without dense vectors.

        ``table_NP``: the dot products of these rows' queries with all passages, where they are already computed.
        """
        query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
        if query_BD is None or passage_PD is None:
            raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
        B, P = query_BD.shape[0], passage_PD.shape[0]
        own = slice(*(targets.own_rows or (0, B)))
        if self.config.in_batch:
            found, opposite = self._among_all(query_BD, passage_PD, targets, own, table_NP)
        else:
            found, opposite = self._in_groups(query_BD, passage_PD, targets, own), None
        loss = found.loss_N.sum() / B
        if opposite is not None:
            loss = (loss + opposite.loss_N.sum() / B) / 2
        negatives = (B * P if self.config.in_batch else P) - B
        return LossOutput(
            loss,
            {
                "loss": loss.detach(),
                "accuracy": found.correct.to(loss.dtype) / B,
                "masked": found.masked.to(loss.dtype) / max(negatives, 1),
            },
        )

    def _among_all(
        self, query_BD: Tensor, passage_PD: Tensor, targets: Targets, own: slice, table_NP: Tensor | None
    ) -> tuple[CrossEntropyResult, CrossEntropyResult | None]:
        """The rows ``own`` among all passages and, where symmetric, their positives among all queries."""
        mask, positives_B, rows_ND = self.config.mask, targets.positive_columns_B, query_BD[own]
        if table_NP is None and fits_in_a_tile(rows_ND, passage_PD):
            table_NP = rows_ND @ passage_PD.T
        task = self._task(positives_B[own], KnownPositives(targets, mask), own.start)
        found = tiled_cross_entropy(rows_ND, passage_PD, task, table_NP)
        if not self.config.symmetric:
            return found, None
        # A query that has the positive as a known one is no negative of it.
        known = KnownPositives(targets, mask, positives_B)
        diagonal_N = torch.arange(own.start, own.stop, device=positives_B.device)
        task = self._task(diagonal_N, known, own.start, transposed=True)
        table_NB = None
        if table_NP is not None and table_NP.shape[0] == query_BD.shape[0]:
            table_NB = table_NP[:, positives_B].T
        return found, tiled_cross_entropy(passage_PD[positives_B[own]], query_BD, task, table_NB)

    def _task(
        self, positive_N: Tensor, known: KnownPositives, first: int, *, transposed: bool = False
    ) -> CrossEntropyTask:
        """``first``: the row of the batch that is row 0 of the search."""

        def false(rows: slice, columns: slice) -> Tensor | None:
            rows = slice(rows.start + first, rows.stop + first)
            if not transposed:
                return known.tile(rows, columns)
            tile = known.tile(columns, rows)
            return None if tile is None else tile.T

        return CrossEntropyTask(positive_N, false, self.config.temperature, self.config.mask.margin)

    def _in_groups(self, query_BD: Tensor, passage_PD: Tensor, targets: Targets, own: slice) -> CrossEntropyResult:
        """Each row among its own group, flat: a table of rows and columns would be nearly all masked."""
        config, groups_B1 = self.config, targets.groups_B1
        row_P = contrastive.rows_of(groups_B1, passage_PD.shape[0])
        false_P = KnownPositives(targets, config.mask).pairs(row_P)
        low, high = int(groups_B1[own.start]), int(groups_B1[own.stop])
        positive_N, row_K, false_K = groups_B1[own] - low, row_P[low:high] - own.start, false_P[low:high]
        similarity_K = (query_BD[own][row_K] * passage_PD[low:high]).sum(-1)
        if config.mask.margin is not None:
            above_K = similarity_K.detach() > (similarity_K.detach()[positive_N] + config.mask.margin)[row_K]
            above_K[positive_N] = False
            false_K = false_K | above_K
        logits_K = contrastive.masked_logits(similarity_K / config.temperature, false_K)
        largest_N = logits_K.new_zeros(positive_N.shape[0]).scatter_reduce(
            0, row_K, logits_K.detach(), "amax", include_self=False
        )
        sum_N = torch.zeros_like(largest_N).index_add(0, row_K, (logits_K - largest_N[row_K]).exp())
        # The positive is the first of its group, so equals do not take its place.
        correct = (logits_K.detach()[positive_N] == largest_N).sum()
        return CrossEntropyResult(sum_N.log() + largest_N - logits_K[positive_N], correct, false_K.sum())
