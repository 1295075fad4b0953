"""Listwise distillation: the student learns the teacher's distribution over passages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embed_core.losses.contrastive import masked_logits
from embed_core.types import LossOutput
from embed_distill.losses.blocks import summed
from embed_distill.losses.ranking import groups, teacher_vectors
from embed_distill.losses.teacher import dense_of, own_rows

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets
    from embed_distill.losses.config import TeacherKLConfig


class TeacherKL(nn.Module):
    """``mean_b Σ_p t[b,p] · (log t[b,p] − log s[b,p])``. s is the softmax of ``q·p / temperature`` over the passages of
    the row or the batch, t that of the teacher's scores (Lin et al. 2020, arXiv 2010.11386).

    The mean is over the rows that have a teacher and at least two passages. Each rank computes its own rows.
    Metrics: ``loss``; ``agreement``, the share of these rows whose best passage is the teacher's best.
    """

    shares_rows = True

    def __init__(self, config: TeacherKLConfig) -> None:
        super().__init__()
        self.config = config
        self._factor = config.temperature**2 if config.temperature_squared else 1.0

    def forward(self, batch: Batch, targets: Targets) -> LossOutput:
        """The mean, or the share of it from ``targets.own_rows``. Raises DataError without a teacher or if the first
        batch has nothing to compare, ConfigError without dense vectors."""
        found = self._in_groups(batch, targets) if self.config.over == "group" else self._in_batch(batch, targets)
        loss = found[0] * self._factor
        return LossOutput(loss, {"loss": loss.detach(), "agreement": found[1].detach()})

    def _in_groups(self, batch: Batch, targets: Targets) -> Tensor:
        config, found = self.config, groups(batch, targets, self.config)
        of_scores = config.teacher_temperature or 1.0
        of_vectors = config.teacher_temperature or config.temperature
        of_scores_R = torch.full_like(found.student_RG[:, 0], of_scores, requires_grad=False)
        divisor_R1 = of_scores_R.masked_fill(~found.scored_R, of_vectors).unsqueeze(1)
        masked_RG = ~found.real_RG
        student_RG = masked_logits(found.student_RG / config.temperature, masked_RG)
        teacher_RG = masked_logits(found.teacher_RG / divisor_R1, masked_RG)
        return divergence(student_RG, teacher_RG, found.real_RG) / max(found.rows, 1)

    def _in_batch(self, batch: Batch, targets: Targets) -> Tensor:
        config = self.config
        query_BD, passage_PD = dense_of(batch)
        query_BW, passage_PW = teacher_vectors(targets, config, query_BD)
        teacher_temperature = config.teacher_temperature or config.temperature

        def block(rows: slice) -> Tensor:
            student_RP = query_BD[rows] @ passage_PD.T / config.temperature
            teacher_RP = query_BW[rows] @ passage_PW.T / teacher_temperature
            return divergence(student_RP, teacher_RP, torch.ones_like(student_RP, dtype=torch.bool))

        return summed(block, own_rows(targets), passage_PD.shape[0]) / query_BD.shape[0]


def divergence(student_RC: Tensor, teacher_RC: Tensor, real_RC: Tensor) -> Tensor:
    """``[2]``: the sum over the rows of KL(softmax(teacher) ‖ softmax(student)), and how many agree on the best column.

    Columns where ``real_RC`` is False are ignored; their logits are the smallest finite number. Rows without any real
    column add nothing.
    """
    target_RC = teacher_RC.softmax(-1).masked_fill(~real_RC, 0)
    student_log_RC = student_RC.log_softmax(-1).masked_fill(~real_RC, 0)
    loss = (torch.xlogy(target_RC, target_RC) - target_RC * student_log_RC).sum()
    agree_R = (student_RC.detach().argmax(-1) == teacher_RC.argmax(-1)) & real_RC.any(-1)
    return torch.stack([loss, agree_R.sum().to(loss)])
