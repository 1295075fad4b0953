"""Lexical scores: the dot product over shared token ids, without a vector as wide as the vocabulary.

Only ids that occur in the queries can score. So queries are taken in tiles with U distinct ids, passages are reduced to
their entries among these U, and both become small dense matrices whose product is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from embed_core.embeddings import missing_kind
from embed_core.types import SparseVectors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embed_core.types import Embeddings

TILE_IDS = 4096
"""Entries of the queries of one tile (at least one query), hence a bound on U."""
TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Elements of one dense passage tile [n, U]: 4 MB fits a CPU's cache, a GPU wants larger products."""


def sparse_scores(q: Embeddings, p: Embeddings) -> Tensor:
    """``Σ_id w_q[id] · w_p[id]``, ``[B, P]`` (BGE-M3, Chen et al. 2024; as SPLADE). A text without ids scores 0.

    Memory beyond the result: one tile of queries, one of passages, and the passages' ids; the backward rebuilds the
    tiles. Raises ConfigError where a side has no lexical weights.
    """
    if q.sparse is None:
        raise missing_kind(q, "sparse")
    if p.sparse is None:
        raise missing_kind(p, "sparse")
    scores_BP: Tensor = _LexicalDot.apply(*q.sparse, *p.sparse)
    return scores_BP


class _Queries(NamedTuple):
    """One tile of queries: rows ``start:stop``, entries ``low:high``, and these as a dense matrix."""

    start: int
    stop: int
    low: int
    high: int
    place_K: Tensor
    """Flat place of each entry in ``weights_BU``."""
    weights_BU: Tensor
    ids_U: Tensor
    """The distinct ids, ascending."""


class _Passages(NamedTuple):
    """One tile of passages: rows ``start:stop`` and those of their entries whose id is among the queries' U."""

    start: int
    stop: int
    entry_K: Tensor
    """Index of these entries among all flat entries of the passages."""
    place_K: Tensor
    """Flat place of each such entry in ``weights_PU``."""
    weights_PU: Tensor


class _LexicalDot(torch.autograd.Function):
    """Dense products of tiles; saves the flat inputs only."""

    @staticmethod
    def forward(ctx: Any, *flat: Tensor) -> Tensor:
        ctx.save_for_backward(*flat)
        q, p = _sides(flat)
        scores_BP = q.weights_K.new_zeros(q.offsets_N1.shape[0] - 1, p.offsets_N1.shape[0] - 1)
        for queries in _query_tiles(q):
            for passages in _passage_tiles(p, queries.ids_U):
                tile_BP = scores_BP[queries.start : queries.stop, passages.start : passages.stop]
                torch.mm(queries.weights_BU, passages.weights_PU.T, out=tile_BP)
        return scores_BP

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor | None, ...]:
        q, p = _sides(ctx.saved_tensors)
        need_q, need_p = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        grad_q_K = torch.zeros_like(q.weights_K) if need_q else None
        grad_p_K = torch.zeros_like(p.weights_K) if need_p else None
        for queries in _query_tiles(q):
            grad_BU = torch.zeros_like(queries.weights_BU)
            for passages in _passage_tiles(p, queries.ids_U):
                tile_BP = grad_BP[queries.start : queries.stop, passages.start : passages.stop]
                if need_q:
                    grad_BU.addmm_(tile_BP, passages.weights_PU)
                if grad_p_K is not None:
                    # An entry lies in one passage tile of this query tile, so its places are written once here.
                    grad_p_K[passages.entry_K] += (tile_BP.T @ queries.weights_BU).view(-1)[passages.place_K]
            if grad_q_K is not None:
                grad_q_K[queries.low : queries.high] = grad_BU.view(-1)[queries.place_K]
        return grad_q_K, None, None, grad_p_K, None, None


def _sides(flat: tuple[Tensor, ...]) -> tuple[SparseVectors, SparseVectors]:
    return SparseVectors(*flat[:3]), SparseVectors(*flat[3:])


def _query_tiles(q: SparseVectors) -> Iterator[_Queries]:
    bounds = q.offsets_N1.tolist()
    start = 0
    while start < len(bounds) - 1:
        stop = start + 1
        while stop < len(bounds) - 1 and bounds[stop + 1] - bounds[start] <= TILE_IDS:
            stop += 1
        low, high = bounds[start], bounds[stop]
        if high > low:  # queries without ids score 0 everywhere
            yield _query_tile(q, start, stop, low, high)
        start = stop


def _query_tile(q: SparseVectors, start: int, stop: int, low: int, high: int) -> _Queries:
    ids_U, column_K = torch.unique(q.ids_K[low:high], return_inverse=True)
    row_K = torch.repeat_interleave(q.offsets_N1[start : stop + 1].diff(), output_size=high - low)
    place_K = row_K * ids_U.shape[0] + column_K
    weights_BU = q.weights_K.new_zeros(stop - start, ids_U.shape[0])
    weights_BU.view(-1)[place_K] = q.weights_K[low:high]
    return _Queries(start, stop, low, high, place_K, weights_BU, ids_U)


def _passage_tiles(p: SparseVectors, ids_U: Tensor) -> Iterator[_Passages]:
    count, width = p.offsets_N1.shape[0] - 1, ids_U.shape[0]
    column_K = torch.searchsorted(ids_U, p.ids_K).clamp_(max=width - 1)
    entry_K = torch.nonzero(ids_U[column_K] == p.ids_K).view(-1)
    # The row of an entry is the last offset not above it; empty rows share offsets, hence right=True.
    row_K = torch.searchsorted(p.offsets_N1, entry_K, right=True) - 1
    rows = max(1, TILE_ELEMENTS.get(p.weights_K.device.type, 1 << 24) // width)
    starts = torch.arange(0, count + rows, rows, device=row_K.device)
    cuts = torch.searchsorted(row_K, starts).tolist()
    for tile, start in enumerate(range(0, count, rows)):
        stop = min(start + rows, count)
        kept_K = slice(cuts[tile], cuts[tile + 1])
        place_K = (row_K[kept_K] - start) * width + column_K[entry_K[kept_K]]
        weights_PU = p.weights_K.new_zeros(stop - start, width)
        weights_PU.view(-1)[place_K] = p.weights_K[entry_K[kept_K]]
        yield _Passages(start, stop, entry_K[kept_K], place_K, weights_PU)
