"""Sums over large tables of similarities, computed one block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_ELEMENTS = 4 * 2**20
"""Values in one block: 16 MiB in fp32, of which a block's forward and backward hold a few."""


def summed(function: Callable[[slice], Tensor], rows: slice, columns: int) -> Tensor:
    """``Σ function(block)`` over blocks of ``rows``, of a table with ``columns`` columns.

    ``function`` returns a sum over the rows of its block. If there are several blocks, each is recomputed in the
    backward, so that only one is in memory.
    """
    height = max(1, BLOCK_ELEMENTS // max(columns, 1))
    if rows.stop - rows.start <= height:
        return function(rows)
    starts = range(rows.start, rows.stop, height)
    blocks = [slice(start, min(start + height, rows.stop)) for start in starts]
    total: Tensor = _again(function, blocks[0])
    for block in blocks[1:]:
        total = total + _again(function, block)
    return total


def _again(function: Callable[[slice], Tensor], block: slice) -> Tensor:
    result: Tensor = checkpoint(function, block, use_reentrant=False, preserve_rng_state=False)
    return result
