"""Every loss of sentence-transformers: what it needs of a batch, or why it cannot be computed from embeddings.

The list is fixed, so that a config is checked without importing torch; a test compares it with the installed version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Form = Literal[
    "tuples", "pairs", "triplets", "scored-pairs", "angle", "scored-tuples", "classes", "labelled", "teacher"
]
"""The input of a loss. ``tuples``: queries, positives, and a column per hard negative; ``pairs`` and ``triplets``:
tuples with none and with one; ``scored-pairs``: (query, passage) with a score each; ``angle``: these, or tuples without
scores; ``scored-tuples``: tuples with a score per passage; ``classes``: texts with the row they are of; ``labelled``:
pairs with a class; ``teacher``: tuples with a teacher's vector per text."""

SUPPORTED: Mapping[str, Form] = {
    "AnglELoss": "angle",
    "BatchAllTripletLoss": "classes",
    "BatchHardSoftMarginTripletLoss": "classes",
    "BatchHardTripletLoss": "classes",
    "BatchSemiHardTripletLoss": "classes",
    "CachedMultipleNegativesRankingLoss": "tuples",
    "CachedMultipleNegativesSymmetricRankingLoss": "tuples",
    "CoSENTLoss": "scored-pairs",
    "ContrastiveLoss": "scored-pairs",
    "CosineSimilarityLoss": "scored-pairs",
    "DistillKLDivLoss": "scored-tuples",
    "EmbedDistillLoss": "teacher",
    "GlobalOrthogonalRegularizationLoss": "tuples",
    "MSELoss": "teacher",
    "MarginMSELoss": "scored-tuples",
    "MegaBatchMarginLoss": "pairs",
    "MultipleNegativesRankingLoss": "tuples",
    "MultipleNegativesSymmetricRankingLoss": "tuples",
    "OnlineContrastiveLoss": "scored-pairs",
    "SoftmaxLoss": "labelled",
    "TripletLoss": "triplets",
}

_OWNS_THE_MODEL = "it runs the model by itself: use kind 'matryoshka' of the plugin `mrl`"
_GUIDED = (
    "it needs a guide model: use kind 'multiple-negatives-ranking' with `mask.margin`, which leaves out false "
    "negatives by the model's own scores, or 'DistillKLDivLoss' on a teacher's scores"
)
_TWO_MODELS = "it trains two copies of the model: use 'MultipleNegativesRankingLoss' on pairs of a text with itself"

REFUSED: Mapping[str, str] = {
    "AdaptiveLayerLoss": _OWNS_THE_MODEL.replace("use", "for vectors that can be cut, use"),
    "CachedGISTEmbedLoss": _GUIDED,
    "ContrastiveTensionLoss": _TWO_MODELS,
    "ContrastiveTensionLossInBatchNegatives": _TWO_MODELS,
    "DenoisingAutoEncoderLoss": "it trains a decoder on the texts: use 'MultipleNegativesRankingLoss' on pairs",
    "GISTEmbedLoss": _GUIDED,
    "Matryoshka2dLoss": _OWNS_THE_MODEL,
    "MatryoshkaLoss": _OWNS_THE_MODEL,
}
