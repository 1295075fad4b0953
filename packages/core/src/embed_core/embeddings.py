"""Arithmetic on :class:`~embed_core.types.Embeddings`: join, pick, slice, move. No Python loop over texts.

Every function keeps the gradient unless it says otherwise, treats the three kinds alike, and leaves a kind that is
``None`` as ``None``. Offsets are int64 and start at 0. Suffixes as in :mod:`embed_core.types`; M counts picked texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embed_core.errors import ConfigError
from embed_core.types import Embeddings, MultiVectors, SparseVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "concat",
    "detach",
    "map_values",
    "missing_kind",
    "offsets_of",
    "ragged_index",
    "select",
    "slice_rows",
    "to_device",
    "to_float32",
    "values",
]


def offsets_of(lengths_N: Tensor) -> Tensor:
    """[N] lengths → [N+1] int64 offsets, on the same device."""
    offsets_N1 = lengths_N.new_zeros(lengths_N.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(lengths_N, 0, out=offsets_N1[1:])
    return offsets_N1


def ragged_index(offsets_N1: Tensor, index_M: Tensor) -> tuple[Tensor, Tensor]:
    """Find the elements of the picked rows: (flat positions [K], offsets [M+1] of the picked rows).

    ``flat[positions_K]`` holds the elements of row ``index_M[0]``, then those of ``index_M[1]``, and so on.
    """
    starts_M = offsets_N1[:-1][index_M]
    lengths_M = offsets_N1[1:][index_M] - starts_M
    picked_M1 = offsets_of(lengths_M)
    total = int(picked_M1[-1])
    shift_K = torch.repeat_interleave(starts_M - picked_M1[:-1], lengths_M, output_size=total)
    return torch.arange(total, device=offsets_N1.device) + shift_K, picked_M1


def concat(parts: Sequence[Embeddings]) -> Embeddings:
    """The texts of all parts, one after another. All parts must hold the same kinds, on one device."""
    assert parts, "nothing to concatenate"
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    assert all(_kinds(part) == _kinds(first) for part in parts), "the parts hold different kinds of embeddings"
    dense_ND, sparse, multi = None, None, None
    if first.dense_ND is not None:
        dense_ND = torch.cat([part.dense_ND for part in parts if part.dense_ND is not None])
    if first.sparse is not None:
        sparses = [part.sparse for part in parts if part.sparse is not None]
        sparse = SparseVectors(
            torch.cat([s.weights_K for s in sparses]),
            torch.cat([s.ids_K for s in sparses]),
            _joined_offsets([s.offsets_N1 for s in sparses]),
        )
    if first.multi is not None:
        multis = [part.multi for part in parts if part.multi is not None]
        multi = MultiVectors(torch.cat([m.vectors_TC for m in multis]), _joined_offsets([m.offsets_N1 for m in multis]))
    return Embeddings(dense_ND, sparse, multi)


def select(e: Embeddings, index_M: Tensor) -> Embeddings:
    """The texts ``index_M`` (int64 row numbers, repeats allowed), in that order."""
    dense_ND, sparse, multi = None, None, None
    if e.dense_ND is not None:
        dense_ND = e.dense_ND.index_select(0, index_M.to(e.dense_ND.device))
    if e.sparse is not None:
        weights_K, ids_K, offsets_N1 = e.sparse
        position_K, picked_M1 = ragged_index(offsets_N1, index_M.to(offsets_N1.device))
        sparse = SparseVectors(weights_K.index_select(0, position_K), ids_K.index_select(0, position_K), picked_M1)
    if e.multi is not None:
        vectors_TC, offsets_N1 = e.multi
        position_T, picked_M1 = ragged_index(offsets_N1, index_M.to(offsets_N1.device))
        multi = MultiVectors(vectors_TC.index_select(0, position_T), picked_M1)
    return Embeddings(dense_ND, sparse, multi)


def slice_rows(e: Embeddings, start: int, stop: int) -> Embeddings:
    """The texts ``start:stop`` as views (nothing but the offsets is copied); ``stop`` may pass the end."""
    stop = min(stop, e.count)
    start = min(start, stop)
    dense_ND = None if e.dense_ND is None else e.dense_ND[start:stop]
    sparse, multi = None, None
    if e.sparse is not None:
        offsets_N1, low, high = _sliced_offsets(e.sparse.offsets_N1, start, stop)
        sparse = SparseVectors(e.sparse.weights_K[low:high], e.sparse.ids_K[low:high], offsets_N1)
    if e.multi is not None:
        offsets_N1, low, high = _sliced_offsets(e.multi.offsets_N1, start, stop)
        multi = MultiVectors(e.multi.vectors_TC[low:high], offsets_N1)
    return Embeddings(dense_ND, sparse, multi)


def values(e: Embeddings) -> list[Tensor]:
    """The floating-point tensors there are: dense vectors, lexical weights, token vectors, in this order."""
    found = [e.dense_ND, e.sparse and e.sparse.weights_K, e.multi and e.multi.vectors_TC]
    return [value for value in found if value is not None]


def map_values(e: Embeddings, function: Callable[[Tensor], Tensor]) -> Embeddings:
    """``function`` applied to each tensor of :func:`values`; ids and offsets stay."""
    dense_ND = None if e.dense_ND is None else function(e.dense_ND)
    sparse = None if e.sparse is None else e.sparse._replace(weights_K=function(e.sparse.weights_K))
    multi = None if e.multi is None else e.multi._replace(vectors_TC=function(e.multi.vectors_TC))
    return Embeddings(dense_ND, sparse, multi)


def detach(e: Embeddings) -> Embeddings:
    """The same values without their gradient history."""
    return map_values(e, Tensor.detach)


def to_float32(e: Embeddings) -> Embeddings:
    """Half-precision values as fp32; fp32 and wider stay as they are (float64 serves numerical checks)."""
    return map_values(e, lambda value: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value)


def to_device(e: Embeddings, device: torch.device | str) -> Embeddings:
    """All tensors, ids and offsets included, on ``device``."""
    moved = map_values(e, lambda value: value.to(device))
    sparse, multi = moved.sparse, moved.multi
    if sparse is not None:
        sparse = sparse._replace(ids_K=sparse.ids_K.to(device), offsets_N1=sparse.offsets_N1.to(device))
    if multi is not None:
        multi = multi._replace(offsets_N1=multi.offsets_N1.to(device))
    return Embeddings(moved.dense_ND, sparse, multi)


def _kinds(e: Embeddings) -> tuple[bool, bool, bool]:
    return e.dense_ND is not None, e.sparse is not None, e.multi is not None


def _joined_offsets(parts: Sequence[Tensor]) -> Tensor:
    return offsets_of(torch.cat([offsets_N1.diff() for offsets_N1 in parts]))


def _sliced_offsets(offsets_N1: Tensor, start: int, stop: int) -> tuple[Tensor, int, int]:
    window_M1 = offsets_N1[start : stop + 1]
    low, high = int(window_M1[0]), int(window_M1[-1])
    return window_M1 - low, low, high


def missing_kind(e: Embeddings, kind: str) -> ConfigError:
    """The error to raise where ``kind`` (``dense``, ``sparse``, ``multi``) is asked for but absent from ``e``."""
    present = {"dense": e.dense_ND, "sparse": e.sparse, "multi": e.multi}
    given = ", ".join(name for name, value in present.items() if value is not None) or "nothing"
    return ConfigError(
        f"{kind!r} scores are asked for, but the model gives only: {given}; "
        f"use a model with {kind!r} embeddings, or a loss and evaluation without {kind!r}"
    )
