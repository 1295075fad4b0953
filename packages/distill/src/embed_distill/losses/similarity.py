"""Distillation of the similarities between all pairs of a batch's texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import normalize

from embed_core.types import LossOutput
from embed_distill.losses.blocks import summed
from embed_distill.losses.teacher import own_passages, own_rows, texts

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import TeacherSimilarityConfig


class TeacherSimilarity(nn.Module):
    """``mean_{i,j} (cos(s[i],s[j]) − cos(t[i],t[j]))²`` over all pairs of the batch's texts, a text with itself
    included (Zhang et al. 2024, arXiv 2412.19048).

    Widths may differ. Memory is bounded: the table is computed in blocks, and again in the backward. Each rank computes
    the pairs of its own rows' texts with all others.
    Metric: ``loss``.
    """

    shares_rows = True

    def __init__(self, config: TeacherSimilarityConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean, or the share of it from ``targets.own_rows``. Raises DataError without a teacher's vectors,
        ConfigError without dense vectors."""
        found = texts(batch, targets, self.config.texts, self.config.kind)
        student_ND, teacher_NW = normalize(found.student_ND, dim=-1), normalize(found.teacher_NW, dim=-1)
        N = student_ND.shape[0]

        def block(rows: slice) -> Tensor:
            return (student_ND[rows] @ student_ND.T - teacher_NW[rows] @ teacher_NW.T).square().sum()

        own = self._own(targets)
        loss = summed(block, own[0], N)
        for rows in own[1:]:
            loss = loss + summed(block, rows, N)
        loss = loss / max(N * N, 1)
        return LossOutput(loss, {"loss": loss.detach()})

    def _own(self, targets: Targets) -> list[slice]:
        """The positions, among all texts, of the texts of this rank's rows."""
        rows = own_rows(targets)
        columns = own_passages(targets, rows)
        if self.config.texts == "queries":
            return [rows]
        if self.config.texts == "passages":
            return [columns]
        B = targets.row_ids_B.shape[0]
        return [rows, slice(B + columns.start, B + columns.stop)]
