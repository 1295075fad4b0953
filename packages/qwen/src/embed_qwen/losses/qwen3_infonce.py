"""The InfoNCE of the Qwen3-Embedding paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embed_core.losses import contrastive
from embed_core.losses.false_negatives import KnownPositives
from embed_core.types import LossOutput
from embed_qwen.losses import layout
from embed_qwen.losses.competition import Field, Rivals, in_groups, rivals, together

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_qwen.losses_config import Qwen3InfoNCEConfig

TIE = 1e-6
"""Similarities that differ by less count as equal: a product summed in another order differs in its last bits."""


class Qwen3InfoNCE(nn.Module):
    """``mean_i −log( e^{s(q_i,d_i⁺)/τ} / Z_i )`` (Zhang et al. 2025, arXiv 2506.05176), where

    ``Z_i = e^{s(q_i,d_i⁺)/τ} + Σ_d m e^{s(q_i,d)/τ} + [QQ] Σ_{j≠i} m e^{s(q_i,q_j)/τ} + [DD] Σ_d m′ e^{s(d_i⁺,d)/τ}``,

    s the dot product and d all other passages that the row competes with. m is 0 where a similarity exceeds the
    positive's + margin (no gradient through the comparison) and, as m′, where d is a known positive of q_i, or q_j has
    one as its positive. With ``positives: known`` the row's loss is the mean of the same over all its known positives.
    Memory is O((B + P)·D) (:mod:`embed_qwen.losses.competition`); on several ranks each computes the rows it drew.
    Metrics: ``loss``; ``accuracy``, the share of queries whose positive scores at least as high as any passage they
    compete with; ``masked``, the share of these passages left out as false negatives.
    """

    shares_rows = True

    def __init__(self, config: Qwen3InfoNCEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean over the B rows, or ``targets.own_rows``' part of it. Raises ConfigError without dense vectors."""
        return _Rows(self.config, *layout.dense(batch), targets).output()


class _Rows:
    """One batch: the rows that this rank computes (n of them, from ``first``), and everything that they meet."""

    def __init__(self, config: Qwen3InfoNCEConfig, query_BD: Tensor, passage_PD: Tensor, targets: Targets) -> None:
        self.config, self.targets = config, targets
        self.query_BD, self.passage_PD = query_BD, passage_PD
        self.B, self.P = int(query_BD.shape[0]), int(passage_PD.shape[0])
        self.own = slice(*(targets.own_rows or (0, self.B)))
        self.count = self.own.stop - self.own.start
        self.positives_B = targets.positive_columns_B
        self.query_nD, self.positive_nD = query_BD[self.own], passage_PD[self.positives_B[self.own]]
        self.similarity_n = (self.query_nD * self.positive_nD).sum(-1)
        margin = config.mask.margin
        self.limit_n = None if margin is None else self.similarity_n.detach() + margin
        self.known = KnownPositives(targets, config.mask)
        self.row_P = contrastive.rows_of(targets.groups_B1, self.P)

    def output(self) -> LossOutput:
        """See :meth:`Qwen3InfoNCE.forward`."""
        temperature = self.config.temperature
        documents = self._documents(self.query_nD, self.limit_n)
        parts = list(documents)
        if self.config.query_query:
            parts.append(self._queries())
        if self.config.document_document:
            parts += self._documents(self.positive_nD, None)
        log_sum_n = together(parts)
        loss_n = _cross_entropy(log_sum_n, self.similarity_n / temperature)
        if self.config.positives == "known":
            loss_n = self._over_positives(loss_n, log_sum_n)
        loss = loss_n.sum() / self.B
        largest_n = torch.stack([part.largest_N for part in documents]).amax(0)
        correct = ((self.similarity_n.detach() + TIE) / temperature >= largest_n).sum()
        masked = torch.stack([part.masked for part in documents]).sum()
        return LossOutput(
            loss,
            {
                "loss": loss.detach(),
                "accuracy": correct.to(loss.dtype) / self.B,
                "masked": masked.to(loss.dtype) / max(self._candidates(), 1),
            },
        )

    def _documents(self, rows_nD: Tensor, limit_n: Tensor | None) -> list[Rivals]:
        """Rivals among the passages, of the queries or of their positives."""
        if not self.config.in_batch:
            return [self._group(rows_nD, limit_n)]
        if self.config.hard_negatives == "batch":
            return [self._table(rows_nD, self.passage_PD, self.positives_B[self.own], self.known, limit_n)]
        return [self._others(rows_nD, self.passage_PD[self.positives_B], limit_n), self._group(rows_nD, limit_n)]

    def _queries(self) -> Rivals:
        return self._others(self.query_nD, self.query_BD, self.limit_n)

    def _others(self, rows_nD: Tensor, columns_BD: Tensor, limit_n: Tensor | None) -> Rivals:
        """Rivals among the batch's rows, by their queries or positives; a row with a known positive is none."""
        diagonal_n = torch.arange(self.own.start, self.own.stop, device=rows_nD.device)
        known = KnownPositives(self.targets, self.config.mask, self.positives_B)
        return self._table(rows_nD, columns_BD, diagonal_n, known, limit_n)

    def _table(
        self, rows_nD: Tensor, columns_MD: Tensor, own_n: Tensor, known: KnownPositives, limit_n: Tensor | None
    ) -> Rivals:
        first = self.own.start

        def false(rows: slice, columns: slice) -> Tensor | None:
            return known.tile(slice(rows.start + first, rows.stop + first), columns)

        return rivals(Field(rows_nD, columns_MD, own_n, false, limit_n), self.config.temperature)

    def _group(self, rows_nD: Tensor, limit_n: Tensor | None) -> Rivals:
        """Rivals among the row's own hard negatives."""
        low, high = (int(self.targets.groups_B1[place]) for place in (self.own.start, self.own.stop))
        hard_K = torch.arange(low, high, device=rows_nD.device)
        hard_K = hard_K[~torch.isin(hard_K, self.positives_B)]
        row_K = self.row_P[hard_K] - self.own.start
        similarity_K = (rows_nD[row_K] * self.passage_PD[hard_K]).sum(-1)
        false_K = self.known.pairs(self.row_P)[hard_K]
        if limit_n is not None:
            false_K = false_K | (similarity_K.detach() > limit_n[row_K])
        return in_groups(similarity_K / self.config.temperature, row_K, false_K, self.count)

    def _over_positives(self, loss_n: Tensor, log_sum_n: Tensor) -> Tensor:
        """The mean over the drawn positive, whose loss is given, and all other known positives in the batch."""
        row_E, column_E = self._known_positives()
        similarity_E = (self.query_nD[row_E] * self.passage_PD[column_E]).sum(-1) / self.config.temperature
        more_n = torch.zeros_like(loss_n).index_add(0, row_E, _cross_entropy(log_sum_n[row_E], similarity_E))
        return (loss_n + more_n) / (1 + torch.bincount(row_E, minlength=self.count))

    def _known_positives(self) -> tuple[Tensor, Tensor]:
        """Row (from ``own.start``) and column of every known positive that was not drawn."""
        if not self.config.in_batch:
            column_E = self.known.pairs(self.row_P).nonzero().squeeze(1)
            row_E = self.row_P[column_E]
            mine_E = (row_E >= self.own.start) & (row_E < self.own.stop)
            return row_E[mine_E] - self.own.start, column_E[mine_E]
        found = []
        height = max(1, 2**22 // self.P)
        for start in range(self.own.start, self.own.stop, height):
            tile = self.known.tile(slice(start, min(start + height, self.own.stop)), slice(0, self.P))
            if tile is not None:
                row_E, column_E = tile.nonzero(as_tuple=True)
                found.append((row_E + start - self.own.start, column_E))
        nothing = self.positives_B.new_zeros(0)
        return (
            torch.cat([nothing, *(rows for rows, _ in found)]),
            torch.cat([nothing, *(columns for _, columns in found)]),
        )

    def _candidates(self) -> int:
        """The number of pairs of a query and a passage that is not its drawn positive, over all rows of the batch."""
        if not self.config.in_batch:
            return self.P - self.B
        if self.config.hard_negatives == "batch":
            return self.B * self.P - self.B
        return self.B * self.B - self.B + self.P - self.B


def _cross_entropy(rivals_n: Tensor, positive_n: Tensor) -> Tensor:
    """``−log( e^p / (e^p + e^r) )``."""
    return torch.logaddexp(rivals_n, positive_n) - positive_n
