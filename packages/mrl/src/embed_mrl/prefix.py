"""InfoNCE at all dimensions from one product.

``⟨q[:d], p[:d]⟩`` is a sum over the first d values, so the tables of all dimensions are running sums over blocks of the
vectors: as many multiplications as for the full dimension alone, forward and backward. Dividing by the lengths of the
cut vectors gives the cosines. Suffixes of :mod:`embed_core.types`; here N counts the queries this rank computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embed_core.losses.infonce import InfoNCE
from embed_core.losses.tiled_cross_entropy import fits_in_a_tile
from embed_core.types import Batch, LossOutput, Targets

LEAST_SAVED = 64
"""Used where products save at least this many values per vector, divided by the number of dimensions: below, scaling
the tables costs as much. Measured on one core, 1,024 rows, five dimensions by halving, forward and backward: no gain at
128 values, 1.2 times as fast at 768, 1.3 at 1,024."""
_SHORTEST = 1e-12
"""Shorter vectors are divided by this, as :func:`torch.nn.functional.normalize` does."""


def serves(inner: Any, batch: Batch, targets: Targets, dims: Sequence[int]) -> bool:
    """Whether ``inner`` is the core's InfoNCE among all passages, on a batch whose table of similarities is kept whole,
    and the dimensions are wide enough to gain by it.

    A subclass may read the vectors themselves; larger tables are computed in tiles, by the inner loss.
    """
    if type(inner) is not InfoNCE or not inner.config.in_batch or sum(dims) - max(dims) < LEAST_SAVED * len(dims):
        return False
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    return (
        query_BD is not None
        and passage_PD is not None
        and fits_in_a_tile(query_BD[_own(query_BD, targets)], passage_PD)
    )


def outputs(
    inner: InfoNCE, batch: Batch, views: Sequence[Batch], targets: Targets, dims: Sequence[int]
) -> list[LossOutput]:
    """The results of ``inner`` for each of ``views``, which are ``batch`` cut to each of ``dims``."""
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    assert query_BD is not None
    assert passage_PD is not None
    tables = cosines(query_BD[_own(query_BD, targets)], passage_PD, dims)
    return [inner(view, targets, table_NP) for view, table_NP in zip(views, tables, strict=True)]


def cosines(query_ND: Tensor, passage_PD: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """``[N, P]`` cosines of the first d values, for each d of ``dims``, in their order. Differentiable once."""
    ascending = sorted(dims)
    tables: tuple[Tensor, ...] = _Cosines.apply(query_ND, passage_PD, ascending)
    found = dict(zip(ascending, tables, strict=True))
    return [found[dim] for dim in dims]


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, passage_PD: Tensor, ascending: Sequence[int]) -> tuple[Tensor, ...]:
        product_NP, tables, start = query_ND.new_zeros(query_ND.shape[0], passage_PD.shape[0]), [], 0
        inverse_kN, inverse_kP = (_inverse_lengths(side, ascending) for side in (query_ND, passage_PD))
        for dim, inverse_N, inverse_P in zip(ascending, inverse_kN, inverse_kP, strict=True):
            product_NP.addmm_(query_ND[:, start:dim], passage_PD[:, start:dim].T, beta=float(start > 0))
            tables.append((product_NP * inverse_N.unsqueeze(1)).mul_(inverse_P))
            start = dim
        ctx.ascending = ascending
        ctx.save_for_backward(query_ND, passage_PD, *tables)
        return tuple(tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """A cosine's gradient is that of the product over the lengths, less its part along each vector.

        A block of values takes part in its own dimension and all larger ones: from the largest on, the gradients of the
        tables add up to what its products are multiplied with.
        """
        query_ND, passage_PD, *tables = ctx.saved_tensors
        ascending: Sequence[int] = ctx.ascending
        inverse_kN, inverse_kP = (_inverse_lengths(side, ascending) for side in (query_ND, passage_PD))
        gradient_ND, gradient_PD = torch.empty_like(query_ND), torch.empty_like(passage_PD)
        gradient_ND[:, ascending[-1] :], gradient_PD[:, ascending[-1] :] = 0, 0
        sum_NP, along_N, along_P = torch.zeros_like(tables[0]), inverse_kN[0].new_zeros(()), inverse_kP[0].new_zeros(())
        for place in reversed(range(len(ascending))):
            gradient_NP, inverse_N, inverse_P = gradients[place], inverse_kN[place], inverse_kP[place]
            weighted_NP = gradient_NP * tables[place]
            along_N = along_N + weighted_NP.sum(1) * inverse_N.square()
            along_P = along_P + weighted_NP.sum(0) * inverse_P.square()
            sum_NP.addcmul_(torch.mul(gradient_NP, inverse_N.unsqueeze(1), out=weighted_NP), inverse_P)
            block = slice(ascending[place - 1] if place else 0, ascending[place])
            query_Nd, passage_Pd = query_ND[:, block], passage_PD[:, block]
            gradient_ND[:, block] = torch.addmm(query_Nd * -along_N.unsqueeze(1), sum_NP, passage_Pd)
            gradient_PD[:, block] = torch.addmm(passage_Pd * -along_P.unsqueeze(1), sum_NP.T, query_Nd)
        return gradient_ND, gradient_PD, None


def _inverse_lengths(vectors_ND: Tensor, ascending: Sequence[int]) -> list[Tensor]:
    """The inverse lengths, ``[N]``, for each dimension."""
    return [vectors_ND[:, :dim].norm(dim=-1).clamp(min=_SHORTEST).reciprocal() for dim in ascending]


def _own(query_BD: Tensor, targets: Targets) -> slice:
    return slice(*(targets.own_rows or (0, query_BD.shape[0])))
