"""Batches in which no two rows share a text."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from embed_core.errors import ConfigError
from embed_core.samplers.epochs import EpochSampler, check_batch_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from embed_core.protocols import Announce, Dataset

ATTEMPTS = 3
"""Orders tried before an epoch falls back to the batches of epoch 0."""
COMPARISONS_PER_ROW = 10
"""Bounds the work of completing the last batches of an epoch, where few texts are in most rows."""


class NoDuplicatesSampler(EpochSampler):
    """No two rows of a batch share any of ``dataset.identities``: no in-batch negative is known to be a positive.

    An epoch has as many batches as epoch 0 could be packed into. A later epoch whose order packs worse is tried in
    other orders, and at last repeats the batches of epoch 0 in another order; so the number of draws is constant.
    Raises ConfigError when not even one batch can be filled; announces the rows that do not fit.
    """

    def __init__(self, dataset: Dataset, seed: int, batch_size: int, announce: Announce) -> None:
        super().__init__(seed, batch_size)
        check_batch_size(dataset, batch_size)
        self.identities = _numbered(dataset)
        first = self._packed(0, 0)
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
        import numpy as np

        batches: list[list[int]] = []
        for attempt in range(ATTEMPTS):
            batches = self._packed(epoch, attempt)
            if len(batches) >= self.draws_per_epoch:
                break
        else:
            batches = self._packed(0, 0)
        order = self.generator(epoch, ATTEMPTS).permutation(len(batches))[: self.draws_per_epoch]
        return np.asarray(batches)[order]

    def _packed(self, epoch: int, attempt: int) -> list[list[int]]:
        order = self.generator(epoch, attempt).permutation(len(self.identities))
        return pack(order.tolist(), self.identities, self.batch_size)


def pack(order: Sequence[int], identities: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Full batches of rows that share no identity, filled greedily in the given order, in near-linear time.

    A row goes to the first batch with room after the last one that has any of its identities: as every identity moves
    forward only, nothing has to be compared. Rows that end in an incomplete batch, or in none, are packed again.
    """
    most = len(order) // batch_size
    batches: list[list[int]] = [[] for _ in range(most)]
    room = list(range(most + 1))  # room[b] leads to the first batch at or after b that is not full; `most` is none
    after: dict[int, int] = {}
    left: list[int] = []
    for row in order:
        at = _first_with_room(room, max((after.get(identity, 0) for identity in identities[row]), default=0))
        if at == most:
            left.append(row)
            continue
        batches[at].append(row)
        if len(batches[at]) == batch_size:
            room[at] = at + 1
        for identity in identities[row]:
            after[identity] = at + 1
    full = [batch for batch in batches if len(batch) == batch_size]
    short = [batch for batch in batches if 0 < len(batch) < batch_size]
    return full + _repacked(short, left, identities, batch_size)


def _first_with_room(room: list[int], at: int) -> int:
    """Follow the pointers from ``at`` to their end, and shorten the way."""
    end = at
    while room[end] != end:
        end = room[end]
    while room[at] != end:
        room[at], at = end, room[at]
    return end


def _repacked(
    short: list[list[int]], left: list[int], identities: Sequence[Sequence[int]], batch_size: int
) -> list[list[int]]:
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


def _numbered(dataset: Dataset) -> list[tuple[int, ...]]:
    """Every row's identities as small integers; those of one row only do not matter and are left out."""
    rows = [list(dict.fromkeys(dataset.identities(row))) for row in range(len(dataset))]
    count: dict[bytes, int] = {}
    for row in rows:
        for identity in row:
            count[identity] = count.get(identity, 0) + 1
    number: dict[bytes, int] = {}
    return [tuple(number.setdefault(i, len(number)) for i in row if count[i] > 1) for row in rows]
