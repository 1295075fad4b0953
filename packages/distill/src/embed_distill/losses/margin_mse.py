"""Pairwise distillation of margins: the score difference between a query's positive and its other passages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from embed_core.types import LossOutput
from embed_distill.losses.blocks import summed
from embed_distill.losses.ranking import groups, teacher_vectors
from embed_distill.losses.teacher import dense_of, own_rows

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import MarginMSEConfig


class MarginMSE(nn.Module):
    """``mean_{b,p} ((s[b,b⁺] − s[b,p]) − (t[b,b⁺] − t[b,p]))²`` (Hofstätter et al. 2020, arXiv 2010.02666).

    b⁺ is the first passage of row b's group, p every other one of the group or the batch; s are dot products, t the
    teacher's scores. Each rank computes its own rows.
    Metric: ``loss``.
    """

    shares_rows = True

    def __init__(self, config: MarginMSEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean, or the share of it from ``targets.own_rows``. Raises DataError without a teacher or if the first
        batch has nothing to compare, ConfigError without dense vectors."""
        loss = self._in_groups(batch, targets) if self.config.over == "group" else self._in_batch(batch, targets)
        return LossOutput(loss, {"loss": loss.detach()})

    def _in_groups(self, batch: Batch, targets: Targets) -> Tensor:
        found = groups(batch, targets, self.config)
        difference_RG = _margins(found.student_RG) - self.config.teacher_scale * _margins(found.teacher_RG)
        # The positive's own margin is 0 for student and teacher, so it adds nothing.
        return difference_RG.masked_fill(~found.real_RG, 0).square().sum() / max(found.passages - found.rows, 1)

    def _in_batch(self, batch: Batch, targets: Targets) -> Tensor:
        query_BD, passage_PD = dense_of(batch)
        query_BW, passage_PW = teacher_vectors(targets, self.config, query_BD)
        B, P = query_BD.shape[0], passage_PD.shape[0]

        def block(rows: slice) -> Tensor:
            positive_R1 = targets.positive_columns_B[rows].unsqueeze(1)
            student_RP, teacher_RP = query_BD[rows] @ passage_PD.T, query_BW[rows] @ passage_PW.T
            student_RP = student_RP.gather(1, positive_R1) - student_RP
            teacher_RP = teacher_RP.gather(1, positive_R1) - teacher_RP
            return (student_RP - self.config.teacher_scale * teacher_RP).square().sum()

        return summed(block, own_rows(targets), P) / max(B * (P - 1), 1)


def _margins(scores_RG: Tensor) -> Tensor:
    return scores_RG[:, :1] - scores_RG
