"""Joins small files of the store, so that a search has to look into only a few."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed_distill.store.lock import rearranging
from embed_distill.store.segment import SUFFIX, DamagedError, Segment, write_segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LARGE_BYTES = 256 << 20
"""Files of this size and above are left alone; the files joined at once fit into as much memory."""
MANY = 16
"""Number of small files that a finished build leaves alone."""
MANY_WHILE_RUNNING = 64
"""A run that adds files joins them when there are more small ones than this."""


def compact(folder: Path, *, more_than: int = MANY, large: int = LARGE_BYTES) -> int:
    """Join the files below ``large`` bytes if there are more than ``more_than``; returns how many were joined.

    The result depends on the entries alone, not on when a build was stopped. Files whose entries are all in another
    file are removed first (a process killed between writing and removing leaves such files); the rest is joined in the
    order of the names. Readers keep a removed file open. If another process is compacting, this one does nothing.
    """
    with rearranging(folder, wait=False) as alone:
        if not alone:
            return 0
        segments = _without_covered(readable(folder), large)
        small = [one for one in segments if one.bytes < large]
        return sum(map(_join, _groups(small, large))) if len(small) > more_than else 0


def readable(folder: Path) -> list[Segment]:
    """Every undamaged file, by name; writers' temporary files are not included."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(DamagedError, FileNotFoundError):
            found.append(Segment(path))
    return found


def _without_covered(segments: Sequence[Segment], large: int) -> list[Segment]:
    """Remove small files whose entries are all, undamaged, in one file with more entries."""
    kept = list(segments)
    for one in sorted((one for one in segments if one.bytes < large), key=lambda one: one.count):
        if any(_covers(other, one) for other in kept if other.count > one.count):
            one.path.unlink(missing_ok=True)
            kept.remove(one)
    return kept


def _covers(other: Segment, one: Segment) -> bool:
    at_N = other.find(one.keys(slice(None)))
    return bool((at_N >= 0).all()) and bool(other.records(at_N)[1].all())


def _groups(small: Sequence[Segment], large: int) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for one in small:
        group.append(one)
        if sum(member.bytes for member in group) >= large:
            yield group
            group = []
    if len(group) > 1:
        yield group


def _join(group: Sequence[Segment]) -> int:
    """Write the undamaged entries of ``group`` to one file and remove the others; damaged ones are recomputed later."""
    keys, records = [], []
    for one in group:
        for keys_N2, records_N, right_N in one.parts():
            keys.append(keys_N2[right_N])
            records.append(records_N[right_N])
    joined = np.concatenate(keys)
    written = (
        write_segment(group[0].path.parent, joined, np.concatenate(records), group[0].dtype) if len(joined) else None
    )
    for one in group:
        if one.path != written:
            one.path.unlink(missing_ok=True)
    return len(group)
