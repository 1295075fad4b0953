"""Finds which of many million identities occur in several rows; memory grows with those that do, not with all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    Blocks = Iterable[tuple[NDArray[np.int64], NDArray[np.uint64]]]

AT_ONCE = 1 << 21
"""Identities sorted at a time: 16 MiB."""


class SharedIds:
    """The identities that each row shares with others, numbered from 0: ``ids[row]`` is the list of a row's numbers."""

    def __init__(self, numbers_K: NDArray[np.int32], starts_N1: NDArray[np.integer], count: int) -> None:
        self.numbers_K, self.starts_N1 = numbers_K, starts_N1
        self.count = count
        """How many identities are shared; all numbers are below it."""
        # Single values of a view are read twice as fast as those of an array.
        self._numbers: memoryview = numbers_K.data
        self._starts: memoryview = starts_N1.data

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    def __getitem__(self, row: int) -> list[int]:
        start, stop = self._starts[row], self._starts[row + 1]
        return self._numbers[start:stop].tolist() if start < stop else []

    def rows(self) -> Iterator[tuple[int, list[int]]]:
        """The rows that share anything, ascending, with what they share."""
        for start in range(0, len(self), 1 << 16):
            bounds = self.starts_N1[start : start + (1 << 16) + 1]
            sharing = np.flatnonzero(np.diff(bounds))
            numbers, base = self.numbers_K[bounds[0] : bounds[-1]].tolist(), int(bounds[0])
            for at, first, last in zip(
                sharing.tolist(), bounds[sharing].tolist(), bounds[sharing + 1].tolist(), strict=True
            ):
                yield start + at, numbers[first - base : last - base]


class Seen:
    """Which 64-bit identities have been seen, in 8 bytes each: Python's set needs ten times that.

    Sorted runs whose sizes fall by half at least, merged as they are in a log-structured tree.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def new(self, identities: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Mask of the identities that are seen for the first time; from now on they count as seen."""
        distinct, first = np.unique(identities, return_index=True)
        fresh = np.ones(len(distinct), dtype=np.bool_)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            fresh &= run[at] != distinct
        mask = np.zeros(len(identities), dtype=np.bool_)
        mask[first[fresh]] = True
        if fresh.any():
            self._add(distinct[fresh])
        return mask

    def _add(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        self._runs.append(run)


def shared_ids(blocks: Callable[[], Blocks]) -> SharedIds:
    """The shared ones among what ``blocks`` yields: identities per row and, row after row, the identities.

    ``blocks`` is called several times and must yield the same each time: identities are sorted a part at a time, by
    their low bits, so that only those that are shared are ever held together.
    """
    rows = total = 0
    for counts, ids in blocks():
        rows, total = rows + len(counts), total + len(ids)
    parts = 1 << max(0, (total - 1) // AT_ONCE).bit_length()
    twice = np.sort(np.concatenate([_twice(_part(blocks, part, parts)) for part in range(parts)]))
    starts: NDArray[np.integer] = np.zeros(rows + 1, dtype=np.int32 if total < 2**31 else np.int64)
    found: list[NDArray[np.int32]] = []
    row = 0
    for counts, ids in blocks():
        numbers, known = _numbers(ids, twice)
        per_row = np.bincount(np.repeat(np.arange(len(counts)), counts)[known], minlength=len(counts))
        starts[row + 1 : row + 1 + len(counts)] = per_row
        found.append(numbers)
        row += len(counts)
    np.cumsum(starts, out=starts)
    return SharedIds(np.concatenate([np.empty(0, np.int32), *found]), starts, len(twice))


def distinct(blocks: Callable[[], Iterable[NDArray[np.uint64]]]) -> Iterator[NDArray[np.uint64]]:
    """The distinct values that ``blocks`` yields, in parts that are each sorted."""
    parts = 1 << max(0, (sum(map(len, blocks())) - 1) // AT_ONCE).bit_length()
    for part in range(parts):
        mine = [ids[(ids & np.uint64(parts - 1)) == part] for ids in blocks()]
        yield _once(np.sort(np.concatenate([np.empty(0, np.uint64), *mine])))


def repetitions(blocks: Callable[[], Iterable[NDArray[np.uint64]]]) -> Iterator[bool]:
    """Of every value that ``blocks`` yields, in order, whether it occurred before.

    A bit each is held, and a part of the values at a time; ``blocks`` is called several times.
    """
    total = sum(map(len, blocks()))
    parts = 1 << max(0, (total - 1) // AT_ONCE).bit_length()
    bits = np.zeros(total // 8 + 1, dtype=np.uint8)
    for part in range(parts):
        places, values, done = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
        for ids in blocks():
            mine = np.flatnonzero((ids & np.uint64(parts - 1)) == part)
            places.append(mine + done)
            values.append(ids[mine])
            done += len(ids)
        flat, at = np.concatenate(values), np.concatenate(places)
        order = np.argsort(flat, kind="stable")
        again = at[order[1:][flat[order[1:]] == flat[order[:-1]]]]
        np.bitwise_or.at(bits, again >> 3, np.left_shift(1, again & 7).astype(np.uint8))
    for start in range(0, len(bits), 1 << 13):
        yield from np.unpackbits(bits[start : start + (1 << 13)], bitorder="little").astype(bool).tolist()


def blocks_of(identities: Iterator[Iterable[bytes]], rows: int = 1 << 14) -> Callable[[], Blocks]:
    """Blocks of rows given one by one, 8 bytes kept of each identity; longer ones are hashed to as many."""
    from hashlib import blake2b
    from itertools import islice

    kept: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []
    while some := [list(dict.fromkeys(row)) for row in islice(identities, rows)]:
        flat = (i if len(i) == 8 else blake2b(i, digest_size=8).digest() for row in some for i in row)
        counts = np.fromiter(map(len, some), dtype=np.int64, count=len(some))
        kept.append((counts, np.frombuffer(b"".join(flat), dtype=np.uint64)))
    return lambda: kept


def _part(blocks: Callable[[], Blocks], part: int, parts: int) -> Iterator[NDArray[np.uint64]]:
    """The identities of a part, a row's own repetitions taken out."""
    for counts, ids in blocks():
        mine = np.flatnonzero((ids & np.uint64(parts - 1)) == part) if parts > 1 else np.arange(len(ids))
        owner = np.repeat(np.arange(len(counts)), counts)[mine]
        yield _once_per_row(ids[mine], owner)


def _once_per_row(ids: NDArray[np.uint64], owner: NDArray[np.int64]) -> NDArray[np.uint64]:
    order = np.lexsort((owner, ids))
    ids, owner = ids[order], owner[order]
    again = np.zeros(len(ids), dtype=bool)
    again[1:] = (ids[1:] == ids[:-1]) & (owner[1:] == owner[:-1])
    return ids[~again]


def _twice(pieces: Iterator[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The values that occur in two places."""
    ids = np.sort(np.concatenate([np.empty(0, np.uint64), *pieces]))
    return _once(ids[1:][ids[1:] == ids[:-1]])


def _once(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sorted values, each once. ``np.unique`` goes through a hash table, which takes five times as long."""
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[1:] != ids[:-1]
    return ids[first]


def _numbers(ids: NDArray[np.uint64], twice: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """For the ids that are in ``twice``: their places in it, and a mask of which they are."""
    if not len(twice):
        return np.empty(0, np.int32), np.zeros(len(ids), dtype=bool)
    at = np.minimum(np.searchsorted(twice, ids), len(twice) - 1)
    known = twice[at] == ids
    return at[known].astype(np.int32), known
