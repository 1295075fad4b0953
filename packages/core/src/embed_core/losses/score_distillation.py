"""Distils teacher scores over each row's own group of passages, groups of different sizes included."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from embed_core.losses.contrastive import masked_logits

if TYPE_CHECKING:
    from embed_core.types import Targets


class GroupTable(NamedTuple):
    """The passages of each row as a table of G columns, G the size of the largest group."""

    columns: Tensor
    """``[B, G]`` int64 column among the P passages; arbitrary beyond a smaller group."""
    real: Tensor
    """``[B, G]`` bool, False beyond a smaller group."""


class TeacherTargets(NamedTuple):
    """A teacher's distributions over the groups of the rows it scored."""

    covered: Tensor
    """``[B]`` bool, rows all of whose passages have a score."""
    target: Tensor
    """``[B, G]``, the teacher's softmax over the group; 0 beyond a smaller group and in rows that are not covered."""


def group_table(targets: Targets) -> GroupTable:
    """Lay out the groups as a table."""
    sizes_B = targets.groups_B1.diff()
    slots_G = torch.arange(int(sizes_B.max()), device=sizes_B.device)
    real_BG = slots_G < sizes_B.unsqueeze(1)
    columns_BG = targets.groups_B1[:-1].unsqueeze(1) + slots_G * real_BG
    return GroupTable(columns_BG, real_BG)


def teacher_targets(targets: Targets, table: GroupTable, temperature: float) -> TeacherTargets | None:
    """softmax(scores / temperature) over each group, or ``None`` where no row of the batch is covered."""
    if targets.scores_P is None:
        return None
    scores_BG = targets.scores_P[table.columns]
    covered_B = (scores_BG.isfinite() | ~table.real).all(-1)
    if not bool(covered_B.any()):
        return None
    ignored_BG = ~(table.real & covered_B.unsqueeze(1))
    target_BG = masked_logits(scores_BG / temperature, ignored_BG).softmax(-1)
    return TeacherTargets(covered_B, target_BG.masked_fill(ignored_BG, 0))


def group_cross_entropy(logits_BP: Tensor, table: GroupTable, judged: TeacherTargets) -> Tensor:
    """``[B]``: ``−Σ_i t[i] · log softmax(own group)[i]``; 0 in rows that are not covered (``kl_div``, up to H(t))."""
    own_BG = masked_logits(logits_BP.gather(1, table.columns), ~table.real)
    return -(judged.target.to(own_BG.dtype) * own_BG.log_softmax(-1)).sum(-1)


def sequential_cross_entropy(
    logits_BP: Tensor, excluded_BP: Tensor, own_BP: Tensor, table: GroupTable, judged: TeacherTargets
) -> Tensor:
    """``[B]``: ``Σ_i t[i] · CE(all but the group's columns < i and the excluded ones of other rows; target i)``.

    FlagEmbedding's ``m3_kd_loss`` (Chen et al. 2024), in O(B·P) rather than O(G·B·P): the log-sum of the other rows'
    columns is one number per row, that of the group's columns ≥ i a cumulative one.
    """
    own_BG = logits_BP.gather(1, table.columns)
    others_B1 = masked_logits(logits_BP, excluded_BP | own_BP).logsumexp(-1, keepdim=True)
    remaining_BG = masked_logits(own_BG, ~table.real).flip(-1).logcumsumexp(-1).flip(-1)
    loss_BG = torch.logaddexp(others_B1, remaining_BG) - own_BG
    # Beyond a smaller group the difference is of huge numbers: drop it, rather than multiply it by a target of 0.
    return (judged.target.to(own_BG.dtype) * loss_BG.masked_fill(~table.real, 0)).sum(-1)
