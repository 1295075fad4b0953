"""Retrieval inside one document, and the chunks that several queries find together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from embed_core.errors import ConfigError
from embed_data.mining.rank.tokens import terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embed_data.mining.rank.model import TextEncoder


class Within(Protocol):
    """Scores the texts of one document."""

    digest: str
    """Digest of what the scores depend on."""
    cosines: bool
    """Whether scores are cosines of dense vectors, comparable with a threshold."""

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
        """Scores [queries][passages]; higher is better."""
        ...


class DenseWithin:
    """Scores with a registered model, the one that the stage before trained."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.digest = f"{encoder.digest}-{encoder.way}"
        self.cosines = {kind for kind, weight in encoder.weights.items() if weight} == {"dense"}

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
        """Cosines, or the score of the model's way of scoring."""
        from embed_data.align.score.scoring import similarities

        return similarities(self._encoder, queries, passages)


class Bm25Within:
    """Scores by the words in common, weighted within the document."""

    digest = "bm25"
    cosines = False

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
        """BM25 scores. Raises ConfigError without bm25s."""
        try:
            import bm25s
        except ImportError:
            raise ConfigError(
                "stages 2 and 3 without --model rank by BM25 and need bm25s, which is not installed: "
                "pip install 'embed-data[align]'"
            ) from None
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)] for text in passages]
        if not vocabulary:
            return [[0.0] * len(passages) for _ in queries]
        model = bm25s.BM25(k1=1.2, b=0.75)
        model.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return [model.get_scores_from_ids(model.get_tokens_ids(terms(query))).tolist() for query in queries]


def brought_in(scores: Sequence[Sequence[float]], allowed: Sequence[int], per_query: int, wanted: int) -> list[int]:
    """The ``per_query`` best of ``allowed`` for each query together: at most ``wanted``, by their best score."""
    best: dict[int, float] = {}
    for own in scores:
        for c in sorted(allowed, key=lambda c: (-own[c], c))[:per_query]:
            best[c] = max(best.get(c, own[c]), own[c])
    return sorted(best, key=lambda c: (-best[c], c))[:wanted]
