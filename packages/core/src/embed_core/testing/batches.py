"""Synthetic global batches: what a loss sees, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from embed_core.types import Batch, Embeddings, MultiVectors, SparseVectors, Targets

Part = Literal["dense", "sparse", "multi"]
VOCABULARY = 50


def random_batch(
    rows: int = 6,
    *,
    parts: Sequence[Part] = ("dense",),
    negatives: Sequence[int] = (2, 0, 1, 3),
    width: int = 16,
    scores: bool = False,
    repeats: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    step: int = 0,
) -> tuple[Batch, Targets]:
    """A batch and its targets; every embedding is a leaf that requires a gradient.

    Args:
        rows: B, the queries.
        parts: What the embeddings hold. Dense and multi-vectors are L2-normalised, lexical weights are positive.
        negatives: Hard negatives of row b: ``negatives[b % len(negatives)]``; by default groups are ragged and one in
            four has none, which is legal.
        width: D, and C of the multi-vectors.
        scores: Whether the rows have teacher scores; every third row lacks them (NaN), which is legal.
        repeats: Whether row 1's positive is the same text as row 0's, as where two questions share a paragraph.
        seed: Of everything drawn.
        step: ``targets.step``.
    """
    generator = torch.Generator().manual_seed(seed)
    group_sizes = [1 + negatives[row % len(negatives)] for row in range(rows)]
    groups_B1 = _offsets(group_sizes)
    passages = int(groups_B1[-1])
    passage_ids_P = 1_000 + torch.arange(passages)
    batch = Batch(
        _embeddings(rows, parts, width, generator, dtype), _embeddings(passages, parts, width, generator, dtype)
    )
    if repeats and rows > 1:
        first, second = int(groups_B1[0]), int(groups_B1[1])
        passage_ids_P[second] = passage_ids_P[first]
        batch = batch._replace(passage=_with_equal_texts(batch.passage, first, second))
    positives_K = passage_ids_P[groups_B1[:-1]]
    targets = Targets(
        groups_B1=groups_B1,
        row_ids_B=torch.arange(rows),
        query_ids_B=1 + torch.arange(rows),
        passage_ids_P=passage_ids_P,
        passage_keys_P=torch.zeros(passages, dtype=torch.int64),
        positives_K=positives_K,
        positive_offsets_B1=torch.arange(rows + 1),
        scores_P=_teacher_scores(groups_B1, generator) if scores else None,
        step=step,
    )
    return batch, targets


def permuted(batch: Batch, targets: Targets, order: Sequence[int]) -> tuple[Batch, Targets]:
    """The same rows in another order: new row i is old row ``order[i]``, its whole group with it.

    ``order`` may repeat rows or leave some out. The new embeddings are new leaves.
    """
    groups = targets.groups_B1.tolist()
    columns = [column for row in order for column in range(groups[row], groups[row + 1])]
    known = targets.positive_offsets_B1.tolist()
    kept = [place for row in order for place in range(known[row], known[row + 1])]
    rows_B, columns_P = torch.tensor(order), torch.tensor(columns)
    moved = Targets(
        groups_B1=_offsets([groups[row + 1] - groups[row] for row in order]),
        row_ids_B=targets.row_ids_B[rows_B],
        query_ids_B=targets.query_ids_B[rows_B],
        passage_ids_P=targets.passage_ids_P[columns_P],
        passage_keys_P=targets.passage_keys_P[columns_P],
        positives_K=targets.positives_K[torch.tensor(kept, dtype=torch.int64)],
        positive_offsets_B1=_offsets([known[row + 1] - known[row] for row in order]),
        scores_P=None if targets.scores_P is None else targets.scores_P[columns_P],
        step=targets.step,
        in_batch_B=None if targets.in_batch_B is None else targets.in_batch_B[rows_B],
    )
    return Batch(_reordered(batch.query, order), _reordered(batch.passage, columns)), moved


def leaves(batch: Batch) -> dict[str, Tensor]:
    """The float tensors of a batch by name, ``query.dense`` and so on: where gradients arrive."""
    found: dict[str, Tensor] = {}
    for column, embeddings in zip(("query", "passage"), batch, strict=True):
        if embeddings.dense_ND is not None:
            found[f"{column}.dense"] = embeddings.dense_ND
        if embeddings.sparse is not None:
            found[f"{column}.sparse"] = embeddings.sparse.weights_K
        if embeddings.multi is not None:
            found[f"{column}.multi"] = embeddings.multi.vectors_TC
    return found


def to_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Copy the values into new leaves of ``dtype``."""
    return Batch(*(_map_floats(embeddings, lambda value: value.to(dtype)) for embeddings in batch))


def _embeddings(
    count: int, parts: Sequence[Part], width: int, generator: torch.Generator, dtype: torch.dtype
) -> Embeddings:
    dense_ND = sparse = multi = None
    if "dense" in parts:
        dense_ND = _leaf(normalize(torch.randn(count, width, generator=generator), dim=-1).to(dtype))
    if "sparse" in parts:
        lengths = torch.randint(1, 8, (count,), generator=generator).tolist()
        ids = [torch.randperm(VOCABULARY, generator=generator)[:length] for length in lengths]
        weights_K = torch.rand(sum(lengths), generator=generator).to(dtype) + 0.1
        sparse = SparseVectors(_leaf(weights_K), torch.cat(ids), _offsets(lengths))
    if "multi" in parts:
        lengths = torch.randint(1, 6, (count,), generator=generator).tolist()
        vectors_TC = normalize(torch.randn(sum(lengths), width, generator=generator), dim=-1).to(dtype)
        multi = MultiVectors(_leaf(vectors_TC), _offsets(lengths))
    return Embeddings(dense_ND, sparse, multi)


def _with_equal_texts(embeddings: Embeddings, source: int, target: int) -> Embeddings:
    """Text ``target`` gets the embedding of text ``source``: equal texts have equal embeddings."""
    order = list(range(embeddings.count))
    order[target] = source
    return _reordered(embeddings, order)


def _reordered(embeddings: Embeddings, order: Sequence[int]) -> Embeddings:
    index_N = torch.tensor(order, dtype=torch.int64)
    dense_ND, sparse, multi = embeddings
    if dense_ND is not None:
        dense_ND = _leaf(dense_ND.detach()[index_N])
    if sparse is not None:
        flat_K, offsets_N1 = _flat_index(sparse.offsets_N1, order)
        sparse = SparseVectors(_leaf(sparse.weights_K.detach()[flat_K]), sparse.ids_K[flat_K], offsets_N1)
    if multi is not None:
        flat_T, offsets_N1 = _flat_index(multi.offsets_N1, order)
        multi = MultiVectors(_leaf(multi.vectors_TC.detach()[flat_T]), offsets_N1)
    return Embeddings(dense_ND, sparse, multi)


def _map_floats(embeddings: Embeddings, change: object) -> Embeddings:
    assert callable(change)
    dense_ND, sparse, multi = embeddings
    return Embeddings(
        None if dense_ND is None else _leaf(change(dense_ND.detach())),
        None if sparse is None else sparse._replace(weights_K=_leaf(change(sparse.weights_K.detach()))),
        None if multi is None else multi._replace(vectors_TC=_leaf(change(multi.vectors_TC.detach()))),
    )


def _flat_index(offsets_N1: Tensor, order: Sequence[int]) -> tuple[Tensor, Tensor]:
    bounds = offsets_N1.tolist()
    flat = [place for text in order for place in range(bounds[text], bounds[text + 1])]
    return torch.tensor(flat, dtype=torch.int64), _offsets([bounds[text + 1] - bounds[text] for text in order])


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64).cumsum(0)])


def _teacher_scores(groups_B1: Tensor, generator: torch.Generator) -> Tensor:
    scores_P = torch.randn(int(groups_B1[-1]), generator=generator) * 3
    for row in range(2, len(groups_B1) - 1, 3):
        scores_P[groups_B1[row] : groups_B1[row + 1]] = float("nan")
    return scores_P


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(True)
