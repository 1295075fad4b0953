"""Arranges a batch as ms-swift does: one list of vectors, and labels that say how they relate.

Shape suffixes are those of :mod:`embed_core.types`, and M: vectors of a batch in ms-swift's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embed_core.embeddings import missing_kind
from embed_core.losses import contrastive
from embed_core.text.pooling import at_least_float32

if TYPE_CHECKING:
    from embed_core.types import Batch, Targets


def dense(batch: Batch) -> tuple[Tensor, Tensor]:
    """Queries and passages in fp32 or wider: near saturation bf16 flips the sign of these losses' gradient. Raises
    ConfigError without dense vectors."""
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    if query_BD is None or passage_PD is None:
        raise missing_kind(batch.query if query_BD is None else batch.passage, "dense")
    return at_least_float32(query_BD), at_least_float32(passage_PD)


def groups(query_BD: Tensor, passage_PD: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Each query before its passages, ``[B+P, D]``, and a label for every passage, 1 for the positive, by which
    ms-swift finds where a group begins."""
    B, P = query_BD.shape[0], passage_PD.shape[0]
    row_P = contrastive.rows_of(targets.groups_B1, P)
    order_M = torch.empty(B + P, dtype=torch.int64, device=query_BD.device)
    order_M[targets.positive_columns_B + torch.arange(B, device=order_M.device)] = torch.arange(
        B, device=order_M.device
    )
    order_M[torch.arange(P, device=order_M.device) + row_P + 1] = B + torch.arange(P, device=order_M.device)
    return torch.cat([query_BD, passage_PD])[order_M], positive_labels(targets)


def pairs(query_BD: Tensor, passage_PD: Tensor, targets: Targets) -> Tensor:
    """Queries and passages in turn, ``[2·P, D]``: every query with all passages of its group."""
    row_P = contrastive.rows_of(targets.groups_B1, passage_PD.shape[0])
    return torch.stack([query_BD[row_P], passage_PD], dim=1).flatten(0, 1)


def positive_labels(targets: Targets) -> Tensor:
    """``[P]`` float32: 1 at positives, else 0."""
    labels_P = torch.zeros(targets.passage_ids_P.shape[0], device=targets.passage_ids_P.device)
    labels_P[targets.positive_columns_B] = 1
    return labels_P
