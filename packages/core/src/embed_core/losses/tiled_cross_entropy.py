"""Cross-entropy of each row's positive among many columns, in memory linear in rows and columns.

N rows look among M columns. A table of similarities that fits one tile is computed whole, and autograd keeps it. A
larger one is never whole: the forward runs over tiles with a running log-sum-exp, the backward computes each tile again
(Inf-CL, Cheng et al. 2024, arXiv 2410.17243). Five products instead of three, for O(N + M) memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embed_core.losses import contrastive

TILE_BYTES = 4 * 2**20
"""Memory of one tile of similarities on a processor; about three tiles exist at a time. Measured with D = 256, fp32,
one core: up to this size keeping the table is faster, beyond it the two passes are, being kinder to the caches."""
ACCELERATOR_TILE_BYTES = 64 * 2**20
"""The same on other devices, where a small tile would cost more to start than to compute. Not measured."""

FalseMask = Callable[[slice, slice], Tensor | None]
"""Bool ``[rows, columns]`` of a tile, True where a column is no negative of a row; ``None`` where none is."""


@contextmanager
def tiles_of(size: int | None) -> Iterator[None]:
    """Use tiles of ``size`` bytes inside the block, on every device; ``None`` leaves them as they are."""
    global TILE_BYTES, ACCELERATOR_TILE_BYTES
    before = TILE_BYTES, ACCELERATOR_TILE_BYTES
    if size is not None:
        TILE_BYTES = ACCELERATOR_TILE_BYTES = size
    try:
        yield
    finally:
        TILE_BYTES, ACCELERATOR_TILE_BYTES = before


class CrossEntropyTask(NamedTuple):
    """Each of N rows must find its positive among M columns."""

    positive_N: Tensor
    """int64 column of each row's positive; never masked."""
    false: FalseMask
    """Marks the columns that leave a row's softmax."""
    temperature: float
    margin: float | None
    """Columns more similar than the positive + margin leave it too."""


class CrossEntropyResult(NamedTuple):
    """The result of a :class:`CrossEntropyTask` over N rows."""

    loss_N: Tensor
    """``[N]`` cross-entropy of the positive among the columns that are not masked."""
    correct: Tensor
    """Number of rows that have their positive as the most similar column (the first of equals); no gradient."""
    masked: Tensor
    """Number of pairs of row and column that were masked; no gradient."""


def tiled_cross_entropy(
    rows_ND: Tensor, columns_MD: Tensor, task: CrossEntropyTask, table_NM: Tensor | None = None
) -> CrossEntropyResult:
    """Solve ``task``, whether or not the table fits a tile. Similarity is the dot product over the temperature.

    ``table_NM``: the dot products, where they are already computed.
    """
    if table_NM is None and fits_in_a_tile(rows_ND, columns_MD):
        table_NM = rows_ND @ columns_MD.T
    if table_NM is not None:
        return _whole(table_NM, task)
    found: tuple[Tensor, Tensor, Tensor] = _Tiled.apply(rows_ND, columns_MD, task)
    return CrossEntropyResult(*found)


def fits_in_a_tile(rows_ND: Tensor, columns_MD: Tensor) -> bool:
    """Whether the table of similarities is small enough to be kept whole."""
    return int(rows_ND.shape[0]) * int(columns_MD.shape[0]) <= _tile_elements(rows_ND)


def _whole(table_NM: Tensor, task: CrossEntropyTask) -> CrossEntropyResult:
    mask_NM = task.false(slice(0, table_NM.shape[0]), slice(0, table_NM.shape[1]))
    if task.margin is not None:
        above_NM = contrastive.above_positive(table_NM, task.positive_N, task.margin)
        mask_NM = above_NM if mask_NM is None else mask_NM | above_NM
    logits_NM = table_NM / task.temperature
    if mask_NM is not None:
        logits_NM = contrastive.masked_logits(logits_NM, mask_NM)
    loss_N = torch.nn.functional.cross_entropy(logits_NM, task.positive_N, reduction="none")
    correct = (logits_NM.detach().argmax(-1) == task.positive_N).sum()
    return CrossEntropyResult(loss_N, correct, correct.new_zeros(()) if mask_NM is None else mask_NM.sum())


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, columns_MD: Tensor, task: CrossEntropyTask) -> tuple[Tensor, Tensor, Tensor]:
        tiles = _Tiles(rows_ND, columns_MD, task)
        lse_N, loss_N = rows_ND.new_empty(rows_ND.shape[0]), rows_ND.new_empty(rows_ND.shape[0])
        correct = torch.zeros((), dtype=torch.int64, device=rows_ND.device)
        masked = torch.zeros_like(correct)
        for rows in tiles.row_slices():
            running = _Running(rows_ND, task.positive_N[rows])
            for columns in tiles.column_slices():
                logits, count = tiles.logits(rows, columns)
                masked += count
                running.add(logits, columns)
            lse_N[rows] = running.log_sum()
            loss_N[rows] = lse_N[rows] - running.own
            correct += (running.best == task.positive_N[rows]).sum()
        ctx.save_for_backward(rows_ND, columns_MD, lse_N)
        ctx.task = task
        ctx.mark_non_differentiable(correct, masked)
        return loss_N, correct, masked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        """d loss[n] / d similarity[n, m] = (softmax − 1 at the positive) / temperature."""
        rows_ND, columns_MD, lse_N = ctx.saved_tensors
        tiles = _Tiles(rows_ND, columns_MD, ctx.task)
        scale_N = upstream[0] / ctx.task.temperature
        rows_gradient_ND, columns_gradient_MD = torch.zeros_like(rows_ND), torch.zeros_like(columns_MD)
        for rows in tiles.row_slices():
            for columns in tiles.column_slices():
                tile, _ = tiles.logits(rows, columns)
                tile.sub_(lse_N[rows].unsqueeze(1)).exp_()
                row_K, column_K = _inside(ctx.task.positive_N[rows], columns)
                tile[row_K, column_K] -= 1
                tile.mul_(scale_N[rows].unsqueeze(1))
                rows_gradient_ND[rows].addmm_(tile, columns_MD[columns])
                columns_gradient_MD[columns].addmm_(tile.T, rows_ND[rows])
        return rows_gradient_ND, columns_gradient_MD, None


class _Tiles:
    """Tiles of the table of masked logits, as square as the sides allow, of bounded memory."""

    def __init__(self, rows_ND: Tensor, columns_MD: Tensor, task: CrossEntropyTask) -> None:
        self._rows_ND, self._columns_MD, self._task = rows_ND, columns_MD, task
        N, M = rows_ND.shape[0], columns_MD.shape[0]
        elements = _tile_elements(rows_ND)
        self._width = min(M, max(math.isqrt(elements), elements // N))
        self._height = max(1, elements // self._width)
        if task.margin is not None:
            self._limit_N = (rows_ND * columns_MD[task.positive_N]).sum(-1) + task.margin

    def row_slices(self) -> Iterator[slice]:
        return _slices(self._rows_ND.shape[0], self._height)

    def column_slices(self) -> Iterator[slice]:
        return _slices(self._columns_MD.shape[0], self._width)

    def logits(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor | int]:
        """Logits of a tile, masked ones at the smallest finite number, and how many are masked."""
        tile = self._rows_ND[rows] @ self._columns_MD[columns].T
        mask = self._task.false(rows, columns)
        if self._task.margin is not None:
            above = tile > self._limit_N[rows].unsqueeze(1)
            row_K, column_K = _inside(self._task.positive_N[rows], columns)
            above[row_K, column_K] = False
            mask = above if mask is None else mask.logical_or_(above)
        tile.div_(self._task.temperature)
        if mask is None:
            return tile, 0
        return tile.masked_fill_(mask, torch.finfo(tile.dtype).min), mask.sum()


class _Running:
    """Keeps, over the tiles of some rows, the log-sum-exp, the first largest logit and the positive's logit."""

    def __init__(self, like: Tensor, positive_n: Tensor) -> None:
        self._positive_n = positive_n
        self._sum = like.new_zeros(positive_n.shape[0])
        self._largest = torch.full_like(self._sum, torch.finfo(like.dtype).min)
        self.own = torch.zeros_like(self._sum)
        self.best = torch.full_like(positive_n, -1)

    def add(self, logits: Tensor, columns: slice) -> None:
        """Add a tile, which is overwritten."""
        row_K, column_K = _inside(self._positive_n, columns)
        self.own[row_K] = logits[row_K, column_K]
        largest, place = logits.max(-1)
        self.best = torch.where(largest > self._largest, place + columns.start, self.best)
        # Where all so far is masked the sum counts the masked ones; the positive's tile then scales that to zero.
        largest = torch.maximum(largest, self._largest)
        self._sum.mul_((self._largest - largest).exp_()).add_(logits.sub_(largest.unsqueeze(1)).exp_().sum(-1))
        self._largest = largest

    def log_sum(self) -> Tensor:
        return self._sum.log() + self._largest


def _inside(positive_n: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Rows whose positive lies in the tile, and where: its column − the tile's first."""
    row_K = ((positive_n >= columns.start) & (positive_n < columns.stop)).nonzero().squeeze(1)
    return row_K, positive_n[row_K] - columns.start


def _tile_elements(like: Tensor) -> int:
    budget = TILE_BYTES if like.device.type == "cpu" else ACCELERATOR_TILE_BYTES
    return max(1, budget // int(like.element_size()))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
