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

from embed_core.losses.infonce import InfoNCE
from embed_core.losses.search import fits
from embed_core.types import Batch, LossOutput, Targets

_SHORTEST = 1e-12
"""Shorter vectors are divided by this, as :func:`torch.nn.functional.normalize` does."""


def serves(inner: Any, batch: Batch, targets: Targets) -> bool:
    """Whether ``inner`` is the core's InfoNCE among all passages, on a batch whose table of similarities is kept whole.

    A subclass may read the vectors themselves; larger tables are computed in tiles, by the inner loss.
    """
    if type(inner) is not InfoNCE or not inner.config.in_batch:
        return False
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    return query_BD is not None and passage_PD is not None and fits(query_BD[_own(query_BD, targets)], passage_PD)


def outputs(
    inner: InfoNCE, batch: Batch, views: Sequence[Batch], targets: Targets, dims: Sequence[int]
) -> list[LossOutput]:
    """``inner`` of each of ``views``, which are ``batch`` cut to each of ``dims``."""
    query_BD, passage_PD = batch.query.dense_ND, batch.passage.dense_ND
    assert query_BD is not None
    assert passage_PD is not None
    tables = cosines(query_BD[_own(query_BD, targets)], passage_PD, dims)
    return [inner(view, targets, table_NP) for view, table_NP in zip(views, tables, strict=True)]


def cosines(query_ND: Tensor, passage_PD: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """``[N, P]`` cosines of the first d values, for each d of ``dims``, in their order."""
    found: dict[int, Tensor] = {}
    product_NP, square_N, square_P = (query_ND.new_zeros(()) for _ in range(3))
    start = 0
    for dim in sorted(dims):
        query_Nd, passage_Pd = query_ND[:, start:dim], passage_PD[:, start:dim]
        product_NP = torch.addmm(product_NP, query_Nd, passage_Pd.T) if start else query_Nd @ passage_Pd.T
        square_N = square_N + query_Nd.square().sum(-1)
        square_P = square_P + passage_Pd.square().sum(-1)
        found[dim] = product_NP * _inverse(square_N).unsqueeze(1) * _inverse(square_P)
        start = dim
    return [found[dim] for dim in dims]


def _inverse(square_N: Tensor) -> Tensor:
    return square_N.clamp(min=_SHORTEST**2).rsqrt()


def _own(query_BD: Tensor, targets: Targets) -> slice:
    return slice(*(targets.own_rows or (0, query_BD.shape[0])))
