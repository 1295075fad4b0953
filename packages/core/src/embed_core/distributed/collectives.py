"""Collectives with gradients: gathers a global batch's embeddings on every rank.

As a rule every rank then computes the same loss of the same global batch, so each already holds the whole gradient of
its own texts: the backward of the gather is a slice, no communication. It is multiplied by the number of ranks because
the data-parallel reduction of the weights' gradients averages, where the chain rule sums. Parameters of a loss see the
plain average of equal gradients. FlagEmbedding (local gradient only, averaged: 1/W) and others get this wrong.

A loss that shares the rows among the ranks returns its rows' part. :func:`sum_parts` adds up the values and multiplies
the gradient of the part by the number of ranks, a loss's own parameters included; the backward of the gather then adds
up what the ranks' parts say of each text, and slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embed_core.distributed.process_group import Ranks
from embed_core.embeddings import offsets_of
from embed_core.types import Embeddings, LossOutput, MultiVectors, SparseVectors


class _GatherRows(torch.autograd.Function):
    """[n_r, …] on each rank r → [Σ n_r, …] in rank order, on every rank."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: Sequence[int], rank: int, parts: bool) -> Tensor:
        ctx.start, ctx.size, ctx.world, ctx.parts = sum(sizes[:rank]), sizes[rank], len(sizes), parts
        return _gather_padded(local, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        own = slice(ctx.start, ctx.start + ctx.size)
        if ctx.parts:
            return _all_reduced(gradient)[own], None, None, None
        return gradient[own] * ctx.world, None, None, None


class _SumParts(torch.autograd.Function):
    """[n] → the sum over the ranks, on every rank; the gradient is this rank's times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, world_size: int) -> Tensor:
        ctx.world = world_size
        return _all_reduced(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient * ctx.world, None


def _all_reduced(part: Tensor) -> Tensor:
    import torch.distributed as dist

    whole = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole)
    return whole


def sum_parts(part: LossOutput, ranks: Ranks) -> LossOutput:
    """Add up the ranks' parts of the loss and of the metrics, on every rank (see ``Targets.own_rows``)."""
    if ranks.world_size == 1:
        return part
    parts = torch.stack([part.loss, *(value.to(part.loss) for value in part.metrics.values())])
    whole = _SumParts.apply(parts, ranks.world_size)
    return LossOutput(whole[0], dict(zip(part.metrics, whole[1:].detach(), strict=True)))


def _gather_padded(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """Gather rows of unequal numbers: collectives want equal shapes, so pad to the largest, gather, and cut."""
    import torch.distributed as dist

    largest = max(sizes)
    padded = local.new_zeros((largest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_rows(local: Tensor, ranks: Ranks, sizes: Sequence[int] | None = None, *, parts: bool = False) -> Tensor:
    """Gather the rows of every rank in rank order, with gradient. Known ``sizes`` save a collective.

    ``parts``: each rank's gradient is that of its part of the loss, so the backward sums over the ranks.
    """
    if ranks.world_size == 1:
        return local
    sizes = sizes if sizes is not None else _sizes(local, ranks)
    result: Tensor = _GatherRows.apply(local, sizes, ranks.rank, parts)
    return result


def _sizes(local: Tensor, ranks: Ranks) -> list[int]:
    import torch.distributed as dist

    mine = torch.tensor([local.shape[0]], device=local.device)
    all_sizes = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    dist.all_gather(all_sizes, mine)
    return [int(size) for size in torch.cat(all_sizes).tolist()]


def gather_embeddings(
    e: Embeddings, ranks: Ranks, texts: Sequence[int] | None = None, *, parts: bool = False
) -> Embeddings:
    """Gather the embeddings of every rank's texts in rank order; ``parts`` is as in :func:`gather_rows`.

    ``texts`` is the number of texts of each rank, where it is known: a collective less per kind.
    """
    if ranks.world_size == 1:
        return e
    dense_ND, sparse, multi = None, None, None
    if e.dense_ND is not None:
        dense_ND = gather_rows(e.dense_ND, ranks, texts, parts=parts)
    if e.sparse is not None:
        sizes = _sizes(e.sparse.weights_K, ranks)
        sparse = SparseVectors(
            gather_rows(e.sparse.weights_K, ranks, sizes, parts=parts),
            gather_rows(e.sparse.ids_K, ranks, sizes),
            _gather_offsets(e.sparse.offsets_N1, ranks, texts),
        )
    if e.multi is not None:
        vectors_TC = gather_rows(e.multi.vectors_TC, ranks, parts=parts)
        multi = MultiVectors(vectors_TC, _gather_offsets(e.multi.offsets_N1, ranks, texts))
    return Embeddings(dense_ND, sparse, multi)


def _gather_offsets(offsets_N1: Tensor, ranks: Ranks, texts: Sequence[int] | None) -> Tensor:
    return offsets_of(gather_rows(offsets_N1.diff(), ranks, texts))


def gather_numbers(numbers: Sequence[int], ranks: Ranks) -> list[list[int]]:
    """Gather each rank's integers, equally many on every rank, in rank order, by one collective."""
    if ranks.world_size == 1:
        return [list(numbers)]
    mine = torch.tensor([list(numbers)], dtype=torch.int64, device=ranks.device)
    rows: list[list[int]] = gather_rows(mine, ranks, [1] * ranks.world_size).tolist()
    return rows
