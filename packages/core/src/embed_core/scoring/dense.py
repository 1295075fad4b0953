"""Dense scores, and the error for a kind of score whose embeddings the model does not give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.errors import ConfigError

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


def missing(e: Embeddings, kind: str) -> ConfigError:
    """``kind`` (``dense``, ``sparse``, ``multi``) is asked for but absent from ``e``: the error to raise."""
    present = {"dense": e.dense_ND, "sparse": e.sparse, "multi": e.multi}
    given = ", ".join(name for name, value in present.items() if value is not None) or "nothing"
    return ConfigError(
        f"{kind!r} scores are asked for, but the model gives only: {given}; "
        f"use a model with {kind!r} embeddings, or a loss and evaluation without {kind!r}"
    )
