"""Shared parts of contrastive losses: masks of passages that are no negatives, and cross-entropies over the rest.

A mask is a bool tensor ``[B, P]``, True where a passage must not take part in a query's softmax. Masked logits are set
to the smallest finite number, not −∞: 0 · log 0 then stays 0 in soft targets and in gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from embed_core.losses.false_negatives import KnownPositives

if TYPE_CHECKING:
    from embed_core.losses.config import MaskConfig
    from embed_core.types import Targets


def rows_of(offsets_B1: Tensor, total: int) -> Tensor:
    """Row number of each element of a ragged list, ``[total]`` int64."""
    return torch.repeat_interleave(offsets_B1.diff(), output_size=total)


def own_group(targets: Targets) -> Tensor:
    """``[B, P]``, True where a passage belongs to the row's own group."""
    group_P = rows_of(targets.groups_B1, targets.passage_ids_P.shape[0])
    rows_B = torch.arange(targets.groups_B1.shape[0] - 1, device=group_P.device)
    return rows_B.unsqueeze(1) == group_P


def not_competing(targets: Targets, own_BP: Tensor) -> Tensor | None:
    """``[B, P]``, True where a passage of another row is no candidate, because that row or this one keeps to its own
    group (``Targets.in_batch_B``); ``None`` where all rows compete. ``own_BP`` is :func:`own_group`."""
    if targets.in_batch_B is None:
        return None
    in_batch_P = targets.in_batch_B[rows_of(targets.groups_B1, own_BP.shape[1])]
    return ~(targets.in_batch_B.unsqueeze(1) & in_batch_P) & ~own_BP


def known_positives(targets: Targets, mask: MaskConfig) -> Tensor:
    """``[B, P]``, True where a passage is a known positive of the row by text or id, its own column excepted.

    Rows with the same query text share their positives. Cost: sorting the hashes, and O(B·P); no loop over rows.
    """
    B, P = targets.row_ids_B.shape[0], targets.passage_ids_P.shape[0]
    known_BP = KnownPositives(targets, mask).tile(slice(0, B), slice(0, P))
    if known_BP is None:
        return torch.zeros(B, P, dtype=torch.bool, device=targets.passage_ids_P.device)
    return known_BP


def above_positive(similarity_BP: Tensor, positive_columns_B: Tensor, margin: float) -> Tensor:
    """``[B, P]``, True where a similarity exceeds the row's own positive's by more than ``margin``."""
    similarity_BP = similarity_BP.detach()
    own_B1 = similarity_BP.gather(1, positive_columns_B.unsqueeze(1))
    above_BP = similarity_BP > own_B1 + margin
    return above_BP.scatter(1, positive_columns_B.unsqueeze(1), False)


def masked_logits(logits_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """``logits_BP`` with the masked ones at the smallest finite number; they get no gradient."""
    return logits_BP.masked_fill(mask_BP, torch.finfo(logits_BP.dtype).min)


def cross_entropy(logits_BP: Tensor, mask_BP: Tensor, positive_columns_B: Tensor) -> Tensor:
    """``[B]`` cross-entropy of each row's positive among its unmasked columns."""
    loss_B: Tensor = functional.cross_entropy(masked_logits(logits_BP, mask_BP), positive_columns_B, reduction="none")
    return loss_B


def soft_cross_entropy(logits_BP: Tensor, mask_BP: Tensor, target_BP: Tensor) -> Tensor:
    """``[B]`` cross-entropy against soft targets (rows add up to 1, 0 where masked)."""
    return -(target_BP * masked_logits(logits_BP, mask_BP).log_softmax(-1)).sum(-1)


def accuracy(logits_BP: Tensor, mask_BP: Tensor, positive_columns_B: Tensor) -> Tensor:
    """Share of the rows whose positive scores highest among the unmasked columns, a detached scalar."""
    best_B = masked_logits(logits_BP.detach(), mask_BP).argmax(-1)
    return (best_B == positive_columns_B).to(logits_BP.dtype).mean()


def masked_share(mask_BP: Tensor, allowed_BP: Tensor | None = None) -> Tensor:
    """Share of the candidate negatives that a mask takes away, a scalar.

    ``allowed_BP`` marks the columns a row may see at all, its own positive included; None = all of them.
    """
    B = mask_BP.shape[0]
    candidates = mask_BP.numel() if allowed_BP is None else allowed_BP.sum()
    masked = (mask_BP if allowed_BP is None else mask_BP & allowed_BP).sum()
    return masked / max(int(candidates) - B, 1)
