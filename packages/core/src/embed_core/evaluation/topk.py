"""Keeps the best documents of every query over tiles of scores, in one total order.

A score and its document travel as one int64: the float32's bits, mapped to integers of the same order, above the
document's position counted backwards. ``torch.topk`` over such keys knows no ties: equal scores are ordered by
position, so the outcome depends neither on the order of the tiles nor on how they were dealt to ranks.

Suffixes: Q queries, N documents of a tile, K documents kept per query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAGNITUDE = 0x7FFFFFFF
_POSITIONS = 0xFFFFFFFF
_NOTHING = torch.iinfo(torch.int64).min


def pack(scores_QN: Tensor, position_N: Tensor) -> Tensor:
    """[Q, N] scores (taken as float32) and [N] positions (int64, ≥ 0, < 2³²) → [Q, N] int64 keys.

    A larger key is a better document: higher score, then lower position. A NaN or −inf score becomes the key of
    nothing, which :func:`unpack` leaves out: scores of a diverged model are no ranking.
    """
    # Adding 0.0 turns −0.0 into 0.0: equal scores must have equal bits.
    scores_QN = scores_QN.float() + 0.0
    bits_QN = scores_QN.view(torch.int32)
    # Negative floats grow in magnitude with their bits; flipping all but the sign gives the order of integers.
    ordered_QN = bits_QN ^ ((bits_QN >> 31) & _MAGNITUDE)
    keys_QN = ordered_QN.to(torch.int64) * (1 << 32) + (_POSITIONS - position_N)
    absent_QN = scores_QN.isnan() | (scores_QN == -torch.inf)
    return keys_QN.masked_fill_(absent_QN, _NOTHING)


def unpack(keys_K: Tensor) -> list[int]:
    """One query's keys, the best first → the positions of its documents."""
    keys_K = keys_K[keys_K != _NOTHING]
    positions: list[int] = (_POSITIONS - (keys_K & _POSITIONS)).tolist()
    return positions


class TopK:
    """The ``depth`` best documents of each of ``queries`` queries among all tiles seen: [Q, K] keys, nothing else."""

    def __init__(self, queries: int, depth: int, device: torch.device | str = "cpu") -> None:
        self.keys_QK = torch.full((queries, depth), _NOTHING, dtype=torch.int64, device=device)

    def add(self, start: int, scores_QN: Tensor, position_N: Tensor) -> None:
        """Add a tile: scores of the queries ``start:start + Q`` against the documents at ``position_N``."""
        rows = slice(start, start + scores_QN.shape[0])
        self._keep(rows, pack(scores_QN, position_N))

    def merge(self, others: Iterable[Tensor]) -> None:
        """Add the [Q, K] keys of other ranks' documents."""
        for keys_QK in others:
            self._keep(slice(None), keys_QK.to(self.keys_QK.device))

    def _keep(self, rows: slice, keys_QN: Tensor) -> None:
        kept_QK = self.keys_QK[rows]
        self.keys_QK[rows] = torch.cat([kept_QK, keys_QN], 1).topk(kept_QK.shape[1], dim=1).values
