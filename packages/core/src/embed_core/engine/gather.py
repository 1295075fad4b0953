"""Gather a global batch's embeddings on every rank, gradient intact.

Every rank then computes the same loss of the same global batch, so each already holds the whole gradient of its own
texts: the backward of the gather is a slice, no communication. It is multiplied by the number of ranks because the
data-parallel reduction of the weights' gradients averages, where the chain rule sums. Parameters of a loss see the
plain average of equal gradients. FlagEmbedding (local gradient only, averaged: 1/W) and others get this wrong.
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
from embed_core.types import Embeddings, MultiVectors, SparseVectors, Targets


class _GatherRows(torch.autograd.Function):
    """[n_r, …] on each rank r → [Σ n_r, …] in rank order, on every rank."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.start, ctx.size, ctx.world = sum(sizes[:rank]), sizes[rank], len(sizes)
        return _gather_padded(local, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient[ctx.start : ctx.start + ctx.size] * ctx.world, None, None


def _gather_padded(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """Collectives want equal shapes: pad to the largest, gather, cut."""
    import torch.distributed as dist

    largest = max(sizes)
    padded = local.new_zeros((largest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_rows(local: Tensor, ranks: Ranks, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of every rank, in rank order; differentiable. ``sizes`` saves a collective where they are known."""
    if ranks.world_size == 1:
        return local
    sizes = sizes if sizes is not None else _sizes(local, ranks)
    result: Tensor = _GatherRows.apply(local, sizes, ranks.rank)
    return result


def _sizes(local: Tensor, ranks: Ranks) -> list[int]:
    import torch.distributed as dist

    mine = torch.tensor([local.shape[0]], device=local.device)
    all_sizes = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    dist.all_gather(all_sizes, mine)
    return [int(size) for size in torch.cat(all_sizes).tolist()]


def gather_embeddings(e: Embeddings, ranks: Ranks) -> Embeddings:
    """The texts of every rank, in rank order."""
    if ranks.world_size == 1:
        return e
    dense_ND, sparse, multi = None, None, None
    if e.dense_ND is not None:
        dense_ND = gather_rows(e.dense_ND, ranks)
    if e.sparse is not None:
        sizes = _sizes(e.sparse.weights_K, ranks)
        sparse = SparseVectors(
            gather_rows(e.sparse.weights_K, ranks, sizes),
            gather_rows(e.sparse.ids_K, ranks, sizes),
            _gather_offsets(e.sparse.offsets_N1, ranks),
        )
    if e.multi is not None:
        multi = MultiVectors(gather_rows(e.multi.vectors_TC, ranks), _gather_offsets(e.multi.offsets_N1, ranks))
    return Embeddings(dense_ND, sparse, multi)


def _gather_offsets(offsets_N1: Tensor, ranks: Ranks) -> Tensor:
    return offsets_of(gather_rows(offsets_N1.diff(), ranks))


class GlobalBatch:
    """Indices and targets of the global batch, gathered from the ranks' host batches."""

    def __init__(self, host: HostBatch, step: int, ranks: Ranks) -> None:
        self.rows, self.tokens = host.rows, host.tokens
        columns = _gather_columns(host, ranks)
        base = np.cumsum([0, *columns["texts"][:-1]])
        queries = [index + start for index, start in zip(columns["query_index"], base, strict=True)]
        passages = [index + start for index, start in zip(columns["passage_index"], base, strict=True)]
        tensor = {name: _tensor(parts, ranks) for name, parts in columns.items() if name not in _NOT_TENSORS}
        self.query_index_B = _tensor(queries, ranks)
        self.passage_index_P = _tensor(passages, ranks)
        scores_P = tensor["scores"].to(torch.int32).view(torch.float32)
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
        )
        self.rows = sum(len(part) for part in columns["row_ids"])
        self.tokens = int(sum(columns["tokens"]))


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
)
_NOT_TENSORS = ("query_index", "passage_index", "texts", "tokens")


def _gather_columns(host: HostBatch, ranks: Ranks) -> dict[str, list[Any]]:
    """Every rank's columns, by name, in rank order; one collective for the lengths and one for all the numbers."""
    columns = [getattr(host, name) for name in _COLUMNS]
    columns.append(host.scores.view(np.int32).astype(np.int64))
    counts = torch.tensor([len(host.encoded), host.tokens, *(len(c) for c in columns)], device=ranks.device)
    flat = torch.from_numpy(np.concatenate(columns)).to(ranks.device)
    counts_all = gather_rows(counts, ranks, [len(counts)] * ranks.world_size).view(ranks.world_size, -1).tolist()
    flat_all = gather_rows(flat, ranks, [sum(c[2:]) for c in counts_all]).cpu().numpy()
    parts = np.split(flat_all, np.cumsum([n for c in counts_all for n in c[2:]])[:-1])
    names = (*_COLUMNS, "scores")
    gathered: dict[str, list[Any]] = {name: parts[i :: len(names)] for i, name in enumerate(names)}
    gathered["texts"] = [c[0] for c in counts_all]
    gathered["tokens"] = [c[1] for c in counts_all]
    return gathered


def _tensor(parts: Sequence[Any], ranks: Ranks) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(ranks.device)
