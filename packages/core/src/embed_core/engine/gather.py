"""Gather a global batch's embeddings on every rank, gradient intact.

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

import numpy as np
import torch
from torch import Tensor

from embed_core.embeddings import offsets_of
from embed_core.engine.host_batch import HostBatch
from embed_core.engine.ranks import Ranks
from embed_core.errors import DataError
from embed_core.types import Embeddings, LossOutput, MultiVectors, SparseVectors, Targets, TeacherVectors


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
    """The whole loss and metrics, the same on every rank, from each rank's part of them (see ``Targets.own_rows``)."""
    if ranks.world_size == 1:
        return part
    parts = torch.stack([part.loss, *(value.to(part.loss) for value in part.metrics.values())])
    whole = _SumParts.apply(parts, ranks.world_size)
    return LossOutput(whole[0], dict(zip(part.metrics, whole[1:].detach(), strict=True)))


def _gather_padded(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """Collectives want equal shapes: pad to the largest, gather, cut."""
    import torch.distributed as dist

    largest = max(sizes)
    padded = local.new_zeros((largest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_rows(local: Tensor, ranks: Ranks, sizes: Sequence[int] | None = None, *, parts: bool = False) -> Tensor:
    """Rows of every rank, in rank order; differentiable. ``sizes`` saves a collective where they are known.

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
    """The texts of every rank, in rank order; ``parts`` as in :func:`gather_rows`.

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
    """Each rank's integers, as many on every rank, in rank order. One collective."""
    if ranks.world_size == 1:
        return [list(numbers)]
    mine = torch.tensor([list(numbers)], dtype=torch.int64, device=ranks.device)
    rows: list[list[int]] = gather_rows(mine, ranks, [1] * ranks.world_size).tolist()
    return rows


class GlobalBatch:
    """Indices and targets of the global batch, gathered from the ranks' host batches.

    ``notes`` are further integers of this rank, as many on every rank, that travel with the counts.
    """

    def __init__(self, host: HostBatch, step: int, ranks: Ranks, notes: Sequence[int] = ()) -> None:
        columns = _gather_columns(host, ranks, notes)
        base = np.cumsum([0, *columns["texts"][:-1]])
        queries = [index + start for index, start in zip(columns["query_index"], base, strict=True)]
        passages = [index + start for index, start in zip(columns["passage_index"], base, strict=True)]
        tensor = {name: _tensor(parts, ranks) for name, parts in columns.items() if name not in _NOT_TENSORS}
        self.query_index_B = _tensor(queries, ranks)
        self.passage_index_P = _tensor(passages, ranks)
        scores_P = tensor["scores"].to(torch.int32).view(torch.float32)
        shares = [len(part) for part in columns["row_ids"]]
        passages_of = [len(part) for part in columns["passage_index"]]
        self.targets = Targets(
            groups_B1=offsets_of(tensor["group_sizes"]),
            row_ids_B=tensor["row_ids"],
            query_ids_B=tensor["query_ids"],
            passage_ids_P=tensor["passage_ids"],
            passage_keys_P=tensor["passage_keys"],
            positives_K=tensor["positives"],
            positive_offsets_B1=offsets_of(tensor["positive_counts"]),
            scores_P=None if bool(scores_P.isnan().all()) else scores_P,
            step=step,
            teacher=_teacher(host, columns["width"], shares, passages_of, ranks),
            in_batch_B=None if all(map(np.all, columns["in_batch"])) else tensor["in_batch"].bool(),
        )
        self.rows = sum(shares)
        self.own_rows = (sum(shares[: ranks.rank]), sum(shares[: ranks.rank + 1]))
        self.tokens = int(sum(columns["tokens"]))
        self.texts: list[int] = columns["texts"]
        """Distinct texts of each rank."""
        self.notes: list[list[int]] = columns["notes"]
        """Each rank's notes, in rank order."""


def _teacher(
    host: HostBatch, widths: Sequence[int], rows: Sequence[int], passages: Sequence[int], ranks: Ranks
) -> TeacherVectors | None:
    """The teacher's vectors of all ranks' texts. Raises DataError, on every rank, where they are not of one width."""
    if len(set(widths)) > 1:
        raise DataError(
            f"the ranks' rows have teacher vectors of widths {sorted(set(widths))} (0: none): every row of a batch "
            "needs those of the same teacher"
        )
    if host.teacher is None:
        return None
    own = torch.from_numpy(host.teacher).to(ranks.device)
    cut = host.rows
    return TeacherVectors(gather_rows(own[:cut], ranks, rows), gather_rows(own[cut:], ranks, passages))


_COLUMNS = (
    "query_index",
    "passage_index",
    "group_sizes",
    "row_ids",
    "query_ids",
    "passage_ids",
    "passage_keys",
    "positives",
    "positive_counts",
    "in_batch",
)
_NOT_TENSORS = ("query_index", "passage_index", "texts", "tokens", "width", "notes")


def _gather_columns(host: HostBatch, ranks: Ranks, notes: Sequence[int]) -> dict[str, list[Any]]:
    """Every rank's columns, by name, in rank order; one collective for the lengths and one for all the numbers."""
    columns = [getattr(host, name) for name in _COLUMNS]
    columns.append(host.scores.view(np.int32).astype(np.int64))
    facts = [len(host.encoded), host.tokens, 0 if host.teacher is None else host.teacher.shape[1]]
    counts_all = gather_numbers([*facts, *notes, *(len(c) for c in columns)], ranks)
    lengths_all = [c[3 + len(notes) :] for c in counts_all]
    flat = torch.from_numpy(np.concatenate(columns)).to(ranks.device)
    flat_all = gather_rows(flat, ranks, [sum(lengths) for lengths in lengths_all]).cpu().numpy()
    parts = np.split(flat_all, np.cumsum([n for lengths in lengths_all for n in lengths])[:-1])
    names = (*_COLUMNS, "scores")
    gathered: dict[str, list[Any]] = {name: parts[i :: len(names)] for i, name in enumerate(names)}
    gathered["texts"] = [c[0] for c in counts_all]
    gathered["tokens"] = [c[1] for c in counts_all]
    gathered["width"] = [c[2] for c in counts_all]
    gathered["notes"] = [c[3 : 3 + len(notes)] for c in counts_all]
    return gathered


def _tensor(parts: Sequence[Any], ranks: Ranks) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(ranks.device)
