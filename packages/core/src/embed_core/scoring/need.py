"""The one error of scoring: a kind of score whose embeddings the model does not give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.errors import ConfigError

if TYPE_CHECKING:
    from embed_core.types import Embeddings


def missing(e: Embeddings, kind: str) -> ConfigError:
    """``kind`` (``dense``, ``sparse``, ``multi``) is asked for but absent from ``e``: the error to raise."""
    present = {"dense": e.dense_ND, "sparse": e.sparse, "multi": e.multi}
    given = ", ".join(name for name, value in present.items() if value is not None) or "nothing"
    return ConfigError(
        f"{kind!r} scores are asked for, but the model gives only: {given}; "
        f"use a model with {kind!r} embeddings, or a loss and evaluation without {kind!r}"
    )
