"""Many small files into few: what keeps a search short."""

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
"""Size from which on a file stays as it is; what is joined at once fits into so much memory."""
MANY = 16
"""Small files that a finished build leaves alone."""
MANY_WHILE_RUNNING = 64
"""Small files from which on a run that adds to them joins them."""


def compact(folder: Path, *, more_than: int = MANY, large: int = LARGE_BYTES) -> int:
    """Join the files below ``large`` bytes where there are more than so many; how many were joined.

    What comes out depends on the entries alone, not on when a build was stopped: files whose entries are all in another
    file go first, which is what a process leaves that is killed between writing and removing; the rest is joined in the
    order of the names. Readers that have a removed file open keep it. Another process that is at it is left to it.
    """
    with rearranging(folder, wait=False) as alone:
        if not alone:
            return 0
        segments = _without_covered(readable(folder), large)
        small = [one for one in segments if one.bytes < large]
        return sum(map(_join, _groups(small, large))) if len(small) > more_than else 0


def readable(folder: Path) -> list[Segment]:
    """Every file that is whole, by name; temporary files of writers are none."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(DamagedError, FileNotFoundError):
            found.append(Segment(path))
    return found


def _without_covered(segments: Sequence[Segment], large: int) -> list[Segment]:
    """Removes small files all of whose entries are, undamaged, in one with more of them."""
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
    """One file of the undamaged entries of ``group``, then those go. Damaged ones are computed again when asked for."""
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
