"""Multi-vector (late interaction) scores in bounded tiles, forward and backward.

Passages are sorted by length and cut into tiles of n passages padded to L tokens, query tokens into tiles of rows; no
tensor of similarities is larger than one tile. A passage is padded with its own last token, which changes no maximum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from embed_core.embeddings import missing_kind, offsets_of
from embed_core.types import MultiVectors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embed_core.types import Embeddings

TILE_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Passage tokens of one tile, padding included (at least one passage)."""
TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Similarities of one tile: measured best near the size of a CPU's cache; a GPU wants larger products."""


def multi_vector_scores(q: Embeddings, p: Embeddings) -> Tensor:
    """``Σ_i max_j <q_i, p_j> / (tokens of the query)``, ``[B, P]`` (ColBERT, Khattab & Zaharia 2020; BGE-M3's mean).

    A query or a passage without tokens scores 0, with no gradient. Of equal maxima one gets the gradient. Kept for the
    backward: the inputs and the position of each maximum, ``[query tokens, P]`` in the smallest integer type that
    holds it (uint8 up to 256 tokens). Raises ConfigError where a side has no token vectors.
    """
    if q.multi is None:
        raise missing_kind(q, "multi")
    if p.multi is None:
        raise missing_kind(p, "multi")
    differentiate = torch.is_grad_enabled() and (q.multi.vectors_TC.requires_grad or p.multi.vectors_TC.requires_grad)
    if differentiate:
        sums_BP = _SumOfMaxima.apply(q.multi.vectors_TC, p.multi.vectors_TC, q.multi.offsets_N1, p.multi.offsets_N1)
    else:
        sums_BP = _forward(q.multi, p.multi, _plan(q.multi, p.multi), None)
    return sums_BP / q.multi.offsets_N1.diff().clamp(min=1).unsqueeze(1)


class _Tile(NamedTuple):
    """n passages of similar length: columns ``start:stop`` of the sorted order."""

    start: int
    stop: int
    length: int
    """L, tokens of the longest."""


class _Plan(NamedTuple):
    """How passages and query tokens are cut into tiles."""

    order_P: Tensor
    """Passages that have tokens, shortest first."""
    first_P: Tensor
    """Their first token among all passage tokens."""
    length_P: Tensor
    """Their tokens."""
    tiles: list[_Tile]
    rows: int
    """Query tokens of one tile."""


def _plan(q: MultiVectors, p: MultiVectors) -> _Plan:
    device = p.vectors_TC.device.type
    all_lengths_P = p.offsets_N1.diff()
    length_P, order_P = torch.sort(all_lengths_P, stable=True)
    empty = int((all_lengths_P == 0).sum())
    length_P, order_P = length_P[empty:], order_P[empty:]
    tiles, start = [], 0
    lengths = length_P.tolist()
    for stop, length in enumerate(lengths, start=1):
        following = lengths[stop] if stop < len(lengths) else None
        if following is None or (stop + 1 - start) * following > TILE_TOKENS.get(device, 16384):
            tiles.append(_Tile(start, stop, length))
            start = stop
    widest = max(((tile.stop - tile.start) * tile.length for tile in tiles), default=1)
    rows = max(1, TILE_ELEMENTS.get(device, 1 << 25) // widest)
    return _Plan(order_P, p.offsets_N1[:-1][order_P], length_P, tiles, min(rows, max(1, q.vectors_TC.shape[0])))


def _row_tiles(q_offsets_B1: Tensor, tokens: int, rows: int) -> Iterator[tuple[int, int, Tensor]]:
    """Query tokens ``start:stop`` and where each of the B queries begins among them (most are empty there)."""
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        yield start, stop, (q_offsets_B1 - start).clamp(0, stop - start)


def _forward(q: MultiVectors, p: MultiVectors, plan: _Plan, position_TP: Tensor | None) -> Tensor:
    """Sums of maxima [B, P]; fills ``position_TP`` (columns in sorted order) where given."""
    sums_BP = q.vectors_TC.new_zeros(q.offsets_N1.shape[0] - 1, p.offsets_N1.shape[0] - 1)
    row_tiles = list(_row_tiles(q.offsets_N1, q.vectors_TC.shape[0], plan.rows))
    for tile in plan.tiles:
        n = tile.stop - tile.start
        tile_TC = p.vectors_TC[_tokens(plan, tile).view(-1)]
        tile_BP = sums_BP.new_zeros(sums_BP.shape[0], n)
        for start, stop, bags_B1 in row_tiles:
            similarity_TPL = (q.vectors_TC[start:stop] @ tile_TC.T).view(stop - start, n, tile.length)
            if position_TP is None:
                best_TP = similarity_TPL.amax(-1)
            else:
                best_TP, at_TP = similarity_TPL.max(-1)
                position_TP[start:stop, tile.start : tile.stop] = at_TP
            # A bag of embeddings is a segment sum, deterministic on GPUs too, which index_add_ is not.
            each_T = torch.arange(stop - start, device=best_TP.device)
            tile_BP += functional.embedding_bag(each_T, best_TP, bags_B1, mode="sum", include_last_offset=True)
        sums_BP[:, plan.order_P[tile.start : tile.stop]] = tile_BP
    return sums_BP


def _tokens(plan: _Plan, tile: _Tile) -> Tensor:
    """[n, L] flat token numbers of a tile; past its end a passage repeats its last token."""
    position_L = torch.arange(tile.length, device=plan.order_P.device)
    last_P1 = plan.length_P[tile.start : tile.stop].unsqueeze(1) - 1
    return plan.first_P[tile.start : tile.stop].unsqueeze(1) + torch.minimum(position_L, last_P1)


def _position_type(plan: _Plan) -> torch.dtype:
    longest = plan.tiles[-1].length if plan.tiles else 0
    if longest <= 1 << 8:
        return torch.uint8
    return torch.int16 if longest <= 1 << 15 else torch.int32


class _SumOfMaxima(torch.autograd.Function):
    """A maximum passes its gradient to one pair of tokens: the backward is two sparse sums of vectors, no product.

    Measured on one CPU thread, bags of embeddings are 1.2 to 9 times as fast as products with a one-hot matrix.
    """

    @staticmethod
    def forward(ctx: Any, q_TC: Tensor, p_TC: Tensor, q_offsets_B1: Tensor, p_offsets_P1: Tensor) -> Tensor:
        q, p = MultiVectors(q_TC, q_offsets_B1), MultiVectors(p_TC, p_offsets_P1)
        ctx.plan = _plan(q, p)
        shape = (q_TC.shape[0], ctx.plan.order_P.shape[0])
        position_TP = torch.empty(shape, dtype=_position_type(ctx.plan), device=q_TC.device)
        sums_BP = _forward(q, p, ctx.plan, position_TP)
        ctx.save_for_backward(q_TC, p_TC, q_offsets_B1, position_TP)
        return sums_BP

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor | None, ...]:
        q_TC, p_TC, q_offsets_B1, position_TP = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad_q_TC = torch.zeros_like(q_TC) if ctx.needs_input_grad[0] else None
        grad_p_TC = torch.zeros_like(p_TC) if ctx.needs_input_grad[1] else None
        query_T = torch.repeat_interleave(q_offsets_B1.diff(), output_size=q_TC.shape[0])
        for tile in plan.tiles:
            columns_P = slice(tile.start, tile.stop)
            tile_BP = grad_BP[:, plan.order_P[columns_P]]
            tile_TC = p_TC.new_zeros((tile.stop - tile.start) * tile.length, p_TC.shape[1])
            for start in range(0, q_TC.shape[0], plan.rows):
                rows_T = slice(start, min(start + plan.rows, q_TC.shape[0]))
                weight_TP = tile_BP[query_T[rows_T]]
                # A padded copy of the last token may have won: it stands for the last token itself.
                at_TP = torch.minimum(position_TP[rows_T, columns_P].long(), plan.length_P[columns_P] - 1)
                if grad_q_TC is not None:
                    winner_TP = plan.first_P[columns_P] + at_TP
                    grad_q_TC[rows_T] += functional.embedding_bag(
                        winner_TP, p_TC, mode="sum", per_sample_weights=weight_TP
                    )
                if grad_p_TC is not None:
                    tile_TC += _to_winners(at_TP, weight_TP, q_TC[rows_T], tile.length)
            if grad_p_TC is not None:
                _store_real(grad_p_TC, tile_TC, plan, tile)
        return grad_q_TC, grad_p_TC, None, None


def _to_winners(at_TP: Tensor, weight_TP: Tensor, q_TC: Tensor, length: int) -> Tensor:
    """[n·L, C]: to each passage token the weighted sum of the query tokens whose maximum it was."""
    n = at_TP.shape[1]
    winner_K = (at_TP + torch.arange(n, device=at_TP.device) * length).view(-1)
    by_winner_K = torch.argsort(winner_K, stable=True)
    bags = offsets_of(torch.bincount(winner_K, minlength=n * length))
    token_K = torch.div(by_winner_K, n, rounding_mode="floor")
    weight_K = weight_TP.reshape(-1)[by_winner_K]
    return functional.embedding_bag(
        token_K, q_TC, bags, mode="sum", per_sample_weights=weight_K, include_last_offset=True
    )


def _store_real(grad_p_TC: Tensor, tile_TC: Tensor, plan: _Plan, tile: _Tile) -> None:
    """Write a tile's gradient to the tokens it stands for; the padded places of the tile got none."""
    position_L = torch.arange(tile.length, device=tile_TC.device)
    real_K = (position_L < plan.length_P[tile.start : tile.stop].unsqueeze(1)).view(-1)
    grad_p_TC[_tokens(plan, tile).view(-1)[real_K]] = tile_TC[real_K]
