"""Draws batches in which no two rows share a text."""

from __future__ import annotations

from array import array
from itertools import chain
from typing import TYPE_CHECKING

from embed_core.datasets.dedup import SharedIds, shared_ids
from embed_core.datasets.wrappers import identity_blocks
from embed_core.errors import ConfigError
from embed_core.samplers.epoch import EpochSampler, check_batch_size, row_type

if TYPE_CHECKING:
    import numpy as np

    from embed_core.protocols import Announce, Dataset

ATTEMPTS = 3
"""Orders tried before an epoch falls back to the batches of epoch 0."""
COMPARISONS_PER_ROW = 10
"""Bounds the work of completing the last batches of an epoch, where few texts are in most rows."""

BLOCK = 1 << 16
"""Rows of an order that are Python integers at a time."""


class NoDuplicatesSampler(EpochSampler):
    """No two rows of a batch share any of ``dataset.identities``: no in-batch negative is known to be a positive.

    An epoch has as many batches as epoch 0 could be packed into. A later epoch whose order packs worse is tried in
    other orders, and at last repeats the batches of epoch 0 in another order; so the number of draws is constant.
    Raises ConfigError when not even one batch can be filled; announces the rows that do not fit.
    """

    def __init__(self, dataset: Dataset, seed: int, batch_size: int, announce: Announce) -> None:
        super().__init__(seed, batch_size)
        check_batch_size(dataset, batch_size)
        self.identities = shared_ids(identity_blocks(dataset))
        first = self._packed(0, 0)
        self._first: np.ndarray | None = first
        self.draws_per_epoch = len(first)
        if not self.draws_per_epoch:
            raise ConfigError(
                f"sampler.batch_size={batch_size}: no {batch_size} rows without a common text were found among the "
                f"{len(dataset)} of {dataset.name}: lower batch_size, or use the sampler `shuffled`"
            )
        left = len(dataset) - self.draws_per_epoch * batch_size
        if left >= batch_size:
            announce(
                f"no-duplicates: {left} of {len(dataset)} rows do not fit into an epoch, others each time: they share "
                "texts with too many others"
            )

    def plan(self, epoch: int) -> np.ndarray:
        """The packed epoch, its batches shuffled: the frequent texts are not kept for its end."""
        first, self._first = self._first, None
        for attempt in range(ATTEMPTS):
            packed = first if epoch == attempt == 0 and first is not None else self._packed(epoch, attempt)
            if len(packed) >= self.draws_per_epoch:
                break
        else:
            packed = self._packed(0, 0)
        order = self.generator(epoch, ATTEMPTS).permutation(len(packed))[: self.draws_per_epoch]
        batches: np.ndarray = packed[order]
        return batches

    def _packed(self, epoch: int, attempt: int) -> np.ndarray:
        import numpy as np

        rows = np.arange(len(self.identities), dtype=row_type(len(self.identities)))
        return pack(self.generator(epoch, attempt).permutation(rows), self.identities, self.batch_size)


def pack(order: np.ndarray, identities: SharedIds, batch_size: int) -> np.ndarray:
    """Full batches [n, batch_size] of rows that share no identity, filled greedily in ``order``, in near-linear time.

    A row goes to the first batch with room after the last one that has any of its identities: as every identity moves
    forward only, nothing has to be compared. Rows that end in an incomplete batch, or in none, are packed again.
    Besides ``order`` and the result 4 bytes a batch and an identity are held.
    """
    import numpy as np

    most = len(order) // batch_size
    if not identities.count:  # the loop below would give the same
        return order[: most * batch_size].reshape(most, batch_size)
    code = order.dtype.char
    slots, filled = array(code, bytes(order.itemsize * most * batch_size)), array("l", bytes(8 * most))
    room = array("l", range(most + 1))  # room[b] leads to the first batch at or after b not full; `most` is none
    after = array("l", bytes(8 * identities.count))
    left = array(code)
    for block in np.array_split(order, 1 + len(order) // BLOCK):
        for row in block.tolist():
            mine = identities[row]
            at = _first_with_room(room, max([after[identity] for identity in mine], default=0))
            if at == most:
                left.append(row)
                continue
            slots[at * batch_size + filled[at]] = row
            filled[at] += 1
            if filled[at] == batch_size:
                room[at] = at + 1
            for identity in mine:
                after[identity] = at + 1
    batches, sizes = np.frombuffer(slots, dtype=order.dtype).reshape(most, batch_size), np.frombuffer(filled, np.int64)
    short = [batches[at, : sizes[at]].tolist() for at in np.flatnonzero((sizes > 0) & (sizes < batch_size))]
    more = _repacked(short, left.tolist(), identities, batch_size)
    return np.concatenate([batches[sizes == batch_size], np.asarray(more, order.dtype).reshape(-1, batch_size)])


def _first_with_room(room: array[int], at: int) -> int:
    """Follow the pointers from ``at`` to their end, and shorten the way."""
    end = at
    while room[end] != end:
        end = room[end]
    while room[at] != end:
        room[at], at = end, room[at]
    return end


def _repacked(short: list[list[int]], left: list[int], identities: SharedIds, batch_size: int) -> list[list[int]]:
    """Complete the fullest of the incomplete batches with rows left over and with those of the emptiest ones."""
    short = sorted(short, key=len, reverse=True)
    budget = COMPARISONS_PER_ROW * len(identities)
    full: list[list[int]] = []
    while short and budget > 0:
        batch, *short = short
        used = {identity for row in batch for identity in identities[row]}
        taken: list[int] = []
        for row in chain(left, chain.from_iterable(reversed(short))):
            if len(batch) + len(taken) == batch_size:
                break
            budget -= 1
            if used.isdisjoint(identities[row]):
                taken.append(row)
                used.update(identities[row])
        if len(batch) + len(taken) == batch_size:
            full.append(batch + taken)
            gone = set(taken)
            left = [row for row in left if row not in gone]
            short = [rest for donor in short if (rest := [row for row in donor if row not in gone])]
    return full
