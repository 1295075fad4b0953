"""Computes how strongly other texts compete with a row's positive: log-sum-exp over tables of similarities.

N rows, M columns. A table that fits one tile is computed whole; a larger one tile by tile, each computed again in the
backward, so that memory is O(N + M).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embed_core.losses import contrastive, tiled_cross_entropy
from embed_core.losses.tiled_cross_entropy import FalseMask


class Rivals(NamedTuple):
    """The competitors of the positives of N rows."""

    log_sum_N: Tensor
    """log Σ exp(similarity / temperature) over the columns that are not masked; hugely negative where none is left."""
    largest_N: Tensor
    """The largest similarity / temperature among them; no gradient."""
    masked: Tensor
    """How many were masked as probable positives; no gradient."""


class Field(NamedTuple):
    """A table of similarities in which rows meet their rivals."""

    rows_ND: Tensor
    columns_MD: Tensor
    own_N: Tensor
    """Column of the row itself, or of its positive, which does not compete."""
    false: FalseMask
    """Other columns that do not compete, being known positives."""
    limit_N: Tensor | None
    """Columns more similar than this do not compete either."""


def rivals(field: Field, temperature: float) -> Rivals:
    """Computes them over the whole table or tile by tile, as memory allows."""
    if tiled_cross_entropy.fits_in_a_tile(field.rows_ND, field.columns_MD):
        return Rivals(*_among(field.rows_ND, field.columns_MD, field, slice(0, field.rows_ND.shape[0]), temperature))
    height = max(1, _tile_elements(field.rows_ND) // field.columns_MD.shape[0])
    slices = [slice(n, min(n + height, field.rows_ND.shape[0])) for n in range(0, field.rows_ND.shape[0], height)]
    parts = [
        checkpoint(
            _among, field.rows_ND[rows], field.columns_MD, field, rows, temperature,
            use_reentrant=False, preserve_rng_state=False,
        )
        for rows in slices
    ]  # fmt: skip
    sums, largest, masked = zip(*parts, strict=True)
    return Rivals(torch.cat(sums), torch.cat(largest), torch.stack(masked).sum())


def in_groups(logits_K: Tensor, row_K: Tensor, false_K: Tensor, count: int) -> Rivals:
    """As :func:`rivals`, over a flat list of pairs: logit k is one of row ``row_K[k]``, of ``count`` rows."""
    lowest = torch.finfo(logits_K.dtype).min
    kept_K = logits_K.masked_fill(false_K, lowest)
    largest_N = kept_K.new_full((count,), lowest).scatter_reduce(0, row_K, kept_K.detach(), "amax")
    # Rows without any pair have an empty sum, and log 0 has no gradient that could be used.
    base_N = torch.where(largest_N > lowest, largest_N, torch.zeros_like(largest_N))
    sum_N = torch.zeros_like(base_N).index_add(0, row_K, (kept_K - base_N[row_K]).exp())
    some_N = sum_N > 0
    log_sum_N = torch.where(some_N, torch.where(some_N, sum_N, 1).log() + base_N, lowest)
    return Rivals(log_sum_N, largest_N, false_K.sum())


def together(parts: Iterable[Rivals]) -> Tensor:
    """``[N]``: the log-sum over all parts."""
    sums: Sequence[Tensor] = [part.log_sum_N for part in parts]
    return torch.stack(tuple(sums)).logsumexp(0)


def _among(
    rows_nD: Tensor, columns_MD: Tensor, field: Field, rows: slice, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    similarity_nM = rows_nD @ columns_MD.T
    false_nM = field.false(rows, slice(0, columns_MD.shape[0]))
    if false_nM is None:
        false_nM = torch.zeros_like(similarity_nM, dtype=torch.bool)
    if field.limit_N is not None:
        false_nM = false_nM | (similarity_nM.detach() > field.limit_N[rows].unsqueeze(1))
    own_n1 = field.own_N[rows].unsqueeze(1)
    masked = false_nM.sum() - false_nM.gather(1, own_n1).sum()
    logits_nM = contrastive.masked_logits(similarity_nM / temperature, false_nM.scatter(1, own_n1, True))
    return logits_nM.logsumexp(1), logits_nM.detach().amax(1), masked


def _tile_elements(like: Tensor) -> int:
    budget = tiled_cross_entropy.TILE_BYTES if like.device.type == "cpu" else tiled_cross_entropy.ACCELERATOR_TILE_BYTES
    return max(1, budget // int(like.element_size()))
