"""Dense scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.scoring.need import missing

if TYPE_CHECKING:
    from torch import Tensor

    from embed_core.types import Embeddings


def dense_scores(q: Embeddings, p: Embeddings) -> Tensor:
    """Dot products ``[B, P]``; cosines where the model normalises. Raises ConfigError where a side has no vectors."""
    if q.dense_ND is None:
        raise missing(q, "dense")
    if p.dense_ND is None:
        raise missing(p, "dense")
    return q.dense_ND @ p.dense_ND.T
