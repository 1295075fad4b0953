"""Computes scores by kind (dense ones here, the others in their own modules) and their weighted sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embed_core.embeddings import missing_kind
from embed_core.errors import ConfigError, did_you_mean
from embed_core.scoring.multi_vector import multi_vector_scores
from embed_core.scoring.sparse import sparse_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from embed_core.types import Embeddings, ScoreWeights


def dense_scores(q: Embeddings, p: Embeddings) -> Tensor:
    """Dot products ``[B, P]``; cosines where the model normalises. Raises ConfigError where a side has no vectors."""
    if q.dense_ND is None:
        raise missing_kind(q, "dense")
    if p.dense_ND is None:
        raise missing_kind(p, "dense")
    return q.dense_ND @ p.dense_ND.T


_KINDS = {"dense": dense_scores, "sparse": sparse_scores, "multi": multi_vector_scores}


def kind_scores(q: Embeddings, p: Embeddings, kinds: Iterable[str]) -> dict[str, Tensor]:
    """``[B, P]`` scores of each of ``kinds`` (``dense``, ``sparse``, ``multi``), every kind computed once.

    Raises ConfigError for an unknown kind, or one the embeddings lack.
    """
    scores = {}
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError(f"unknown kind of score {kind!r}: {did_you_mean(kind, _KINDS)}")
        if kind not in scores:
            scores[kind] = _KINDS[kind](q, p)
    return scores


def combine(scores: Mapping[str, Tensor], weights: ScoreWeights) -> Tensor:
    """``Σ_kind weights[kind] · scores[kind]``, ``[B, P]``; a kind of weight 0 need not be among ``scores``."""
    used = [kind for kind, weight in weights.items() if weight]
    if not used:
        raise ConfigError(
            f"score weights {dict(weights)} add up to nothing: give at least one of them a value other than 0"
        )
    total = scores[used[0]] * weights[used[0]]
    for kind in used[1:]:
        total = total + scores[kind] * weights[kind]
    return total


def combined_scores(q: Embeddings, p: Embeddings, weights: ScoreWeights) -> Tensor:
    """The weighted sum of the kinds of score, ``[B, P]``: BGE-M3's ensemble is ``{dense: 1, sparse: 0.3, multi: 1}``.

    Kinds of weight 0 are not computed. Raises ConfigError for an unknown or lacking kind, or no weight at all.
    """
    return combine(kind_scores(q, p, [kind for kind, weight in weights.items() if weight]), weights)
