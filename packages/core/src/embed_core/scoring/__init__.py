"""Score matrices of queries against passages: one implementation for training, evaluation and inference.

All are differentiable, take :class:`~embed_core.types.Embeddings` of B queries and P passages and return ``[B, P]``.
Cut the passages with :func:`embed_core.embeddings.slice_rows` to search a corpus tile by tile.
"""

from embed_core.scoring.combine import combine, combined_scores, dense_scores, kind_scores
from embed_core.scoring.multi_vector import multi_vector_scores
from embed_core.scoring.sparse import sparse_scores

__all__ = ["combine", "combined_scores", "dense_scores", "kind_scores", "multi_vector_scores", "sparse_scores"]
