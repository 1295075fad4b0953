"""Finds which passages are known positives of which queries, tile by tile, without a ``[B, P]`` tensor of bools.

G counts distinct query texts, U distinct values (hashes of texts or ids) among the columns, M the columns: the P
passages, or a choice of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embed_core.embeddings import offsets_of, ragged_index

if TYPE_CHECKING:
    from embed_core.losses.config import MaskConfig
    from embed_core.types import Targets


class KnownPositives:
    """The known positives of each row by text or id, its own column excepted; rows of one query text share theirs.

    Memory and the cost of building are O(P + K), K the positives listed; a tile costs what it has of them.
    """

    def __init__(self, targets: Targets, mask: MaskConfig, columns_M: Tensor | None = None) -> None:
        """``columns_M``: the passages that are asked about, each row's own positive in their order; None = all P."""
        groups, self._group_B = torch.unique(targets.query_ids_B, return_inverse=True)
        own_B = targets.positive_columns_B
        self._own_B = own_B if columns_M is None else torch.arange(own_B.shape[0], device=own_B.device)
        self._lookups: list[_Lookup] = []
        for wanted, values_P in ((mask.same_text, targets.passage_ids_P), (mask.same_id, targets.passage_keys_P)):
            if wanted:
                group_K, value_K = _entries(targets, self._group_B, values_P)
                if values_P is targets.passage_keys_P:  # 0 says "no id", which is nobody's identity
                    group_K, value_K = group_K[value_K != 0], value_K[value_K != 0]
                values_M = values_P if columns_M is None else values_P[columns_M]
                self._lookups.append(_Lookup(group_K, value_K, values_M, groups.shape[0]))

    def tile(self, rows: slice, columns: slice) -> Tensor | None:
        """Bool ``[rows, columns]``, True at a known positive; ``None`` where surely none is."""
        group_r, table_r = torch.unique(self._group_B[rows], return_inverse=True)
        width = columns.stop - columns.start
        table = torch.zeros(0, dtype=torch.bool)
        for lookup in self._lookups:
            row_E, column_E = lookup.pairs(group_r, columns.start, columns.stop)
            if row_E.shape[0]:
                if not table.numel():
                    table = torch.zeros(group_r.shape[0], width, dtype=torch.bool, device=group_r.device)
                table[row_E, column_E] = True
        if not table.numel():
            return None
        known = table[table_r]
        own_r = self._own_B[rows] - columns.start
        inside_r = ((own_r >= 0) & (own_r < width)).nonzero().squeeze(1)
        known[inside_r, own_r[inside_r]] = False
        return known

    def pairs(self, row_M: Tensor) -> Tensor:
        """Bool ``[M]``: is column m a known positive of row ``row_M[m]``, and not its own positive's column?"""
        known_M = torch.zeros_like(row_M, dtype=torch.bool)
        for lookup in self._lookups:
            known_M |= lookup.contains(self._group_B[row_M])
        known_M[self._own_B] = False
        return known_M


class _Lookup:
    """The distinct (query group, value) entries sorted by group, and the columns sorted by value."""

    def __init__(self, group_K: Tensor, value_K: Tensor, values_M: Tensor, groups: int) -> None:
        distinct_U, self._place_M = torch.unique(values_M, return_inverse=True)
        self._U, self._M = distinct_U.shape[0], values_M.shape[0]
        place_K = torch.searchsorted(distinct_U, value_K).clamp_(max=self._U - 1)
        found_K = distinct_U[place_K] == value_K
        # Distinct hashes became small numbers, so a pair of them is one int64 that sorts like the pair.
        self._entry_K = torch.unique(group_K[found_K] * self._U + place_K[found_K])
        bounds_G1 = torch.arange(groups + 1, device=group_K.device) * self._U
        self._offsets_G1 = torch.searchsorted(self._entry_K, bounds_G1)
        self._column_M = torch.argsort(self._place_M, stable=True)
        self._sorted_M = self._place_M[self._column_M] * self._M + self._column_M

    def pairs(self, group_r: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Index among ``group_r`` (distinct) and column − start of every known positive in columns start:stop."""
        entry_K, offsets_r1 = ragged_index(self._offsets_G1, group_r)
        place_K = self._entry_K[entry_K] % self._U
        low_K = torch.searchsorted(self._sorted_M, place_K * self._M + start)
        size_K = torch.searchsorted(self._sorted_M, place_K * self._M + stop) - low_K
        hit_H = size_K.nonzero().squeeze(1)
        low_H, size_H = low_K[hit_H], size_K[hit_H]
        row_H = torch.searchsorted(offsets_r1, hit_H, right=True) - 1
        offsets_H1 = offsets_of(size_H)
        total = int(offsets_H1[-1])
        shift_E = torch.repeat_interleave(low_H - offsets_H1[:-1], size_H, output_size=total)
        position_E = torch.arange(total, device=low_H.device) + shift_E
        return torch.repeat_interleave(row_H, size_H, output_size=total), self._column_M[position_E] - start

    def contains(self, group_M: Tensor) -> Tensor:
        """Bool ``[M]``: is the value of column m known to ``group_M[m]``?"""
        if not self._entry_K.shape[0]:
            return torch.zeros_like(group_M, dtype=torch.bool)
        key_M = group_M * self._U + self._place_M
        position_M = torch.searchsorted(self._entry_K, key_M).clamp_(max=self._entry_K.shape[0] - 1)
        return self._entry_K[position_M] == key_M


def _entries(targets: Targets, group_B: Tensor, values_P: Tensor) -> tuple[Tensor, Tensor]:
    """(query group, hash) of every known positive."""
    total = targets.positives_K.shape[0]
    group_K = torch.repeat_interleave(group_B, targets.positive_offsets_B1.diff(), output_size=total)
    # The drawn positive is a known positive even where the dataset does not list it.
    own_B = values_P[targets.positive_columns_B]
    return torch.cat([group_K, group_B]), torch.cat([targets.positives_K, own_B])
